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
    std::fs::create_dir_all(&ctx.env.logs)?;
    let log = ctx.env.logs.join("unit.log");
    let output = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    if ctx.full {
        // Read by proptest: ten times its default number of cases.
        command.env("PROPTEST_CASES", "2560");
    }
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
    ctx.counts(counts.passed, counts.failed, counts.ignored);
    if status.success() && counts.passed > 0 {
        return Ok(());
    }
    if counts.failed == 0 {
        // It did not compile, or a test program died: one failure, for it has no count of its own.
        ctx.counts(counts.passed, 1, counts.ignored);
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
            .map(|name| format!("failed: {name}\n"))
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
