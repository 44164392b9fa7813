// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Changes to the system's network configuration: shown before they are made, undone if they fail.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::warn;

use super::SetError;
use crate::commands::{self, Outcome};
use crate::files;

/// How long all programs of a change may take together. The driver gives a request 30 s; after each of the two limits a program has 2 s
/// to end when it is told so (`commands::run`).
const LIMIT: Duration = Duration::from_secs(18);
/// How long they may take, counted from the same moment, when a change that failed is taken back.
const LIMIT_BACK: Duration = Duration::from_secs(25);

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Absolute path. The file is ours alone: it is replaced as a whole.
    pub path: PathBuf,
    /// Permissions.
    pub mode: u32,
    /// New contents.
    pub contents: String,
}

/// What to do, in order: commands, files, commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Run before; they may fail (taking down an interface that is down).
    pub before: Vec<Vec<String>>,
    /// Files to write.
    pub changes: Vec<Change>,
    /// Run after; they must not fail.
    pub after: Vec<Vec<String>>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Makes the changes below `root`, and undoes those to files if one fails.
    ///
    /// # Errors
    ///
    /// [`SetError::File`], [`SetError::Command`].
    pub fn apply(&self, root: &Path) -> Result<(), SetError> {
        self.apply_within(root, LIMIT, LIMIT_BACK)
    }

    fn apply_within(
        &self,
        root: &Path,
        limit: Duration,
        limit_back: Duration,
    ) -> Result<(), SetError> {
        let begin = Instant::now();
        let mut old = Vec::new();
        let result = self.steps(root, &mut old, begin + limit);
        if result.is_err() {
            let undone = old
                .into_iter()
                .rev()
                .map(|(path, contents, mode)| match contents {
                    Some(contents) => files::replace(&path, &contents, mode),
                    None => fs::remove_file(&path),
                });
            for error in undone.filter_map(Result::err) {
                warn!("cannot undo a change: {error}");
            }
            // Back to what the files say, as far as that goes.
            for command in &self.after {
                if let Err(error) = run(command, begin + limit_back) {
                    warn!("while undoing: {error}");
                }
            }
        }
        result
    }

    fn steps(
        &self,
        root: &Path,
        old: &mut Vec<(PathBuf, Option<Vec<u8>>, u32)>,
        deadline: Instant,
    ) -> Result<(), SetError> {
        for command in &self.before {
            let _ = run(command, deadline);
        }
        for change in &self.changes {
            let path = root.join(change.path.strip_prefix("/").unwrap_or(&change.path));
            let failed = |error: io::Error| SetError::File(path.clone(), error);
            let before = match fs::read(&path) {
                Ok(contents) => Some(contents),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(failed(error)),
            };
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(failed)?;
            }
            old.push((path.clone(), before, change.mode));
            files::replace(&path, change.contents.as_bytes(), change.mode).map_err(failed)?;
        }
        self.after
            .iter()
            .try_for_each(|command| run(command, deadline))
    }
}

fn run(command: &[String], deadline: Instant) -> Result<(), SetError> {
    let failed = |why: String| SetError::Command(command.join(" "), why);
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(failed("no time is left for it".into()));
    }
    match commands::run(Path::new(program), arguments, &[], left, None) {
        Ok(done) => match done.outcome {
            Outcome::Exited(0) => Ok(()),
            outcome => Err(failed(format!("{outcome}: {}", done.last_line()))),
        },
        Err(error) => Err(failed(error.to_string())),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in &self.before {
            writeln!(f, "run: {}", command.join(" "))?;
        }
        for change in &self.changes {
            writeln!(
                f,
                "write {} (mode {:04o}):",
                change.path.display(),
                change.mode
            )?;
            for line in change.contents.lines() {
                writeln!(f, "  {line}")?;
            }
        }
        for command in &self.after {
            writeln!(f, "run: {}", command.join(" "))?;
        }
        Ok(())
    }
}

/// A command from its words.
pub(super) fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(after: &str) -> Plan {
        Plan {
            changes: vec![Change {
                path: "/etc/x/ours".into(),
                mode: 0o600,
                contents: "new\n".into(),
            }],
            after: vec![command(&[after])],
            ..Plan::default()
        }
    }

    #[test]
    fn a_failing_command_undoes_files() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("etc/x/ours");
        assert!(plan("/bin/false").apply(root.path()).is_err());
        assert!(!file.exists());
        plan("/bin/true").apply(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new\n");
        fs::write(&file, "old\n").unwrap();
        assert!(plan("/bin/false").apply(root.path()).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "old\n");
        assert!(plan("/nonexistent").apply(root.path()).is_err());
    }

    #[test]
    fn all_commands_share_one_limit() {
        let root = tempfile::tempdir().unwrap();
        let sleep = |seconds: &str| command(&["/bin/sleep", seconds]);
        let slow = Plan {
            before: vec![sleep("0.5")],
            after: vec![sleep("0.5"), sleep("60"), sleep("60")],
            ..plan("")
        };
        let begin = Instant::now();
        let error = slow
            .apply_within(root.path(), Duration::from_secs(2), Duration::from_secs(3))
            .unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(error.to_string().contains("sleep 60"), "{error}");
        assert!(error.to_string().contains("took too long"), "{error}");
        assert!(!root.path().join("etc/x/ours").exists());
    }
}
