// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Reads what KUnit writes to the kernel's log: KTAP, the kernel's Test Anything Protocol
//! (Documentation/dev-tools/ktap.rst), of suites that hold cases.

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`
    Passed,
    /// `not ok`, with what was printed since the case before.
    Failed(Vec<String>),
    /// `ok` with `# SKIP`, and the reason.
    Skipped(String),
}

/// One test case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The suite that it belongs to.
    pub suite: String,
    /// Its name in the suite.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// What the lines of a kernel log tell of test cases.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// The cases, in the order in which they ended.
    pub cases: Vec<Case>,
    /// Suites that have begun and not ended, or ended with fewer cases than they announced.
    pub broken: Vec<String>,
}

struct Running {
    name: String,
    announced: Option<usize>,
    ended: usize,
    words: Vec<String>,
}

/// Takes the results out of the lines of a kernel log. Lines that are not KTAP are kept only to explain a failure.
pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Report {
    let mut report = Report::default();
    let mut running: Option<Running> = None;
    for line in lines {
        let text = match line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "))
        {
            Some((_, text)) => text,
            None => line,
        };
        let inner = text.trim_start();
        if let Some(name) = inner.strip_prefix("# Subtest: ") {
            if let Some(before) = running.take() {
                report.broken.push(before.name);
            }
            running = Some(Running {
                name: name.trim().into(),
                announced: None,
                ended: 0,
                words: Vec::new(),
            });
            continue;
        }
        let Some(suite) = &mut running else {
            continue;
        };
        if let Some(count) = inner.strip_prefix("1..") {
            suite.announced = count.trim().parse().ok();
            continue;
        }
        match (result(inner), inner.len() < text.len()) {
            (Some((good, name, skip)), true) => {
                let words = std::mem::take(&mut suite.words);
                suite.ended += 1;
                report.cases.push(Case {
                    suite: suite.name.clone(),
                    name: name.into(),
                    outcome: match (good, skip) {
                        (true, Some(reason)) => Outcome::Skipped(reason.into()),
                        (true, None) => Outcome::Passed,
                        (false, _) => Outcome::Failed(words),
                    },
                });
            }
            // The suite's own line.
            (Some((_, name, _)), false) if name == suite.name => {
                if suite.announced != Some(suite.ended) {
                    report.broken.push(suite.name.clone());
                }
                running = None;
            }
            _ => suite.words.push(text.to_owned()),
        }
    }
    report.broken.extend(running.map(|suite| suite.name));
    report
}

/// `ok 3 name # SKIP reason`: whether ok, name, reason.
fn result(text: &str) -> Option<(bool, &str, Option<&str>)> {
    let (good, rest) = match text.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let (name, comment) = match rest.split_once(" #") {
        Some((name, comment)) => (name, Some(comment.trim())),
        None => (rest, None),
    };
    let skip = comment
        .and_then(|comment| comment.strip_prefix("SKIP"))
        .map(str::trim);
    Some((good, name.trim().trim_start_matches("- "), skip))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    5.0] hv_vmbus_rs: loading out-of-tree module taints kernel.
[    5.1] KTAP version 1
[    5.1] 1..2
[    5.1]     KTAP version 1
[    5.1]     # Subtest: first
[    5.1]     # module: hv_vmbus_rs
[    5.1]     1..3
[    5.2]     ok 1 one
[    5.2]     # two: ASSERTION FAILED at kunit/vmbus.rs:12
[    5.2]     Expected 1 + 1 == 3 to be true, but is false
[    5.2]     not ok 2 two
[    5.2] vmbus: registering driver hv_x
[    5.3]     ok 3 three # SKIP no such machine
[    5.3] # first: pass:1 fail:1 skip:1 total:3
[    5.3] not ok 1 first
[    5.3]     KTAP version 1
[    5.3]     # Subtest: second
[    5.3]     1..2
[    5.4]     ok 1 - four
";

    #[test]
    fn outcomes_are_told_apart() {
        let report = parse(LOG.lines());
        let names: Vec<_> = report.cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["one", "two", "three", "four"]);
        assert_eq!(report.cases[0].outcome, Outcome::Passed);
        let Outcome::Failed(words) = &report.cases[1].outcome else {
            panic!("{:?}", report.cases[1]);
        };
        assert!(words[0].contains("kunit/vmbus.rs:12"), "{words:?}");
        assert_eq!(
            report.cases[2].outcome,
            Outcome::Skipped("no such machine".into())
        );
        assert_eq!(report.cases[3].suite, "second");
    }

    #[test]
    fn a_suite_that_does_not_end_is_broken() {
        assert_eq!(parse(LOG.lines()).broken, ["second"]);
        let short = LOG.replace("1..3", "1..4");
        assert_eq!(parse(short.lines()).broken, ["first", "second"]);
        assert_eq!(parse(["nothing of the kind"]), Report::default());
    }
}
