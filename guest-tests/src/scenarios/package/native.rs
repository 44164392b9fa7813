// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Scripts of the packages on simulated systems.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{ensure, Context, Result};

use crate::env::TempDir;
use crate::runner::{equal, Ctx, Scenario};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "metadata",
            "Rust metadata as Arch, Fedora, Armbian and Ubuntu ship it is used; what is missing is named, one line each",
            metadata,
        ),
        Scenario::new(
            "loaders",
            "entries for GRUB and systemd-boot for kernels whose modules are built and in the initramfs, and only for those",
            loaders,
        ),
    ]
}

const RELEASE: &str = "7.3.4-test";

/// A directory that the scripts take for `/`.
struct System {
    dir: TempDir,
    source: PathBuf,
}

impl System {
    fn new(ctx: &Ctx) -> Result<Self> {
        Ok(Self {
            dir: TempDir::new()?,
            source: ctx.env.source.clone(),
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("parent")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn link(&self, to: &str, path: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("parent")?)?;
        symlink(to, &path).with_context(|| path.display().to_string())
    }

    /// Headers of a kernel that was built with Rust by this tree's compilers, at `dir`.
    fn headers(&self, dir: &str, rustc: u32) -> Result<()> {
        self.write(
            &format!("{dir}/.config"),
            &format!("CONFIG_RUST=y\nCONFIG_RUSTC_VERSION={rustc}\nCONFIG_CC_VERSION_TEXT=\"gcc (Test) 14.2.0\"\n"),
        )?;
        self.write(&format!("{dir}/Module.symvers"), "")?;
        self.write(&format!("{dir}/include/generated/autoconf.h"), "")
    }

    /// Metadata as rust/Makefile names it.
    fn rust(&self, dir: &str) -> Result<()> {
        for name in [
            "libcore.rmeta",
            "libffi.rmeta",
            "libbindings.rmeta",
            "libkernel.rmeta",
            "libmacros.so",
        ] {
            self.write(&format!("{dir}/rust/{name}"), "x")?;
        }
        Ok(())
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        Command::new(self.source.join(program))
            .args(args)
            .env("HYPERV_RS_ROOT", self.dir.path())
            .output()
            .with_context(|| program.to_owned())
    }

    /// What kernel-artifacts finds, or its words and status.
    fn artifacts(&self) -> Result<Result<PathBuf, String>> {
        let out = self.run("packaging/lib/kernel-artifacts", &[RELEASE])?;
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        Ok(match out.status.code() {
            Some(0) => Ok(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())),
            Some(3) => Err(errors),
            _ => anyhow::bail!("kernel-artifacts: {}: {errors}", out.status),
        })
    }
}

/// The rustc of this tree as the kernel's configuration names it.
fn rustc() -> Result<u32> {
    let out = Command::new("rustc")
        .arg("--version")
        .output()
        .context("rustc")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let version = text.split_whitespace().nth(1).context("rustc --version")?;
    let parts: Vec<u32> = version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect();
    match parts[..] {
        [major, minor, patch] => Ok(major * 100_000 + minor * 100 + patch),
        _ => anyhow::bail!("rustc --version: {text}"),
    }
}

fn metadata(ctx: &Ctx) -> Result<()> {
    let rustc = rustc()?;
    let build = format!("/lib/modules/{RELEASE}/build");
    // Where each distribution's packages put it.
    let shipped = [
        ("Arch", None),
        ("Fedora", Some(format!("/usr/src/kernels/{RELEASE}"))),
        ("Armbian", Some(format!("/usr/src/linux-headers-{RELEASE}"))),
    ];
    for (name, elsewhere) in shipped {
        let system = System::new(ctx)?;
        let dir = elsewhere.clone().unwrap_or_else(|| build.clone());
        system.headers(&dir, rustc)?;
        system.rust(&dir)?;
        if elsewhere.is_some() {
            system.link(&format!("../../..{dir}"), &build)?;
        }
        let found = system.artifacts()?;
        equal(
            name,
            found.map_err(|err| err.trim().to_owned()),
            Ok(system.path(&dir).canonicalize()?),
        )?;
    }

    // Ubuntu: a package of its own, with and without the link to it from the headers.
    for linked in [true, false] {
        let system = System::new(ctx)?;
        let headers = format!("/usr/src/linux-headers-{RELEASE}");
        system.headers(&headers, rustc)?;
        system.rust(&format!("/usr/src/linux-lib-rust-{RELEASE}"))?;
        system.link(&format!("../../../usr/src/linux-headers-{RELEASE}"), &build)?;
        if linked {
            system.link(
                &format!("../linux-lib-rust-{RELEASE}/rust"),
                &format!("{headers}/rust"),
            )?;
        }
        let found = system.artifacts()?.map_err(anyhow::Error::msg)?;
        for file in [
            "rust/libkernel.rmeta",
            "include/generated/autoconf.h",
            ".config",
            "Module.symvers",
        ] {
            ensure!(
                found.join(file).exists(),
                "Ubuntu, linked {linked}: no {file} in {}",
                found.display()
            );
        }
    }

    // What is missing is named with the command that helps.
    let expect = |system: &System, words: &[&str]| -> Result<()> {
        let Err(text) = system.artifacts()? else {
            anyhow::bail!("expected a refusal with {words:?}");
        };
        for word in words {
            let hits = text
                .lines()
                .filter(|line| line.starts_with("hyperv-rs: ") && line.contains(word))
                .count();
            equal(&format!("lines with {word:?} in {text:?}"), hits, 1)?;
        }
        Ok(())
    };
    let system = System::new(ctx)?;
    system.write("/etc/debian_version", "13\n")?;
    expect(&system, &[&format!("apt install linux-headers-{RELEASE}")])?;
    system.headers(&build, rustc)?;
    expect(
        &system,
        &[
            "apt install linux-source-7.3",
            "apt install libelf-dev",
            "apt install libssl-dev",
            "apt install rust-src",
        ],
    )?;
    // Shipped metadata of another compiler cannot be read.
    let system = System::new(ctx)?;
    system.headers(&build, 108_700)?;
    system.rust(&build)?;
    expect(&system, &["this kernel was built by 1.87.0"])?;
    let system = System::new(ctx)?;
    system.headers(&build, rustc)?;
    system.write(&format!("{build}/.config"), "# CONFIG_RUST is not set\n")?;
    expect(&system, &["built without Rust"])?;
    // Neither shipped nor a system whose way of making it is known.
    let system = System::new(ctx)?;
    system.headers(&build, rustc)?;
    expect(&system, &["hold no Rust metadata"])
}

/// What GRUB's 10_linux prints for two kernels, in its form.
const TEN_LINUX: &str = r#"#!/bin/sh
for v in 7.3.4-test 7.2.1-test; do
cat <<END
menuentry 'Debian GNU/Linux, with Linux $v' --class debian \$menuentry_id_option 'gnulinux-$v-advanced-abcd' {
	load_video
	linux	/boot/vmlinuz-$v root=UUID=abcd ro $GRUB_CMDLINE_LINUX quiet
	initrd	/boot/initrd.img-$v
}
END
done
"#;

fn loaders(ctx: &Ctx) -> Result<()> {
    let system = System::new(ctx)?;
    let common = fs::read_to_string(ctx.env.source.join("packaging/lib/common.sh"))?;
    system.write("/usr/lib/hyperv-rs/common.sh", &common)?;
    system.write("/etc/grub.d/10_linux", TEN_LINUX)?;
    fs::set_permissions(
        system.path("/etc/grub.d/10_linux"),
        fs::Permissions::from_mode(0o755),
    )?;
    let kernels = ["7.3.4-test", "7.2.1-test"];
    for release in kernels {
        system.write(&format!("/boot/vmlinuz-{release}"), "k")?;
        system.write(&format!("/boot/initrd.img-{release}"), release)?;
    }
    let grub = || -> Result<String> {
        let out = system.run("packaging/grub/11_hyperv_rs", &[])?;
        ensure!(
            out.status.success(),
            "11_hyperv_rs: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let entries = |text: &str| -> Vec<String> {
        let ids = text.lines().filter(|line| line.starts_with("menuentry "));
        ids.filter_map(|line| line.split('\'').nth(3).map(str::to_owned))
            .collect()
    };
    let note = |release: &str| -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(system.path(&format!("/boot/initrd.img-{release}")))?;
        let text = format!("{} {}\n", meta.size(), meta.mtime());
        system.write(&format!("/var/lib/hyperv-rs/initramfs/{release}"), &text)
    };
    let modules = |release: &str, names: &[&str]| -> Result<()> {
        for name in names {
            system.write(
                &format!("/lib/modules/{release}/updates/dkms/{name}.ko.xz"),
                "m",
            )?;
        }
        Ok(())
    };
    const ALL: [&str; 4] = [
        "hv_vmbus_rs",
        "hv_storvsc_rs",
        "hv_netvsc_rs",
        "hv_utils_rs",
    ];

    equal("nothing built", grub()?.as_str(), "")?;
    modules("7.2.1-test", &ALL)?;
    equal("built, not in the initramfs", grub()?.as_str(), "")?;
    note("7.2.1-test")?;
    let text = grub()?;
    equal(
        "entries",
        entries(&text),
        vec!["hyperv-rs-7.2.1-test".to_owned()],
    )?;
    ensure!(
        !text.contains("set default"),
        "an older kernel became the default: {text}"
    );
    // One module is missing: as if none were there.
    modules("7.3.4-test", &ALL[1..])?;
    note("7.3.4-test")?;
    equal("entries", entries(&grub()?).len(), 1)?;
    modules("7.3.4-test", &ALL)?;
    let text = grub()?;
    equal(
        "entries",
        entries(&text),
        kernels
            .map(|release| format!("hyperv-rs-{release}"))
            .to_vec(),
    )?;
    ensure!(
        text.contains("set default=\"hyperv-rs-7.3.4-test\""),
        "no default: {text}"
    );
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.trim_start().starts_with("linux"))
        .collect();
    equal("kernel lines", lines.len(), 2)?;
    for line in lines {
        ensure!(
            line.contains("initcall_blacklist=hv_acpi_init ${hyperv_rs_fallback} quiet"),
            "parameters: {line}"
        );
    }
    // GRUB's own parser, where the tree has it, is run by update-grub in the guest.
    // An initramfs that was made after the note counts as without.
    system.write("/boot/initrd.img-7.3.4-test", "another one")?;
    equal(
        "entries",
        entries(&grub()?),
        vec!["hyperv-rs-7.2.1-test".to_owned()],
    )?;
    note("7.3.4-test")?;
    system.write("/var/lib/hyperv-rs/disabled", "")?;
    equal("disabled", grub()?.as_str(), "")?;

