// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Runs tests: chooses them, runs a few at a time, prints what happened.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::console::ran_stale_instruction;
use crate::{Drivers, Env, Vm, VmConfig};

/// What a test does.
type Run = Arc<dyn Fn(&Ctx) -> Result<()> + Send + Sync>;

/// One test.
#[derive(Clone)]
pub struct Scenario {
    /// Short, unique in its suite.
    pub name: String,
    /// One line for `--list`.
    pub about: String,
    /// The stack in the guest, where it is not the suite's.
    pub drivers: Option<Drivers>,
    run: Run,
}

impl Scenario {
    /// A test from a function.
    pub fn new(
        name: &str,
        about: &str,
        run: impl Fn(&Ctx) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            drivers: None,
            run: Arc::new(run),
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// Its own.
    pub fn run(&self, ctx: &Ctx) -> Result<()> {
        (self.run)(ctx)
    }

    /// The same test, but only with `--full`: without, it is skipped and says why.
    #[must_use]
    pub fn only_full(self, reason: &str) -> Self {
        let (run, reason) = (self.run, reason.to_owned());
        Self {
            run: Arc::new(move |ctx| {
                if ctx.full {
                    run(ctx)
                } else {
                    Err(Skip(reason.clone()).into())
                }
            }),
            ..self
        }
    }

    /// The same test for both stacks, as `NAME-rust` and `NAME-c`.
    pub fn both(
        name: &str,
        about: &str,
        run: impl Fn(&Ctx) -> Result<()> + Send + Sync + 'static,
    ) -> [Self; 2] {
        let run: Run = Arc::new(run);
        [Drivers::Rust, Drivers::C].map(|drivers| Self {
            name: format!("{name}-{}", drivers.name()),
            about: format!("{about} ({})", drivers.name()),
            drivers: Some(drivers),
            run: run.clone(),
        })
    }
}

/// Tests that are run together, with one driver stack.
#[derive(Clone)]
pub struct Suite {
    /// As on the command line.
    pub name: &'static str,
    /// One line for `--list`.
    pub about: &'static str,
    /// The stack in the guest.
    pub drivers: Drivers,
    /// Its tests.
    pub scenarios: Vec<Scenario>,
}

impl Suite {
    /// Whether its tests are for the debug kernel rather than the stock one.
    pub fn for_checked_kernel(&self) -> bool {
        matches!(self.name, "debug" | "kunit" | "mutants")
    }
}

/// What a running test knows, and what it hands over besides its result.
pub struct Ctx<'a> {
    /// Paths.
    pub env: &'a Env,
    /// The stack to be tested.
    pub drivers: Drivers,
    /// Full counts instead of those fit for CI.
    pub full: bool,
    suite: &'a str,
    name: &'a str,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    figures: Vec<String>,
    /// Where the guests' logs are, under the directory of all logs.
    guests: Vec<String>,
    counts: Option<(usize, usize, usize)>,
}

