// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The pools of keys: `/var/lib/hyperv/.kvp_pool_0` … `_4`, as the C daemon keeps them and as cloud-init, Azure's agent and scripts read
//! and write them.
//!
//! A file is a row of records of 512 bytes of key and 2048 bytes of value, each filled up with NUL; nothing else is in it. The
//! files are never emptied on start: what host and guest put there stays until they take it away.
//!
//! # Locks
//!
//! The C daemon takes a POSIX record lock on the whole file, cloud-init and Azure's agent take flock(2). The two do not see each other,
//! so both are taken, in that order, and after that it is checked that the file still has the name: it is replaced rather than
//! overwritten, since only that survives a power cut. What is left: a program that waits for the lock of a file which is replaced
//! meanwhile, does not look again, and appends, appends to the old file. Only the host makes the daemon write, so this concerns pools
//! that the host writes (0, and by convention no other).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{fcntl_lock, flock, FlockOperation};
use rustix::io::Errno;
use vmbus_proto::ic::kvp::{Pool, KEY_SIZE as MAX_KEY, VALUE_SIZE as MAX_VALUE};

use crate::files;

/// Where the pools are.
pub const DIRECTORY: &str = "/var/lib/hyperv";

/// Bytes of a record.
pub const RECORD: usize = MAX_KEY + MAX_VALUE;

/// How long another program may hold a lock. The driver gives a request 30 s.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Largest pool in records. A host that goes on adding keys is stopped before it fills the disk (the C daemon has no limit;
/// Hyper-V itself keeps far fewer).
pub const MAX_RECORDS: usize = 4096;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Without NUL.
    pub key: Vec<u8>,
    /// Without NUL.
    pub value: Vec<u8>,
}

impl Record {
    fn parse(bytes: &[u8]) -> Self {
        let (key, value) = bytes.split_at(MAX_KEY.min(bytes.len()));
        Self {
            key: until_nul(key).to_vec(),
            value: until_nul(value).to_vec(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.key);
        out.resize(start + MAX_KEY, 0);
        out.extend_from_slice(&self.value);
        out.resize(start + RECORD, 0);
    }
}

/// `bytes` up to the first NUL.
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// The five pools.
#[derive(Debug)]
pub struct Pools {
    directory: PathBuf,
}

impl Pools {
    /// The pools in `directory`, which is made, with empty pools, where they are missing.
    ///
    /// # Errors
    ///
    /// Of mkdir(2) and open(2).
    pub fn open(directory: &Path) -> io::Result<Self> {
        if let Err(error) = fs::create_dir(directory) {
            match error.kind() {
                io::ErrorKind::AlreadyExists => {}
                io::ErrorKind::NotFound => fs::create_dir_all(directory)?,
                _ => return Err(error),
            }
        }
        let pools = Self {
            directory: directory.to_owned(),
        };
        for pool in 0..Pool::COUNT {
            pools.create(pool)?;
        }
        Ok(pools)
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// Of reading the file, and `TimedOut` for its lock.
    pub fn get(&self, pool: u8, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let records = self.lock(pool)?.read()?;
        Ok(records.into_iter().find(|r| r.key == key).map(|r| r.value))
    }

    /// The record at `index`.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn at(&self, pool: u8, index: u32) -> io::Result<Option<Record>> {
        self.lock(pool)?.read_at(index)
    }

    /// Sets `key` to `value`, adding it behind the others if it is new.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); of writing the file, which then is as before; `FileTooLarge` when the pool is full;
    /// `InvalidInput` for a key or value that is too long or has no name.
    pub fn set(&self, pool: u8, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.is_empty() || key.len() >= MAX_KEY || value.len() >= MAX_VALUE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut file = self.lock(pool)?;
        let mut records = file.read()?;
        let record = Record {
            key: key.to_vec(),
            value: value.to_vec(),
        };
        match records.iter().position(|r| r.key == key) {
            Some(index) if records[index] == record => return Ok(()),
            Some(index) => records[index] = record,
            None if records.len() >= MAX_RECORDS => return Err(io::ErrorKind::FileTooLarge.into()),
            None => records.push(record),
        }
        file.replace(&records)
    }

