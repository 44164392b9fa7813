// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Proof that the tests bite: each patch in `kunit/mutants/` breaks the sources in one way, and the test that should notice
//! must fail, with the words that it should fail with.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{anyhow, bail, ensure, Context, Result};

use crate::env::TempDir;
use crate::runner::{Ctx, Scenario, Skip, Suite};
use crate::Env;

/// A patch, and what its head says.
struct Mutant {
    name: &'static str,
    text: &'static str,
}

macro_rules! mutants {
    ($($name:literal),* $(,)?) => {
        [$(Mutant {
            name: $name,
            text: include_str!(concat!("../../../kunit/mutants/", $name, ".patch")),
        }),*]
    };
}

const MUTANTS: &[Mutant] = &mutants!["use-after-free", "unchecked-length",];

/// What is copied of the checkout.
const SOURCES: [&str; 12] = [
    "Cargo.lock",
    "Cargo.toml",
    "Kbuild",
    "Makefile",
    "clippy.toml",
    "drivers",
    "guest-tests",
    "host",
    "kunit",
    "third_party",
    "userspace-daemons",
    "vmbus-proto",
];

impl Mutant {
    /// The value of a line `KEY: VALUE` before the diff.
    fn field(&self, key: &str) -> Result<&'static str> {
        self.text
            .lines()
            .take_while(|line| !line.starts_with("---"))
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
            .with_context(|| format!("kunit/mutants/{}.patch says no {key}", self.name))
    }
}

/// One test per patch. `suites` are those that may catch one.
pub fn suite(suites: &[Suite]) -> Suite {
    let scenarios = MUTANTS.iter().map(|mutant| {
        let catcher = mutant.field("Caught-by").map(|name| {
            let all = suites.iter().flat_map(|suite| {
                let named = |scenario: &Scenario| format!("{}::{}", suite.name, scenario.name);
                suite
                    .scenarios
                    .iter()
                    .map(move |scenario| (named(scenario), scenario))
            });
            let found = all.into_iter().find(|(full, _)| full == name);
            (name, found.map(|(_, scenario)| scenario.clone()))
        });
        let about = mutant.field("Subject").unwrap_or("");
        Scenario::new(mutant.name, about, move |ctx: &Ctx| match &catcher {
            Ok((name, catcher)) => caught(ctx, mutant, name, catcher.as_ref()),
            Err(err) => Err(anyhow!("{err:#}")),
        })
    });
    Suite {
        name: "mutants",
        about: "deliberately broken sources are caught by the test that should catch them",
        drivers: crate::Drivers::Rust,
        scenarios: scenarios.collect(),
    }
}

/// Breaks a copy of the sources and runs the test, which must fail.
fn caught(ctx: &Ctx, mutant: &Mutant, name: &str, catcher: Option<&Scenario>) -> Result<()> {
    let copy = TempDir::at(ctx.env.state.join("mutants").join(mutant.name))?;
    let source = copy.path().join("source");
    fs::create_dir(&source)?;
    run(Command::new("cp")
        .arg("-a")
        .args(SOURCES.map(|name| ctx.env.source.join(name)))
        .arg(&source))?;
    let patch = ctx
        .env
        .source
        .join("kunit/mutants")
        .join(format!("{}.patch", mutant.name));
    run(Command::new("busybox")
        .args(["patch", "-p1", "-i"])
        .arg(&patch)
        .current_dir(&source))
    .context("the patch does not fit the sources any more")?;
    let words = mutant.field("With")?;
    // What keeps the broken sources from being built is no catch.
    let outcome = match (name.strip_prefix("native "), catcher) {
        (Some(arguments), _) => {
            run(cargo_test(ctx, &source, arguments).arg("--no-run"))
                .context("the broken sources do not build")?;
            native(cargo_test(ctx, &source, arguments))
        }
        (None, Some(scenario)) => {
            let env = build_modules(ctx, &copy, &source)?;
            scenario.run(&ctx.with_env(&env))
        }
        (None, None) => bail!("there is no test {name}"),
    };
    match outcome {
        Ok(()) => bail!("{name} did not notice: {}", mutant.field("Subject")?),
        Err(err) if err.is::<Skip>() => Err(err),
        Err(err) => {
            let text = format!("{err:#}");
            let found = words.split(" | ").find(|words| text.contains(words));
            let found =
                found.with_context(|| format!("{name} failed, but without {words}: {text}"))?;
            ctx.figure(format!("{name}: {found}"));
            Ok(())
        }
    }
}

/// Native tests of the broken sources; `arguments` are those of `cargo test`.
fn cargo_test(ctx: &Ctx, source: &Path, arguments: &str) -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--locked", "--no-fail-fast"])
        .args(arguments.split_whitespace())
        // One directory for all of them: most of what they build is the same.
        .env("CARGO_TARGET_DIR", ctx.env.state.join("mutants/target"))
        .current_dir(source);
    command
}

fn native(mut tests: Command) -> Result<()> {
    let output = tests.output().context("cargo")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}

/// Builds the modules of the broken sources. Returns where a guest finds them.
fn build_modules(ctx: &Ctx, copy: &TempDir, source: &Path) -> Result<Env> {
    let modules = copy.path().join("modules");
    let words = std::env::var("HV_KMAKE").context("HV_KMAKE is not set")?;
    let kdir = std::env::var("HV_KDIR").context("HV_KDIR is not set")?;
    run(Command::new("make")
        .arg("-C")
        .arg(source)
        .args(words.split_whitespace())
        .arg(format!("KDIR={kdir}"))
        .arg(format!("MO={}", modules.display()))
        .arg("modules"))
    .context("the broken sources do not build")?;
    Ok(Env {
        modules,
        ..ctx.env.clone()
    })
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn every_patch_is_listed_and_says_what_it_must() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kunit/mutants");
        let mut files: Vec<PathBuf> = fs::read_dir(dir)
            .unwrap()
            .map(|item| item.unwrap().path())
            .collect();
        files.sort();
        let mut names: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        names.sort_unstable();
        let stems: Vec<_> = files
            .iter()
            .map(|file| file.file_stem().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(stems, names);
        let suites = crate::scenarios::suites();
        for mutant in MUTANTS {
            mutant.field("Subject").unwrap();
            mutant.field("With").unwrap();
            let name = mutant.field("Caught-by").unwrap();
            let known = name.starts_with("native ")
                || suites.iter().any(|suite| {
                    suite
                        .scenarios
                        .iter()
                        .any(|scenario| format!("{}::{}", suite.name, scenario.name) == name)
                });
            assert!(known, "{name}");
        }
    }
}
