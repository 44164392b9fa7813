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

/// A program that runs in a unit of its own is told to end so much before its time is up, so that we hear of it.
const MARGIN: Duration = Duration::from_secs(3);

/// A program, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name and arguments.
    pub words: Vec<String>,
    /// Where systemd is, run in a unit of its own: what the program leaves behind is neither confined as we are nor ends with us.
    pub apart: bool,
}

impl Program {
    /// What to run so that all ends after `left`.
    ///
    /// Who ends systemd-run(1) does not end the unit, and the unit's own limits do not reach what its first process has started
    /// (`KillMode=process`, without which a DHCP client would end with ifup). timeout(1) ends a process group, as [`commands::run`] does.
    fn within(&self, left: Duration) -> Vec<String> {
        if !self.apart {
            return self.words.clone();
        }
        let limit = left.saturating_sub(MARGIN).max(Duration::from_millis(100));
        let limit = format!("{:.1}", limit.as_secs_f64());
        let mut words = command(&APART);
        words.extend(command(&["timeout", "--kill-after=2", &limit]));
        words.extend(self.words.iter().cloned());
        words
    }
}

/// Before a program that is run in a unit of its own.
const APART: [&str; 5] = [
    "systemd-run",
    "--quiet",
    "--collect",
    "--wait",
    "--property=KillMode=process",
];

/// Exit codes of timeout(1) after its SIGTERM and after its SIGKILL.
const TIMED_OUT: [i32; 2] = [124, 137];

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))?;
        if self.apart {
            f.write_str(" (in a unit of its own)")?;
        }
        Ok(())
    }
}

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
    pub before: Vec<Program>,
    /// Files to write.
    pub changes: Vec<Change>,
    /// Run after; they must not fail.
    pub after: Vec<Program>,
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

fn run(program: &Program, deadline: Instant) -> Result<(), SetError> {
    let failed = |why: String| SetError::Command(program.to_string(), why);
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(failed("no time is left for it".into()));
    }
    let words = program.within(left);
    let Some((first, arguments)) = words.split_first() else {
        return Ok(());
    };
    match commands::run(Path::new(first), arguments, &[], left, None) {
        Ok(done) => match done.outcome {
            Outcome::Exited(0) => Ok(()),
            Outcome::Exited(code) if program.apart && TIMED_OUT.contains(&code) => Err(failed(
                format!("{}: {}", Outcome::TimedOut, done.last_line()),
            )),
            outcome => Err(failed(format!("{outcome}: {}", done.last_line()))),
        },
        Err(error) => Err(failed(error.to_string())),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in &self.before {
            writeln!(f, "run: {command}")?;
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
            writeln!(f, "run: {command}")?;
        }
        Ok(())
    }
}

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// A program from its words.
pub(super) fn program(words: &[&str]) -> Program {
    Program {
        words: command(words),
        apart: false,
    }
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
            after: vec![program(&[after])],
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
        let sleep = |seconds: &str| program(&["/bin/sleep", seconds]);
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

    #[test]
    fn what_runs_apart_ends_in_time_by_itself() {
        // Stays when what waits for it is killed, as a unit does.
        let stubborn = Program {
            words: command(&["/bin/sh", "-c", "sleep 60; :"]),
            apart: true,
        };
        let words = stubborn.within(Duration::from_millis(3500));
        assert_eq!(words[..APART.len()], APART);
        let (own, arguments) = words[APART.len()..].split_first().unwrap();
        let begin = Instant::now();
        let limit = Duration::from_secs(40);
        let done = commands::run(Path::new(own), arguments, &[], limit, None).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30));
        let Outcome::Exited(code) = done.outcome else {
            panic!("{:?}", done.outcome);
        };
        assert!(TIMED_OUT.contains(&code), "{code}");
        assert_eq!(program(&["x"]).within(limit), ["x"]);
    }
}
