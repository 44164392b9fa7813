// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Instruction counts with names: the answer to `profile-read` put together with the guest's
//! `/proc/kallsyms`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The module name of code that is part of the kernel image.
pub const KERNEL: &str = "vmlinux";
/// The module name of code in the lower half of the address space.
pub const USER: &str = "user";
/// The module name of code in front of the first symbol.
pub const UNKNOWN: &str = "unknown";

/// The answer to `profile-read`: guest instructions begun since the mark, by the address of the
/// first instruction of the block (a straight run of code up to a jump) that they are part of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileCounts {
    /// All instructions.
    pub total: u64,
    /// Address in hexadecimal with `0x`, and count, by ascending address; addresses without a count
    /// are left out.
    pub blocks: Vec<(String, u64)>,
}

/// Why counts and symbols could not be put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// A line of kallsyms is not `ADDRESS TYPE NAME [MODULE]`.
    #[error("line {0} of kallsyms is not \"ADDRESS TYPE NAME\"")]
    Line(usize),
    /// All addresses are zero: the reader was not root in the guest, or kptr_restrict hides them.
    #[error("kallsyms has no addresses: read it as root with kernel.kptr_restrict=0 or 1")]
    Hidden,
    /// An address of the counts is not hexadecimal.
    #[error("count at {0:?}: not an address")]
    Address(String),
}

/// Where the functions of a guest's kernel and modules are.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// Start, name, module; by ascending start, one per start.
    functions: Vec<(u64, String, String)>,
}

impl Symbols {
    /// Reads the text of `/proc/kallsyms`. Data symbols are left out; of several names for one
    /// address a global one wins, then the first.
    ///
    /// # Errors
    /// [`ProfileError::Line`], [`ProfileError::Hidden`].
    pub fn parse(kallsyms: &str) -> Result<Self, ProfileError> {
        let mut functions: BTreeMap<u64, (bool, &str, &str)> = BTreeMap::new();
        for (number, line) in kallsyms.lines().enumerate() {
            let mut words = line.split_whitespace();
            let fields = (words.next(), words.next(), words.next());
            let (Some(address), Some(kind), Some(name)) = fields else {
                return Err(ProfileError::Line(number + 1));
            };
            let address =
                u64::from_str_radix(address, 16).map_err(|_| ProfileError::Line(number + 1))?;
            let module = words
                .next()
                .map_or(KERNEL, |word| word.trim_matches(['[', ']']));
            if !matches!(kind, "t" | "T" | "w" | "W") {
                continue;
            }
            let global = kind == "T";
            functions
                .entry(address)
                .and_modify(|best| {
                    if global && !best.0 {
                        *best = (global, name, module);
                    }
                })
                .or_insert((global, name, module));
        }
        if functions.keys().all(|address| *address == 0) && !kallsyms.is_empty() {
            return Err(ProfileError::Hidden);
        }
        let functions = functions
            .into_iter()
            .map(|(start, (_, name, module))| (start, demangle(name), module.to_owned()))
            .collect();
        Ok(Self { functions })
    }

    /// Function and module at `address`.
    pub fn at(&self, address: u64) -> (&str, &str) {
        if address >> 63 == 0 {
            return (USER, USER);
        }
        match self
            .functions
            .partition_point(|(start, ..)| *start <= address)
            .checked_sub(1)
        {
            Some(index) => (&self.functions[index].1, &self.functions[index].2),
            None => (UNKNOWN, UNKNOWN),
        }
    }

    /// Sums counts up.
    ///
    /// # Errors
    /// [`ProfileError::Address`].
    pub fn report(&self, counts: &ProfileCounts) -> Result<Report, ProfileError> {
        let mut report = Report {
            total: counts.total,
            ..Report::default()
        };
        for (text, count) in &counts.blocks {
            let address = text
                .strip_prefix("0x")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let (function, module) =
                self.at(address.ok_or_else(|| ProfileError::Address(text.clone()))?);
            *report.modules.entry(module.to_owned()).or_default() += count;
            *report
                .functions
                .entry((module.to_owned(), function.to_owned()))
                .or_default() += count;
        }
        Ok(report)
    }
}

/// A Rust symbol as people write it, without its hash; others as they are.
fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Instructions per module and per function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// All instructions.
    pub total: u64,
    /// By module: [`KERNEL`], [`USER`], [`UNKNOWN`] or the name of a loaded module.
    pub modules: BTreeMap<String, u64>,
    /// By module and function.
    pub functions: BTreeMap<(String, String), u64>,
}

impl Report {
    /// Instructions of a module.
    pub fn module(&self, name: &str) -> u64 {
        self.modules.get(name).copied().unwrap_or(0)
    }

    /// Instructions of all functions of that name, in whatever module.
    pub fn function(&self, name: &str) -> u64 {
        self.functions
            .iter()
            .filter(|((_, function), _)| function == name)
            .map(|(_, count)| count)
            .sum()
    }

    /// This report less another, for the difference of two runs.
    #[must_use]
    pub fn minus(&self, other: &Self) -> BTreeMap<(String, String), i64> {
        let mut difference: BTreeMap<_, i64> = BTreeMap::new();
        for (sign, report) in [(1, self), (-1, other)] {
            for (key, count) in &report.functions {
                *difference.entry(key.clone()).or_default() += sign * *count as i64;
            }
        }
        difference.retain(|_, count| *count != 0);
        difference
    }