impl Ctx<'_> {
    /// The same test, with other paths. It has notes of its own.
    pub fn with_env<'a>(&'a self, env: &'a Env) -> Ctx<'a> {
        Ctx {
            env,
            drivers: self.drivers,
            full: self.full,
            suite: self.suite,
            name: self.name,
            notes: Mutex::default(),
        }
    }

    /// Configuration of a guest for this test.
    pub fn config(&self) -> VmConfig {
        self.config_for("", self.drivers)
    }

    /// Configuration of one of several guests, or one with another stack.
    pub fn config_for(&self, part: &str, drivers: Drivers) -> VmConfig {
        let dash = if part.is_empty() { "" } else { "-" };
        let name = format!("{}/{}{dash}{part}", self.suite, self.name);
        let mut notes = self.notes();
        if !notes.guests.contains(&name) {
            notes.guests.push(name.clone());
        }
        VmConfig::new(&name, drivers)
    }

    /// `full` with `--full`, else `short`.
    pub fn count<T>(&self, full: T, short: T) -> T {
        if self.full {
            full
        } else {
            short
        }
    }

    /// Boots a guest, loads the drivers, runs `test` and then looks whether the host counted a protocol violation
    /// or the console shows trouble. A failure is told with the console's last lines and the place of the logs.
    ///
    /// # Errors
    /// That of the boot, the test, or the look at the end.
    pub fn connected<T>(&self, config: VmConfig, test: impl FnOnce(&Vm) -> Result<T>) -> Result<T> {
        self.booted(config, |vm| {
            vm.load_drivers()?;
            test(vm)
        })
    }

    /// As [`Ctx::connected`], without loading drivers.
    ///
    /// # Errors
    /// See [`Ctx::connected`].
    pub fn booted<T>(&self, config: VmConfig, test: impl FnOnce(&Vm) -> Result<T>) -> Result<T> {
        let vm = Vm::boot(self.env, config)?;
        let run = || {
            let result = test(&vm);
            let console = vm.check_console();
            match (result, console) {
                (Ok(value), Ok(())) => vm.check().map(|()| value),
                (Ok(_), Err(trouble)) => Err(trouble),
                (Err(err), Ok(())) => Err(err),
                (Err(err), Err(trouble)) => Err(anyhow::anyhow!("{err:#}; {trouble:#}")),
            }
        };
        run().map_err(|err: anyhow::Error| {
            if err.is::<Skip>() {
                err
            } else {
                vm.explain(err)
            }
        })
    }

    /// A measured figure, printed with the test's result.
    pub fn figure(&self, text: impl fmt::Display) {
        self.notes().figures.push(text.to_string());
    }

    /// For a test that runs other tests: how many passed, failed and were skipped.
    pub fn counts(&self, passed: usize, failed: usize, skipped: usize) {
        self.notes().counts = Some((passed, failed, skipped));
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error that means: skipped, for this reason.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Full counts.
    pub full: bool,
    /// Only tests whose `suite::name` contains one of these; all when empty.
    pub filter: Vec<String>,
    /// How many tests at a time.
    pub jobs: usize,
}

/// Totals of a run.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Passed tests.
    pub passed: usize,
    /// Failed tests.
    pub failed: usize,
    /// Skipped tests.
    pub skipped: usize,
    /// Names of the failed ones, for the repetition at the end.
    pub failures: Vec<String>,
}

impl Totals {
    /// Adds the totals of an earlier part of the same run, kept in `file` unless this is the first part, and keeps the
    /// sum there. An earlier part that has left none, since it did not come to its end, counts as one failure: the set-up
    /// removes those of an earlier run.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn carry(&mut self, file: &Path, first: bool) -> Result<()> {
        let context = || file.display().to_string();
        if !first {
            let mut earlier: Self = match std::fs::read(file) {
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => Self {
                    failed: 1,
                    failures: vec!["the first part of this run: it did not come to its end".into()],
                    ..Self::default()
                },
                text => {
                    serde_json::from_slice(&text.with_context(context)?).with_context(context)?
                }
            };
            earlier.passed += self.passed;
            earlier.failed += self.failed;
            earlier.skipped += self.skipped;
            earlier.failures.append(&mut self.failures);
            *self = earlier;
        }
        std::fs::write(file, serde_json::to_vec(self)?).with_context(context)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The tests that the filter leaves.
pub fn chosen(suites: &[Suite], filter: &[String]) -> Vec<(Suite, Scenario)> {
    let mut all = Vec::new();
    for suite in suites {
        for scenario in &suite.scenarios {
            let name = format!("{}::{}", suite.name, scenario.name);
            if filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str())) {
                all.push((suite.clone(), scenario.clone()));
            }
        }
    }
    all
}

/// Runs the chosen tests and prints a line for each as it ends.
pub fn run(env: &Env, suites: &[Suite], options: &Options) -> Totals {
    let queue: VecDeque<_> = chosen(suites, &options.filter).into();
    let total = queue.len();
    let queue = Mutex::new(queue);
    let totals = Mutex::new(Totals::default());
    let printed = Mutex::new(0usize);
    let second_runs = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| loop {
                let next = queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some((suite, scenario)) = next else {
                    return;
                };
                let ctx = Ctx {
                    env,
                    drivers: scenario.drivers.unwrap_or(suite.drivers),
                    full: options.full,
                    suite: suite.name,
                    name: &scenario.name,
                    notes: Mutex::default(),
                };
                let begin = Instant::now();
                let mut result = if suite.for_checked_kernel() && !env.checked_kernel {
                    Err(Skip(NEEDS_CHECKS.into()).into())
                } else {
                    run_once(&scenario, &ctx)
                };
                if let (Err(err), Some(logs)) = (&result, stale_guest(&ctx, &second_runs)) {
                    println!(
                        "        {}::{} is run a second time: QEMU ran an instruction no longer in memory, see {}\n    {}",
                        suite.name,
                        scenario.name,
                        logs.display(),
                        format!("{err:#}").replace('\n', "\n    ")
                    );
                    *ctx.notes() = Notes::default();
                    ctx.figure("second run");
                    result = run_once(&scenario, &ctx);
                }
                let took = begin.elapsed();
                let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
                *printed += 1;
                let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                report(
                    &mut totals,
                    &suite,
                    &scenario,
                    &ctx,
                    result,
                    took,
                    (*printed, total),
                );
            });
        }
    });
    totals.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Why a test for the debug kernel does not run on another one.
