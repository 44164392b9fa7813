// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Medians, ratios, the table and the JSON of a measurement.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::Stack;

/// Values by name of one workload in one run.
pub type Values = BTreeMap<&'static str, f64>;

/// One run of one workload on one stack.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What was measured.
    pub workload: &'static str,
    /// On what.
    pub stack: Stack,
    /// In which run, from 1.
    pub run: u32,
    /// The figures.
    pub values: Values,
    /// Instructions per operation by function, the most costly of driver and bus first.
    pub functions: Vec<(String, f64)>,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the suite.
    pub suite: &'static str,
    /// `uname -r` of the guests.
    pub kernel: String,
    /// Rows of the table: workload, what one operation is.
    pub workloads: Vec<(&'static str, &'static str)>,
    /// Columns: name of a value, digits behind the point.
    pub metrics: Vec<(&'static str, usize)>,
    /// In the order in which they were taken.
    pub samples: Vec<Sample>,
}

/// The middle value, or the mean of the two in the middle. `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    let upper = *all.get(middle)?;
    Some(if all.len() % 2 == 1 {
        upper
    } else {
        (all[middle - 1] + upper) / 2.0
    })
}

impl Report {
    fn values(&self, workload: &str, stack: Stack, metric: &str) -> Vec<f64> {
        self.samples
            .iter()
            .filter(|s| s.workload == workload && s.stack == stack)
            .filter_map(|s| s.values.get(metric).copied())
            .collect()
    }

    /// Median over the runs.
    pub fn median(&self, workload: &str, stack: Stack, metric: &str) -> Option<f64> {
        median(self.values(workload, stack, metric))
    }

    /// Median of one stack divided by that of another. `None` when either is missing or zero.
    pub fn ratio(&self, workload: &str, metric: &str, over: Stack, under: Stack) -> Option<f64> {
        let (a, b) = (
            self.median(workload, over, metric)?,
            self.median(workload, under, metric)?,
        );
        (b > 0.0).then_some(a / b)
    }

    fn runs(&self) -> u32 {
        self.samples.iter().map(|s| s.run).max().unwrap_or(0)
    }

