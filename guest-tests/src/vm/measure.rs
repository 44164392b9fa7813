// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What is measured in a guest: instructions, and clocks against this machine's.

use std::fs;
use std::io::Write;
use std::process::Command;

use anyhow::{anyhow, bail, Context, Result};
use guest_agent::{Command as Ask, Stamps};
use hvctl::profile::{ProfileCounts, Report, Symbols};

use super::{unix_now, Vm, SOON};

/// How far the guest's clock is off.
#[derive(Debug, Clone, Copy)]
pub struct ClockOffset {
    /// Guest minus host, in milliseconds.
    pub ms: f64,
    /// The reading is exact to plus or minus this many milliseconds.
    pub uncertainty_ms: f64,
}

impl Vm {
    /// The functions of the guest's kernel and of the modules that are loaded now, for profiles.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn symbols(&self) -> Result<Symbols> {
        Ok(Symbols::parse(&self.kallsyms()?)?)
    }

    /// The same as text: the functions in the guest's `/proc/kallsyms`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn kallsyms(&self) -> Result<String> {
        // Compressed in the guest: the serial port takes some hundred kilobytes a second.
        self.sh("grep -i ' [tw] ' /proc/kallsyms | gzip -c > /tmp/kallsyms.gz")?;
        let path = self.logs.join("kallsyms.gz");
        fs::write(&path, self.read_all("/tmp/kallsyms.gz")?)
            .with_context(|| path.display().to_string())?;
        let out = Command::new("gzip")
            .args(["-dc"])
            .arg(&path)
            .output()
            .context("gzip")?;
        if !out.status.success() {
            bail!("gzip: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Counts the guest's instructions while `work` runs, and writes those of each function to `profile.txt` among the
    /// logs. The VM was started with `profile`.
    ///
    /// # Errors
    /// That of `work`, or that the host counts no instructions.
    pub fn profile<T>(
        &self,
        symbols: &Symbols,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Report)> {
        self.host().call(hvctl::Command::ProfileMark)?;
        let value = work()?;
        let counts = self.host().call(hvctl::Command::ProfileRead)?;
        let counts: ProfileCounts = serde_json::from_value(counts).context("profile-read")?;
        let report = symbols.report(&counts)?;
        let mut file = fs::File::create(self.logs.join("profile.txt"))?;
        for (module, function, count) in report.top(usize::MAX) {
            writeln!(file, "{count:>14}  {function} [{module}]")?;
        }
        Ok((value, report))
    }

    /// The guest's clocks.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn time(&self) -> Result<Stamps> {
        self.agent.call(Ask::Time, SOON)
    }

    /// Guest's clock minus this machine's clock. The question and the answer take time; the
    /// guest's clock was read somewhere in between, so the second value is half that span.
    /// The best of several tries, as measured by that span.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn clock_offset(&self) -> Result<ClockOffset> {
        let mut best: Option<ClockOffset> = None;
        for _ in 0..5 {
            let before = unix_now();
            let guest = self.time()?.realtime_ns as i128;
            let after = unix_now();
            let middle = (before.as_nanos() + after.as_nanos()) as i128 / 2;
            let offset = ClockOffset {
                ms: (guest - middle) as f64 / 1e6,
                uncertainty_ms: (after - before).as_secs_f64() * 1e3 / 2.0,
            };
            if best.is_none_or(|b| offset.uncertainty_ms < b.uncertainty_ms) {
                best = Some(offset);
            }
        }
        best.ok_or_else(|| anyhow!("the guest's clock was not read"))
    }

    /// Sets the guest's clock to the host's, shifted.
    ///
    /// # Errors
    /// The guest's error.
    pub fn set_clock(&self, shift_ms: i64) -> Result<()> {
        let now = unix_now().as_nanos() as i128 + i128::from(shift_ms) * 1_000_000;
        let _: Stamps = self.agent.call(
            Ask::SetTime {
                realtime_ns: now as u64,
            },
            SOON,
        )?;
        Ok(())
    }
}