    /// The `rows` most costly functions, with their modules.
    pub fn top(&self, rows: usize) -> Vec<(&str, &str, u64)> {
        let mut list: Vec<_> = self
            .functions
            .iter()
            .map(|((m, f), count)| (m.as_str(), f.as_str(), *count))
            .collect();
        list.sort_by(|a, b| b.2.cmp(&a.2).then(a.cmp(b)));
        list.truncate(rows);
        list
    }
}

/// A table of modules, then one of the forty most costly functions.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>14}  module", "instructions")?;
        let mut modules: Vec<_> = self.modules.iter().collect();
        modules.sort_by(|a, b| b.1.cmp(a.1).then(a.cmp(b)));
        for (module, count) in modules {
            writeln!(f, "{count:>14}  {module}")?;
        }
        writeln!(
            f,
            "{:>14}  all\n\n{:>14}  function",
            self.total, "instructions"
        )?;
        for (module, function, count) in self.top(40) {
            writeln!(f, "{count:>14}  {function} [{module}]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
ffffffff81000000 T _stext
ffffffff81000100 t do_one
ffffffff81000100 T do_two
ffffffff81000180 r a_table
ffffffff81000200 W weak_one
ffffffffc0201000 t vmbus_on_event\t[hv_vmbus_rs]
ffffffffc0201080 t _RNvCs1234_7mycrate3foo\t[hv_vmbus_rs]
ffffffffc0300000 T storvsc_queue\t[hv_storvsc]
";

    fn counts(blocks: &[(u64, u64)]) -> ProfileCounts {
        ProfileCounts {
            total: blocks.iter().map(|(_, count)| count).sum(),
            blocks: blocks
                .iter()
                .map(|(address, count)| (format!("{address:#x}"), *count))
                .collect(),
        }
    }

    #[test]
    fn addresses_belong_to_the_function_that_starts_before_them() {
        let symbols = Symbols::parse(KALLSYMS).unwrap();
        for (address, function, module) in [
            (0xffff_ffff_8100_00ff, "_stext", KERNEL),
            (0xffff_ffff_8100_0100, "do_two", KERNEL),
            (0xffff_ffff_8100_0190, "do_two", KERNEL),
            (0xffff_ffff_8100_0200, "weak_one", KERNEL),
            (0xffff_ffff_c020_107f, "vmbus_on_event", "hv_vmbus_rs"),
            (0xffff_ffff_c020_1080, "mycrate::foo", "hv_vmbus_rs"),
            (0xffff_ffff_ffff_ffff, "storvsc_queue", "hv_storvsc"),
            (0xffff_8000_0000_0000, UNKNOWN, UNKNOWN),
            (0x0000_5555_0000_0000, USER, USER),
        ] {
            assert_eq!(symbols.at(address), (function, module), "{address:#x}");
        }
    }

    #[test]
    fn sums_keep_every_instruction() {
        let symbols = Symbols::parse(KALLSYMS).unwrap();
        let counts = counts(&[
            (0x40_0000, 1000),
            (0xffff_ffff_8100_0104, 5),
            (0xffff_ffff_8100_0140, 7),
            (0xffff_ffff_c020_1004, 11),
            (0xffff_ffff_c020_1084, 13),
        ]);
        let report = symbols.report(&counts).unwrap();
        assert_eq!(report.modules.values().sum::<u64>(), counts.total);
        assert_eq!(
            (
                report.module("hv_vmbus_rs"),
                report.module(USER),
                report.module("none")
            ),
            (24, 1000, 0)
        );
        assert_eq!(report.function("do_two"), 12);
        assert_eq!(
            report.top(2),
            [(USER, USER, 1000), ("hv_vmbus_rs", "mycrate::foo", 13)]
        );
        assert!(report.to_string().contains("            24  hv_vmbus_rs"));
    }

    #[test]
    fn differences_leave_out_what_is_equal() {
        let symbols = Symbols::parse(KALLSYMS).unwrap();
        let report = |n| {
            symbols
                .report(&counts(&[
                    (0xffff_ffff_8100_0104, 5),
                    (0xffff_ffff_c020_1004, n),
                ]))
                .unwrap()
        };
        let difference = report(30).minus(&report(10));
        assert_eq!(
            difference.into_iter().collect::<Vec<_>>(),
            [(("hv_vmbus_rs".into(), "vmbus_on_event".into()), 20)]
        );
    }

    #[test]
    fn bad_input_is_named() {
        assert_eq!(
            Symbols::parse("ffffffff81000000 T").unwrap_err(),
            ProfileError::Line(1)
        );
        assert_eq!(
            Symbols::parse("0 T a\nxyz T b").unwrap_err(),
            ProfileError::Line(2)
        );
        assert_eq!(
            Symbols::parse("0000000000000000 T _stext\n0000000000000000 t x").unwrap_err(),
            ProfileError::Hidden
        );
        let odd = ProfileCounts {
            total: 1,
            blocks: vec![("81".into(), 1)],
        };
        assert_eq!(
            Symbols::parse(KALLSYMS).unwrap().report(&odd),
            Err(ProfileError::Address("81".into()))
        );
    }

    #[test]
    fn the_answer_of_the_host_is_understood() {
        let json = r#"{"total":8,"blocks":[["0xffffffff81000104",8]]}"#;
        let counts: ProfileCounts = serde_json::from_str(json).unwrap();
        assert_eq!(
            Symbols::parse(KALLSYMS)
                .unwrap()
                .report(&counts)
                .unwrap()
                .function("do_two"),
            8
        );
    }
}