    /// The table for people, in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: guest kernel {}, medians of {} alternating runs\n",
            self.suite,
            self.kernel,
            self.runs()
        );
        for (workload, unit) in &self.workloads {
            let _ = writeln!(text, "\n{workload}, per {unit}\n");
            let _ = writeln!(
                text,
                "| {:24} | {:>10} | {:>10} | {:>10} | {:>6} | {:>11} |",
                "", "rust", "c", "virtio", "rust/c", "rust/virtio"
            );
            let _ = writeln!(
                text,
                "| {:-<24} | {:->9}: | {:->9}: | {:->9}: | {:->5}: | {:->10}: |",
                "", "", "", "", "", ""
            );
            for (metric, digits) in &self.metrics {
                let cell = |stack| {
                    self.median(workload, stack, metric)
                        .map_or("–".to_owned(), |v| format!("{v:.digits$}"))
                };
                let ratio = |under| {
                    self.ratio(workload, metric, Stack::Rust, under)
                        .map_or("–".to_owned(), |v| format!("{v:.2}"))
                };
                let _ = writeln!(
                    text,
                    "| {metric:24} | {:>10} | {:>10} | {:>10} | {:>6} | {:>11} |",
                    cell(Stack::Rust),
                    cell(Stack::C),
                    cell(Stack::Virtio),
                    ratio(Stack::C),
                    ratio(Stack::Virtio)
                );
            }
        }
        text
    }

    /// The most costly functions of driver and bus, medians over the runs.
    pub fn function_table(&self, rows: usize) -> String {
        let mut text = String::new();
        for (workload, unit) in &self.workloads {
            for stack in Stack::ALL {
                let samples: Vec<_> = self
                    .samples
                    .iter()
                    .filter(|s| s.workload == *workload && s.stack == stack)
                    .collect();
                let names: BTreeSet<&str> = samples
                    .iter()
                    .flat_map(|s| s.functions.iter().map(|(name, _)| name.as_str()))
                    .collect();
                let mut list: Vec<(&str, f64)> = names
                    .into_iter()
                    .filter_map(|name| {
                        let each = samples.iter().map(|s| {
                            let found = s.functions.iter().find(|(n, _)| n == name);
                            found.map_or(0.0, |(_, count)| *count)
                        });
                        Some((name, median(each)?))
                    })
                    .collect();
                list.sort_by(|a, b| b.1.total_cmp(&a.1));
                if list.is_empty() {
                    continue;
                }
                let _ = writeln!(text, "\n{workload}, {stack}: instructions per {unit}");
                for (name, count) in list.into_iter().take(rows) {
                    let _ = writeln!(text, "{count:>10.1}  {name}");
                }
            }
        }
        text
    }

    /// Everything, for programs.
    pub fn json(&self) -> Value {
        let mut medians = BTreeMap::new();
        for (workload, _) in &self.workloads {
            let mut by_stack = BTreeMap::new();
            for stack in Stack::ALL {
                let values: BTreeMap<_, _> = self
                    .metrics
                    .iter()
                    .filter_map(|(m, _)| Some((*m, self.median(workload, stack, m)?)))
                    .collect();
                by_stack.insert(stack.to_string(), values);
            }
            medians.insert(*workload, by_stack);
        }
        let samples: Vec<Value> = self
            .samples
            .iter()
            .map(|s| {
                json!({
                    "workload": s.workload,
                    "stack": s.stack.to_string(),
                    "run": s.run,
                    "values": s.values,
                    "functions": s.functions,
                })
            })
            .collect();
        json!({
            "suite": self.suite,
            "kernel": self.kernel,
            "runs": self.runs(),
            "medians": medians,
            "samples": samples,
        })
    }

    /// Writes `SUITE-SECONDS.json` and `.md` below `dir` and gives the path without its ending.
    ///
    /// # Errors
    /// The file that cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let path = dir.join(format!("{}-{seconds}", self.suite));
        let write = |ending: &str, text: String| {
            let path = path.with_extension(ending);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("json", serde_json::to_string_pretty(&self.json())?)?;
        write("md", self.table() + &self.function_table(40))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(values: &[(Stack, u32, f64)]) -> Report {
        Report {
            suite: "storage",
            kernel: "7.3".into(),
            workloads: vec![("read", "I/O")],
            metrics: vec![("driver", 0)],
            samples: values
                .iter()
                .map(|(stack, run, value)| Sample {
                    workload: "read",
                    stack: *stack,
                    run: *run,
                    values: [("driver", *value)].into(),
                    functions: vec![("f".into(), *value)],
                })
                .collect(),
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([1.0, 2.0, 4.0, 100.0]), Some(3.0));
    }

    #[test]
    fn one_odd_run_does_not_count() {
        use Stack::{Rust, C};
        let report = report(&[
            (Rust, 1, 300.0),
            (C, 1, 1000.0),
            (Rust, 2, 9999.0),
            (C, 2, 1000.0),
            (Rust, 3, 310.0),
            (C, 3, 990.0),
        ]);
        assert_eq!(report.median("read", Rust, "driver"), Some(310.0));
        assert_eq!(report.ratio("read", "driver", Rust, C), Some(0.31));
        assert_eq!(report.ratio("read", "driver", Rust, Stack::Virtio), None);
        let table = report.table();
        assert!(table.contains("medians of 3"), "{table}");
        assert!(
            table.contains("|        310 |       1000 |          – |   0.31 |"),
            "{table}"
        );
        assert!(report.function_table(9).contains("310.0  f"));
        assert_eq!(report.json()["medians"]["read"]["c"]["driver"], 1000.0);
    }
}
