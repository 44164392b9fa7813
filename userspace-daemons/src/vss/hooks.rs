// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Programs in `/etc/hyperv/backup.d/`: run before file systems are frozen (argument `freeze`, in the order of their names) and after they
//! are thawed (argument `thaw`, in the opposite order).
//!
//! A hook that fails or takes too long before a freeze calls it off: the backup it was to make consistent would not be.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{debug, error, info};

use crate::commands::{self, trusted, Outcome};

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the freeze.
    Freeze,
    /// After the thaw.
    Thaw,
}

impl Phase {
    fn argument(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        }
    }
}

/// The hooks of a directory.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// Where they are. It need not exist.
    pub directory: PathBuf,
    /// How long each may take.
    pub limit: Duration,
}

impl Hooks {
    /// Runs the hooks before a freeze. On an error those that ran are told to thaw.
    ///
    /// # Errors
    ///
    /// What failed, for the log.
    pub fn before(&self, abort: Option<BorrowedFd<'_>>) -> Result<(), String> {
        let mut ran = Vec::new();
        for hook in self.list() {
            ran.push(hook.clone());
            if let Err(error) = self.run(&hook, Phase::Freeze, abort) {
                // The one that failed, too: it may have got half-way.
                self.thaw(ran);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Runs the hooks after a thaw.
    pub fn after(&self) {
        self.thaw(self.list());
    }

    fn thaw(&self, hooks: Vec<PathBuf>) {
        for hook in hooks.iter().rev() {
            if let Err(error) = self.run(hook, Phase::Thaw, None) {
                error!("{error}");
            }
        }
    }

    fn run(&self, hook: &Path, phase: Phase, abort: Option<BorrowedFd<'_>>) -> Result<(), String> {
        let name = hook.display();
        debug!("running {name} {}", phase.argument());
        let argument = [phase.argument()];
        let done = commands::run(hook, &argument, &[], self.limit, abort)
            .map_err(|error| format!("hook {name}: {error}"))?;
        for line in done.output.lines() {
            info!("{name} {}: {line}", phase.argument());
        }
        match done.outcome {
            Outcome::Exited(0) => Ok(()),
            outcome => Err(format!("hook {name} {}: {outcome}", phase.argument())),
        }
    }

    /// The hooks, sorted. As with run-parts(8), names of other characters are not hooks (editors' backups, packages' leftovers).
    fn list(&self) -> Vec<PathBuf> {
        let plain = |name: &str| {
            name.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        if !trusted(&self.directory) {
            return Vec::new();
        }
        let mut list: Vec<PathBuf> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(plain))
            .map(|entry| entry.path())
            .filter(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
            .filter(|path| trusted(path))
            .collect();
        list.sort();
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            fs::create_dir(place.0.path().join("d")).unwrap();
            place
        }

        fn hook(&self, name: &str, mode: u32, script: &str) {
            let path = self.0.path().join("d").join(name);
            let out = self.0.path().join("out");
            let text = format!("#!/bin/sh\necho {name} $1 >>{}\n{script}\n", out.display());
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn hooks(&self) -> Hooks {
            Hooks {
                directory: self.0.path().join("d"),
                limit: Duration::from_secs(5),
            }
        }

        fn out(&self) -> Vec<String> {
            let text = fs::read_to_string(self.0.path().join("out")).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn order_and_names() {
        let place = Place::new();
        place.hook("20-b", 0o755, "");
        place.hook("10-a", 0o755, "");
        place.hook("30-c", 0o644, "");
        place.hook("40-d.dpkg-old", 0o755, "");
        place.hook("50-e", 0o757, "");
        place.hooks().before(None).unwrap();
        place.hooks().after();
        assert_eq!(
            place.out(),
            ["10-a freeze", "20-b freeze", "20-b thaw", "10-a thaw"]
        );
    }

    #[test]
    fn a_failure_calls_the_freeze_off() {
        let place = Place::new();
        place.hook("1", 0o755, "");
        place.hook("2", 0o755, "[ $1 = thaw ] || exit 7");
        place.hook("3", 0o755, "");
        let error = place.hooks().before(None).unwrap_err();
        assert!(error.contains("exit code 7"), "{error}");
        assert_eq!(place.out(), ["1 freeze", "2 freeze", "2 thaw", "1 thaw"]);
    }

    #[test]
    fn a_hook_that_hangs_calls_it_off_in_time() {
        let place = Place::new();
        place.hook("1", 0o755, "[ $1 = thaw ] || sleep 60");
        let hooks = Hooks {
            limit: Duration::from_millis(300),
            ..place.hooks()
        };
        let start = std::time::Instant::now();
        assert!(hooks.before(None).unwrap_err().contains("too long"));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn no_directory_no_hooks() {
        let hooks = Hooks {
            directory: "/nonexistent/backup.d".into(),
            limit: Duration::from_secs(1),
        };
        hooks.before(None).unwrap();
        hooks.after();
    }
}
