// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Changes to the system's network configuration: shown before they are made, undone if they fail.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;

use super::SetError;
use crate::commands::{self, Outcome};
use crate::files;

/// How long the programs of a network manager may take together with the rest: the driver gives a request 30 s.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

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
    /// Run in place of `after` where that fails; they must not fail.
    pub otherwise: Vec<Vec<String>>,
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
        let mut old = Vec::new();
        let result = self.steps(root, &mut old);
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
            for command in self.after.iter().chain(&self.otherwise) {
                let _ = run(command);
            }
        }
        result
    }

    fn steps(
        &self,
        root: &Path,
        old: &mut Vec<(PathBuf, Option<Vec<u8>>, u32)>,
    ) -> Result<(), SetError> {
        for command in &self.before {
            let _ = run(command);
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
        match self.after.iter().try_for_each(|command| run(command)) {
            Err(error) if !self.otherwise.is_empty() => {
                warn!("{error}; trying another way");
                self.otherwise.iter().try_for_each(|command| run(command))
            }
            other => other,
        }
    }
}

fn run(command: &[String]) -> Result<(), SetError> {
    let failed = |why: String| SetError::Command(command.join(" "), why);
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    match commands::run(Path::new(program), arguments, &[], COMMAND_LIMIT, None) {
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
        for command in &self.otherwise {
            writeln!(f, "where that fails, run: {}", command.join(" "))?;
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
    fn there_may_be_another_way() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("etc/x/ours");
        let mut two = plan("/bin/false");
        two.otherwise = vec![command(&["/bin/false"])];
        assert!(two.apply(root.path()).is_err());
        assert!(!file.exists());
        two.otherwise = vec![command(&["/bin/true"])];
        two.apply(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new\n");
        assert!(two
            .to_string()
            .ends_with("where that fails, run: /bin/true\n"));
    }
}
