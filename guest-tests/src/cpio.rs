// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Writes cpio archives in the "newc" format that the kernel unpacks as initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// A regular file. `mode` holds the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.entry(path, 0o100_000 | mode, data)
    }

    /// A directory. Parents must come before what is in them.
    pub fn dir(&mut self, path: &str) -> &mut Self {
        self.entry(path, 0o040_755, &[])
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, 0o120_777, target.as_bytes())
    }

    /// The archive, complete with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.inode += 1;
        let path = path.trim_start_matches('/');
        let links = 1;
        let header = [
            self.inode,
            mode,
            0, // owner
            0, // group
            links,
            0, // time of modification
            data.len() as u32,
            0, // device, major
            0, // device, minor
            0, // device of a device file, major
            0, // device of a device file, minor
            path.len() as u32 + 1,
            0, // checksum, unused in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        self
    }

    fn pad(&mut self) {
        pad(&mut self.bytes);
    }
}

/// Fills up with zeros to a multiple of four bytes, as needed before an archive that follows another.
pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn header_and_padding() {
        let mut archive = Archive::default();
        archive.file("/a", 0o644, b"hello");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081a4"));
        assert_eq!(bytes.len() % 4, 0);
        // 110 bytes of header, name "a\0" = 112, a multiple of four: data follow at once.
        assert_eq!(&bytes[112..120], b"hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
    }

    /// The reader of the field, where it is installed (it is in the build tree).
    #[test]
    fn cpio_lists_it() {
        let mut archive = Archive::default();
        archive
            .dir("/lib")
            .file("/lib/x.ko", 0o644, &[7; 1000])
            .link("/init", "lib/x.ko");
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return;
        };
        cpio.stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        let out = cpio.wait_with_output().unwrap();
        assert!(out.status.success());
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "lib\nlib/x.ko\ninit\n"
        );
    }
}