    systemd_boot(&system)?;
    fs::remove_file(system.path("/var/lib/hyperv-rs/disabled"))?;
    systemd_boot_entries(&system)
}

const STOCK: &str = "title      Debian\nversion    7.3.4-test\nsort-key   debian\noptions    root=UUID=abcd ro quiet\nlinux      /x/linux\n";

fn kernel_install(system: &System, command: &str, release: &str) -> Result<()> {
    let out = Command::new(
        system
            .source
            .join("packaging/kernel-install/95-hyperv-rs.install"),
    )
    .args([command, release, "/none", "/boot/vmlinuz"])
    .env("HYPERV_RS_ROOT", system.dir.path())
    .env("KERNEL_INSTALL_LAYOUT", "bls")
    .env("KERNEL_INSTALL_BOOT_ROOT", system.path("/efi"))
    .env("KERNEL_INSTALL_ENTRY_TOKEN", "token")
    .output()?;
    ensure!(
        out.status.success(),
        "95-hyperv-rs.install: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// Switched off: no entry.
fn systemd_boot(system: &System) -> Result<()> {
    system.write("/efi/loader/entries/token-7.3.4-test.conf", STOCK)?;
    kernel_install(system, "add", "7.3.4-test")?;
    let entries = fs::read_dir(system.path("/efi/loader/entries"))?.count();
    equal("entries while switched off", entries, 1)
}

fn systemd_boot_entries(system: &System) -> Result<()> {
    kernel_install(system, "add", "7.3.4-test")?;
    let path = system.path("/efi/loader/entries/token-7.3.4-test-hyperv-rs+1.conf");
    let text = fs::read_to_string(&path).context("no entry that is counted")?;
    ensure!(
        text.contains("quiet initcall_blacklist=hv_acpi_init"),
        "options: {text}"
    );
    equal(
        "stock entry",
        fs::read_to_string(system.path("/efi/loader/entries/token-7.3.4-test.conf"))?.as_str(),
        STOCK,
    )?;
    // systemd-bless-boot has renamed it: it stays as it is called, and is not counted anew.
    let good = system.path("/efi/loader/entries/token-7.3.4-test-hyperv-rs.conf");
    fs::rename(&path, &good)?;
    kernel_install(system, "add", "7.3.4-test")?;
    ensure!(
        good.exists() && !path.exists(),
        "a good entry is counted again"
    );
    kernel_install(system, "remove", "7.3.4-test")?;
    ensure!(!good.exists(), "the entry of a removed kernel stays");
    Ok(())
}
