// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Watches the guest's console: keeps its lines, and notices when the kernel is in trouble.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::patience::stretched;

/// Words at the start of a kernel message that mean trouble.
const TROUBLE_AT_START: [&str; 4] = ["BUG:", "WARNING:", "Oops", "Kernel panic"];

/// Words anywhere in a kernel message that mean trouble.
const TROUBLE: [&str; 11] = [
    "Call Trace",
    "general protection",
    "rcu: INFO",
    "INFO: task",
    "hung task",
    "soft lockup",
    "rust_kernel: panicked",
    "scheduling while atomic",
    "Unable to handle",
    "new suspected memory leaks",
    "UBSAN: ",
];

/// Whether this console line says that the kernel is in trouble.
pub fn is_trouble(line: &str) -> bool {
    // "[    1.234567] text", with the process id of the caller in between on some kernels.
    let text = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, text)) => text,
        None => line,
    };
    TROUBLE_AT_START.iter().any(|word| text.starts_with(word))
        || TROUBLE.iter().any(|word| text.contains(word))
}

/// Whether the console shows that QEMU ran an instruction which was no longer in memory, in the kernel itself, and no
/// trouble before that.
///
/// The kernel patches a static key by writing an `int3` over the instruction's first byte, then the rest, then the
/// first byte. TCG invalidates its translations before such a store, not with it: a vCPU that translates in between
/// keeps the `int3` when the patching is long over, and the kernel dies of it (seen with QEMU 11.1 on an overloaded
/// machine, in a few boots of a thousand, with either driver stack). The byte before the marked one in `Code:` is what
/// memory holds where the `int3` was met. Where it is an `int3` indeed (0xcc), for example because the kernel jumped into
/// the padding between functions, or where the place is in a module, the guest is to blame.
pub fn ran_stale_instruction(console: &str) -> bool {
    let mut lines = console.lines().skip_while(|line| !is_trouble(line));
    if !lines.next().is_some_and(|line| line.contains("Oops: int3")) {
        return false;
    }
    let report: Vec<_> = lines.take(20).collect();
    let field = |name: &str| {
        let mut found = report.iter().filter_map(|line| line.split_once(name));
        found.next().map(|(_, value)| value)
    };
    let (Some(place), Some(code)) = (field("] RIP: "), field("] Code: ")) else {
        return false;
    };
    let before = code
        .split_whitespace()
        .take_while(|byte| !byte.starts_with('<'))
        .last();
    // "0010:symbol+0x1/0x2", and "[module]" behind it where it is one.
    !place.contains('[') && code.contains('<') && before.is_some_and(|byte| byte != "cc")
}

/// The console of one VM.
pub struct Console {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    trouble: Vec<String>,
    closed: bool,
}