const NEEDS_CHECKS: &str = "runs on the debug kernel: scripts/test debug, kunit or mutants";

fn run_once(scenario: &Scenario, ctx: &Ctx) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| (scenario.run)(ctx))).unwrap_or_else(|panic| {
        Err(anyhow::anyhow!(
            "the test panicked: {}",
            panic_text(&*panic)
        ))
    })
}

/// How many tests of one run may be run a second time. More would mean that something else is the cause.
const SECOND_RUNS: usize = 3;

/// The logs of the guest of this test, if any, whose kernel died of a fault in QEMU's translator
/// ([`ran_stale_instruction`]), kept aside; `None` when that happened too often in this run.
fn stale_guest(ctx: &Ctx, second_runs: &AtomicUsize) -> Option<PathBuf> {
    let guests = ctx.notes().guests.clone();
    guests.iter().find_map(|name| {
        let logs = ctx.env.logs.join(name);
        let console = std::fs::read(logs.join("console.log")).ok()?;
        if !ran_stale_instruction(&String::from_utf8_lossy(&console))
            || second_runs.fetch_add(1, Ordering::Relaxed) >= SECOND_RUNS
        {
            return None;
        }
        let kept = ctx.env.logs.join(format!("{name}-stale"));
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::rename(&logs, &kept).ok()?;
        Some(kept)
    })
}

fn report(
    totals: &mut Totals,
    suite: &Suite,
    scenario: &Scenario,
    ctx: &Ctx,
    result: Result<()>,
    took: Duration,
    (at, total): (usize, usize),
) {
    let notes = std::mem::take(&mut *ctx.notes());
    let figures = if notes.figures.is_empty() {
        String::new()
    } else {
        format!("  [{}]", notes.figures.join("; "))
    };
    let name = format!("{}::{}", suite.name, scenario.name);
    let (word, more) = match &result {
        Ok(()) => ("ok  ", String::new()),
        Err(err) if err.is::<Skip>() => ("skip", format!("\n    {err:#}")),
        Err(err) => (
            "FAIL",
            format!("\n    {}", format!("{err:#}").replace('\n', "\n    ")),
        ),
    };
    println!(
        "{at:3}/{total} {word} {name} {:.1} s{figures}{more}",
        took.as_secs_f64()
    );
    let (passed, failed, skipped) = match (&result, notes.counts) {
        // Something else failed than the tests that it counted.
        (Err(_), Some((passed, 0, skipped))) => (passed, 1, skipped),
        (_, Some(counts)) => counts,
        (Ok(()), None) => (1, 0, 0),
        (Err(err), None) if err.is::<Skip>() => (0, 0, 1),
        (Err(_), None) => (0, 1, 0),
    };
    totals.passed += passed;
    totals.failed += failed;
    totals.skipped += skipped;
    if failed > 0 {
        totals.failures.push(name);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// Turns `false` into an error.
///
/// # Errors
/// The sentence, when `condition` is false.
pub fn ensure(condition: bool, sentence: impl fmt::Display) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(anyhow::anyhow!("{sentence}"))
    }
}

/// Fails unless both are equal.
///
/// # Errors
/// `what`, the value found and the one expected.
pub fn equal<T: PartialEq + fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    ensure(
        found == expected,
        format!("{what}: {found:?}, expected {expected:?}"),
    )
}