    /// Removes `key`; false if it is not there.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn delete(&self, pool: u8, key: &[u8]) -> io::Result<bool> {
        let mut file = self.lock(pool)?;
        let mut records = file.read()?;
        let Some(index) = records.iter().position(|r| r.key == key) else {
            return Ok(false);
        };
        records.remove(index);
        file.replace(&records)?;
        Ok(true)
    }

    fn path(&self, pool: u8) -> PathBuf {
        self.directory.join(format!(".kvp_pool_{pool}"))
    }

    fn create(&self, pool: u8) -> io::Result<File> {
        let path = self.path(pool);
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path);
        open.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Opens and locks a pool's file.
    fn lock(&self, pool: u8) -> io::Result<Locked> {
        if pool >= Pool::COUNT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let limit = Instant::now() + LOCK_LIMIT;
        loop {
            let file = self.create(pool)?;
            let path = self.path(pool);
            let lock = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
                .and_then(|()| flock(&file, FlockOperation::NonBlockingLockExclusive));
            match lock {
                Ok(()) => {
                    let (mine, named) = (file.metadata()?, fs::metadata(&path));
                    if named.is_ok_and(|n| (n.dev(), n.ino()) == (mine.dev(), mine.ino())) {
                        return Ok(Locked { file, path });
                    }
                }
                // A lock with a time limit has no event to wait for.
                Err(Errno::AGAIN | Errno::ACCESS | Errno::INTR) => {
                    if Instant::now() > limit {
                        let text = format!("{} is locked by another program", path.display());
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A pool's file, locked until it is dropped.
struct Locked {
    file: File,
    path: PathBuf,
}

impl Locked {
    /// All records. A last one that is cut, which a crash of another writer may leave, does not count.
    fn read(&mut self) -> io::Result<Vec<Record>> {
        let mut bytes = Vec::new();
        let max = (MAX_RECORDS * RECORD) as u64;
        (&self.file).seek(SeekFrom::Start(0))?;
        (&self.file).take(max).read_to_end(&mut bytes)?;
        Ok(bytes.chunks_exact(RECORD).map(Record::parse).collect())
    }

    fn read_at(&mut self, index: u32) -> io::Result<Option<Record>> {
        let mut bytes = vec![0; RECORD];
        (&self.file).seek(SeekFrom::Start(u64::from(index) * RECORD as u64))?;
        match (&self.file).read_exact(&mut bytes) {
            Ok(()) => Ok(Some(Record::parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(&mut self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD);
        for record in records {
            record.write(&mut bytes);
        }
        let mode = self.file.metadata()?.permissions().mode() & 0o777;
        files::replace(&self.path, &bytes, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn pools() -> (tempfile::TempDir, Pools) {
        let directory = tempfile::tempdir().unwrap();
        let pools = Pools::open(directory.path()).unwrap();
        (directory, pools)
    }

    #[test]
    fn files_are_as_the_c_daemon_makes_them() {
        let (directory, pools) = pools();
        pools.set(0, b"key", b"value").unwrap();
        pools.set(0, "schlüssel".as_bytes(), b"").unwrap();
        let bytes = fs::read(directory.path().join(".kvp_pool_0")).unwrap();
        assert_eq!(bytes.len(), 2 * 2560);
        assert_eq!(&bytes[..4], b"key\0");
        assert_eq!(&bytes[512..518], b"value\0");
        assert!(bytes[518..2560].iter().all(|&b| b == 0));
        for pool in 0..5 {
            let file = directory.path().join(format!(".kvp_pool_{pool}"));
            assert_eq!(
                fs::metadata(file).unwrap().permissions().mode() & 0o7777,
                0o644
            );
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 5);
    }

    #[test]
    fn keys_are_added_changed_removed_in_order() {
        let (_directory, pools) = pools();
        for i in 0..250 {
            pools.set(3, format!("k{i}").as_bytes(), b"x").unwrap();
        }
        pools.set(3, b"k7", b"y").unwrap();
        assert_eq!(pools.get(3, b"k7").unwrap().unwrap(), b"y");
        assert!(pools.delete(3, b"k6").unwrap());
        assert!(!pools.delete(3, b"k6").unwrap());
        assert_eq!(pools.at(3, 6).unwrap().unwrap().key, b"k7");
        assert_eq!(pools.at(3, 248).unwrap().unwrap().key, b"k249");
        assert_eq!(pools.at(3, 249).unwrap(), None);
        assert_eq!(pools.at(3, u32::MAX).unwrap(), None);
        assert_eq!(pools.get(3, b"k").unwrap(), None, "a prefix is another key");
    }

    #[test]
    fn nonsense_is_refused() {
        let (_directory, pools) = pools();
        assert!(pools.set(5, b"k", b"v").is_err());
        assert!(pools.at(255, 0).is_err());
        assert!(pools.set(0, b"", b"v").is_err());
        assert!(pools.set(0, &[b'k'; 512], b"v").is_err());
        assert!(pools.set(0, b"k", &[b'v'; 2048]).is_err());
        pools.set(0, &[b'k'; 511], &[b'v'; 2047]).unwrap();
        assert_eq!(pools.get(0, &[b'k'; 511]).unwrap().unwrap(), [b'v'; 2047]);
    }

    #[test]
    fn a_cut_record_is_ignored_and_goes_with_the_next_write() {
        let (directory, pools) = pools();
        let path = directory.path().join(".kvp_pool_1");
        pools.set(1, b"a", b"1").unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"torn");
        fs::write(&path, bytes).unwrap();
        assert_eq!(pools.at(1, 1).unwrap(), None);
        pools.set(1, b"b", b"2").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * 2560);
        assert_eq!(pools.at(1, 1).unwrap().unwrap().value, b"2");
    }

    #[test]
    fn a_lock_of_either_kind_is_waited_for() {
        let (directory, pools) = pools();
        let path = directory.path().join(".kvp_pool_0");
        let holder = OpenOptions::new().append(true).open(&path).unwrap();
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        let waiter = thread::spawn(move || {
            pools.set(0, b"mine", b"2").unwrap();
            pools
        });
        // While the lock is held, another program adds a record, as cloud-init does.
        let mut record = Vec::new();
        Record {
            key: b"theirs".to_vec(),
            value: b"1".to_vec(),
        }
        .write(&mut record);
        io::Write::write_all(&mut &holder, &record).unwrap();
        drop(holder);
        let pools = waiter.join().unwrap();
        assert_eq!(pools.at(0, 0).unwrap().unwrap().key, b"theirs");
        assert_eq!(pools.at(0, 1).unwrap().unwrap().key, b"mine");
    }

    proptest! {
        // Each step syncs.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_pool_is_a_map(steps in prop::collection::vec((0u8..3, 0u8..6, "[a-z]{0,8}"), 0..40)) {
            let (_directory, pools) = pools();
            let mut model = HashMap::new();
            for (what, key, value) in steps {
                let key = format!("key{key}");
                match what {
                    0 => {
                        pools.set(0, key.as_bytes(), value.as_bytes()).unwrap();
                        model.insert(key, value);
                    }
                    1 => assert_eq!(
                        pools.delete(0, key.as_bytes()).unwrap(),
                        model.remove(&key).is_some()
                    ),
                    _ => assert_eq!(
                        pools.get(0, key.as_bytes()).unwrap(),
                        model.get(&key).map(|v| v.clone().into_bytes())
                    ),
                }
            }
            let count = u32::try_from(model.len()).unwrap();
            assert!(count == 0 || pools.at(0, count - 1).unwrap().is_some());
            assert_eq!(pools.at(0, count).unwrap(), None);
        }

        #[test]
        fn any_file_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            let (directory, pools) = pools();
            fs::write(directory.path().join(".kvp_pool_2"), &bytes).unwrap();
            for index in 0..4 {
                let _ = pools.at(2, index).unwrap();
            }
            pools.set(2, b"k", b"v").unwrap();
            assert_eq!(pools.get(2, b"k").unwrap().unwrap(), b"v");
        }
    }
}