impl Console {
    /// Reads what QEMU writes for the first serial port, to its end; every byte also goes to `log`.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn new(stream: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let mut log = std::fs::File::create(log).with_context(|| log.display().to_string())?;
        let shared = Arc::new(Shared::default());
        let to = shared.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            loop {
                let mut line = Vec::new();
                let more = matches!(reader.read_until(b'\n', &mut line), Ok(1..));
                let _ = log.write_all(&line);
                let mut state = to.state.lock().unwrap_or_else(PoisonError::into_inner);
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if is_trouble(&text) {
                    state.trouble.push(text.clone());
                }
                if !text.is_empty() {
                    state.lines.push(text);
                }
                state.closed = !more;
                to.changed.notify_all();
                if !more {
                    return;
                }
            }
        });
        Ok(Self { shared })
    }

    /// Number of lines so far: a mark for [`Console::wait`].
    pub fn mark(&self) -> usize {
        self.state().lines.len()
    }

    /// The last lines.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let state = self.state();
        state.lines[state.lines.len().saturating_sub(count)..].to_vec()
    }

    /// All lines from a mark on.
    pub fn since(&self, mark: usize) -> Vec<String> {
        self.state().lines.iter().skip(mark).cloned().collect()
    }

    /// Takes the trouble seen so far.
    pub fn take_trouble(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trouble)
    }

    /// Waits for a line with `text` from the mark on.
    ///
    /// # Errors
    /// When it does not come in time, or QEMU ended without it.
    pub fn wait(&self, text: &str, mark: usize, timeout: Duration) -> Result<String> {
        let timeout = stretched(timeout);
        let end = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            if let Some(line) = state
                .lines
                .iter()
                .skip(mark)
                .find(|line| line.contains(text))
            {
                return Ok(line.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                bail!(
                    "no console line with {text:?} within {} s",
                    timeout.as_secs()
                );
            }
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn trouble_is_noticed() {
        for line in [
            "[    3.141592] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    3.1] WARNING: drivers/hv/channel.c:99 at vmbus_open+0x1/0x2, CPU#0: modprobe/7",
            "[    3.1] Oops: general protection fault, probably for non-canonical address",
            "[    3.1][   T77] Oops: 0002 [#1] SMP",
            "[   30.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[  242.1] INFO: task modprobe:77 blocked for more than 120 seconds.",
            "[    3.1] Call Trace:",
            "[    3.1] Kernel panic - not syncing: sysrq triggered crash",
        ] {
            assert!(is_trouble(line), "{line}");
        }
    }

    #[test]
    fn usual_lines_are_no_trouble() {
        for line in [
            "[    0.0] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
            "[    0.0] DMI: QEMU Standard PC",
            "[    1.0] rcu: Hierarchical SRCU implementation.",
            "[    1.0] hv_vmbus: Vmbus version:6.0",
            "",
        ] {
            assert!(!is_trouble(line), "{line}");
        }
    }

    #[test]
    fn a_stale_instruction_is_told_from_a_real_one() {
        let oops = |code: &str| {
            format!(
                "[    2.3] VFS: Disk quotas\n\
                 [    2.3] Oops: int3: 0000 [#1] SMP NOPTI\n\
                 [    2.3] CPU: 1 UID: 0 PID: 0 Comm: swapper/1 Not tainted\n\
                 [    2.3] RIP: 0010:set_next_task_fair+0x609/0x780\n\
                 [    2.3] Code: {code}\n"
            )
        };
        assert!(ran_stale_instruction(&oops("eb 6d 0f <1f> 44 00 00 48")));
        assert!(!ran_stale_instruction(&oops("eb 6d cc <cc> cc cc cc cc")));
        assert!(!ran_stale_instruction(&oops(
            "Unable to access opcode bytes"
        )));
        assert!(!ran_stale_instruction(&oops("")));
        let good = oops("eb 6d 0f <1f> 44");
        for (from, to) in [
            ("int3", "general protection fault"),
            ("+0x609/0x780", "+0x609/0x780 [hv_netvsc_rs]"),
            ("VFS: Disk quotas", "WARNING: net/core/dev.c:1 at f+0x1/0x2"),
        ] {
            assert!(good.contains(from));
            assert!(!ran_stale_instruction(&good.replace(from, to)), "{from}");
        }
    }

    #[test]
    fn lines_are_kept_and_waited_for() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let path = std::env::temp_dir().join(format!("hv-console-test-{}", std::process::id()));
        let console = Console::new(theirs, &path).unwrap();
        write!(ours, "one\r\n[    1.0] BUG: x\r\nthree").unwrap();
        assert_eq!(
            console.wait("BUG", 0, Duration::from_secs(5)).unwrap(),
            "[    1.0] BUG: x"
        );
        drop(ours);
        assert_eq!(
            console.wait("three", 2, Duration::from_secs(5)).unwrap(),
            "three"
        );
        assert!(console.wait("four", 0, Duration::from_secs(5)).is_err());
        assert_eq!(console.take_trouble().len(), 1);
        std::fs::remove_file(path).unwrap();
    }
}