/// Removes the logs of earlier runs of these suites.
///
/// # Errors
/// When they cannot be removed.
pub fn clean_logs(env: &Env, tests: &[(Suite, Scenario)]) -> Result<()> {
    for (suite, scenario) in tests {
        let dir = env.logs.join(suite.name);
        let Ok(items) = std::fs::read_dir(&dir) else {
            continue;
        };
        for item in items.flatten() {
            let name = item.file_name().to_string_lossy().into_owned();
            let mine = name == scenario.name
                || name
                    .strip_prefix(&scenario.name)
                    .is_some_and(|rest| rest.starts_with('-'));
            if mine {
                let path = item.path();
                std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        let none = std::path::PathBuf::new;
        Env {
            qemu: none(),
            kernel: none(),
            base: none(),
            agent: none(),
            plugin: none(),
            ssdt: none(),
            modules: none(),
            logs: none(),
            state: none(),
            debian: None,
            postgres: None,
            installed: None,
            source: none(),
            checked_kernel: false,
        }
    }

    fn suite() -> Suite {
        Suite {
            name: "self",
            about: "",
            drivers: Drivers::None,
            scenarios: vec![
                Scenario::new("good", "", |_| Ok(())),
                Scenario::new("bad", "", |_| equal("sum", 1 + 1, 3)),
                Scenario::new("odd", "", |_| Err(Skip("no such machine".into()).into())),
                Scenario::new("worse", "", |_| panic!("on purpose")),
                Scenario::new("many", "", |ctx| {
                    ctx.counts(7, 1, 2);
                    Ok(())
                }),
                Scenario::new("many-and-bad", "", |ctx| {
                    ctx.counts(3, 0, 0);
                    Err(anyhow::anyhow!("none of the last ten began"))
                }),
            ],
        }
    }

    fn options(filter: &[&str]) -> Options {
        Options {
            full: false,
            filter: filter.iter().map(|&f| f.to_owned()).collect(),
            jobs: 2,
        }
    }

    #[test]
    fn every_outcome_is_counted() {
        let totals = run(&env(), &[suite()], &options(&[]));
        assert_eq!(totals.to_string(), "11 passed, 4 failed, 3 skipped");
        assert_eq!(totals.failures.len(), 4);
    }

    #[test]
    fn a_guest_that_qemu_failed_is_started_again_once() {
        let mut env = env();
        env.logs = std::env::temp_dir().join(format!("hv-runner-test-{}", std::process::id()));
        let run_with = |code: &'static str| {
            let tries = Arc::new(AtomicUsize::new(0));
            let seen = tries.clone();
            let test = Scenario::new("oops", "", move |ctx| {
                let logs = ctx.env.logs.join(&ctx.config().name);
                std::fs::create_dir_all(&logs)?;
                let text = format!(
                    "[ 2.3] Oops: int3: 0000 [#1] SMP\n[ 2.3] RIP: 0010:f+0x1/0x2\n[ 2.3] Code: {code}\n"
                );
                std::fs::write(logs.join("console.log"), text)?;
                ensure(seen.fetch_add(1, Ordering::SeqCst) > 0, "the guest died")
            });
            let mut suite = suite();
            suite.scenarios = vec![test];
            let totals = run(&env, &[suite], &options(&[]));
            std::fs::remove_dir_all(&env.logs).unwrap();
            (totals.failed, tries.load(Ordering::SeqCst))
        };
        assert_eq!(run_with("6d 0f <1f> 44"), (0, 2));
        assert_eq!(run_with("6d cc <cc> cc"), (1, 1));
    }

    #[test]
    fn totals_of_parts_add_up() {
        let file = std::env::temp_dir().join(format!("hv-totals-test-{}", std::process::id()));
        let mut first = run(&env(), &[suite()], &options(&[]));
        first.carry(&file, true).unwrap();
        let mut second = run(&env(), &[suite()], &options(&["self::bad"]));
        second.carry(&file, false).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(second.to_string(), "11 passed, 5 failed, 3 skipped");
        assert_eq!(second.failures.len(), 5);
        // The first part was ended before its end.
        let mut alone = run(&env(), &[suite()], &options(&["self::good"]));
        alone.carry(&file, false).unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(alone.to_string(), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn the_filter_chooses() {
        let totals = run(&env(), &[suite()], &options(&["self::good"]));
        assert_eq!(totals.to_string(), "1 passed, 0 failed, 0 skipped");
    }
}
