// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Suite `unit`: the native tests of the workspace.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::runner::{Ctx, Scenario};

/// The one test of the suite, which runs many.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new(
        "cargo-test",
        "all native tests of the workspace (cargo test --workspace)",
        cargo_test,
    )]
}

fn cargo_test(ctx: &Ctx) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    if ctx.full {
        // Read by proptest: ten times its default number of cases.
        command.env("PROPTEST_CASES", "2560");
    }
    let mut counts = Counts::default();
    let mut result = run(ctx, command, "unit.log", &mut counts);
    if ctx.full && result.is_ok() {
        result = run(ctx, loom(ctx), "loom.log", &mut counts);
    }
    ctx.counts(counts.passed, counts.failed, counts.ignored);
    result
}

/// The ring's barriers under every interleaving. Only with `--full`: it compiles for minutes, and what it
/// tests changes rarely.
fn loom(ctx: &Ctx) -> Command {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--release", "-p", "vmbus-proto"]);
    command.args(["--test", "loom"]);
    command.env("RUSTFLAGS", "--cfg loom");
    // Other flags, other objects: in the usual directory the two builds would undo each other.
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| ctx.env.source.join("target"), std::path::PathBuf::from);
    command.env("CARGO_TARGET_DIR", target.join("loom"));
    command
}

/// Runs a `cargo test` and adds its results to `total`.
fn run(ctx: &Ctx, mut command: Command, log: &str, total: &mut Counts) -> Result<()> {
    std::fs::create_dir_all(&ctx.env.logs)?;
    let log = ctx.env.logs.join(log);
    let output = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut child = command
        .current_dir(&ctx.env.source)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(output.try_clone()?)
        .spawn()
        .context("cargo")?;
    let stdout = child.stdout.take().context("cargo's output")?;
    let mut counts = Counts::default();
    let mut log_file = output;
    for line in BufReader::new(stdout).lines() {
        use std::io::Write;
        let line = line?;
        writeln!(log_file, "{line}")?;
        counts.add(&line);
    }
    let status = child.wait()?;
    let good = status.success() && counts.passed > 0;
    if !good && counts.failed == 0 {
        // It did not compile, or a test program died: one failure, for it has no count of its own.
        counts.failed = 1;
    }
    total.passed += counts.passed;
    total.failed += counts.failed;
    total.ignored += counts.ignored;
    if good {
        return Ok(());
    }
    bail!(
        "cargo test: {status}\n{}logs: {}",
        counts.failures(),
        log.display()
    )
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
    names: Vec<String>,
}

impl Counts {
    /// Takes in a line of libtest's output: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.names.push(name.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let Some((_, numbers)) = result.split_once(". ") else {
            return;
        };
        for part in numbers.split("; ") {
            let Some((number, word)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<usize>() else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn failures(&self) -> String {
        self.names
            .iter()
            .flat_map(|name| ["failed: ", name.as_str(), "\n"])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn results_of_libtest_are_added_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test ring::wraps ... ok",
            "test ring::full ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            counts.add(line);
        }
        assert_eq!((counts.passed, counts.failed, counts.ignored), (42, 1, 2));
        assert_eq!(counts.failures(), "failed: ring::full\n");
    }
}
