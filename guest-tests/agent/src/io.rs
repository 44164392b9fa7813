// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-io`: a plain load on a block device for measurements. Each of DEPTH threads reads or writes one block at
//! a time past the page cache, so that DEPTH requests are in flight. The blocks are the same in each run.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use guest_agent::{IoResult, IO_USAGE};

/// Addresses of O_DIRECT must be aligned to the logical block; a page is always enough.
const ALIGN: usize = 4096;

/// What to do.
#[derive(Clone, Debug)]
struct Load {
    device: String,
    write: bool,
    block: u64,
    count: u64,
    depth: u64,
    random: bool,
}

impl Load {
    /// DEVICE read|write random|sequential BLOCK COUNT DEPTH
    fn parse(args: &[String]) -> Result<Self> {
        let [device, what, order, block, count, depth] = args else {
            bail!("usage: {IO_USAGE}");
        };
        let either = |word: &str, yes: &str, no: &str| match word {
            w if w == yes => Ok(true),
            w if w == no => Ok(false),
            other => bail!("{other:?} is neither {yes} nor {no}; usage: {IO_USAGE}"),
        };
        let load = Self {
            device: device.clone(),
            write: either(what, "write", "read")?,
            random: either(order, "random", "sequential")?,
            block: block.parse().context("BLOCK")?,
            count: count.parse().context("COUNT")?,
            depth: depth.parse().context("DEPTH")?,
        };
        ensure!(
            load.block > 0 && load.block % 512 == 0 && load.block <= 64 << 20,
            "BLOCK must be a multiple of 512, at most 64 MiB"
        );
        ensure!(
            (1..=1024).contains(&load.depth) && load.count >= load.depth,
            "DEPTH must be 1 to 1024, and COUNT no less"
        );
        Ok(load)
    }
}

/// Runs as `hv-io`; the result goes to standard output as a line of JSON.
pub fn run(args: &[String]) -> Result<()> {
    let load = Load::parse(args)?;
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let result = perform(&load, direct)?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

fn perform(load: &Load, flags: i32) -> Result<IoResult> {
    let mut file = OpenOptions::new()
        .read(!load.write)
        .write(load.write)
        .custom_flags(flags)
        .open(&load.device)
        .with_context(|| load.device.clone())?;
    let blocks = file.seek(SeekFrom::End(0))? / load.block;
    ensure!(blocks > 0, "{} is smaller than a block", load.device);
    let (file, start) = (&file, &Barrier::new(load.depth as usize + 1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..load.depth)
            .map(|index| scope.spawn(move || one(load, file, blocks, index, start)))
            .collect();
        start.wait();
        let begin = Instant::now();
        let mut longest_ns = 0;
        for thread in threads {
            match thread.join() {
                Ok(outcome) => longest_ns = longest_ns.max(outcome?),
                Err(_) => bail!("a thread panicked"),
            }
        }
        let elapsed_ns = begin.elapsed().as_nanos() as u64;
        Ok(IoResult {
            ios: load.count,
            bytes: load.count * load.block,
            elapsed_ns,
            longest_ns,
        })
    })
}

/// What thread `index` does: every DEPTH-th request. The longest of them, in nanoseconds.
fn one(load: &Load, file: &File, blocks: u64, index: u64, start: &Barrier) -> Result<u64> {
    let size = load.block as usize;
    let mut memory = vec![0u8; size + ALIGN];
    let skip = memory.as_ptr().align_offset(ALIGN);
    let buffer = &mut memory[skip..skip + size];
    // Not all zero, which a host may store as a hole.
    buffer.fill(0x5a ^ index as u8);
    // Touches what the loop needs before the start.
    start.wait();
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (index + 1);
    let mut laps = Laps::start();
    for number in (index..load.count).step_by(load.depth as usize) {
        let block = if load.random {
            // xorshift64, G. Marsaglia 2003.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % blocks
        } else {
            number % blocks
        };
        let offset = block * load.block;
        if load.write {
            file.write_all_at(buffer, offset)
        } else {
            file.read_exact_at(buffer, offset)
        }
        .with_context(|| format!("{} at {offset}", load.device))?;
        laps.lap();
    }
    Ok(laps.longest_ns())
}

/// Times what comes one after the other.
pub struct Laps {
    last: Instant,
    longest: Duration,
}

impl Laps {
    /// The first begins.
    pub fn start() -> Self {
        Self {
            last: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    /// One is over, the next begins.
    pub fn lap(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }

    /// The longest so far, in nanoseconds.
    pub fn longest_ns(&self) -> u64 {
        self.longest.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(device: &str, words: &str) -> Result<Load> {
        let args: Vec<String> = [device]
            .into_iter()
            .chain(words.split(' '))
            .map(String::from)
            .collect();
        Load::parse(&args)
    }

    #[test]
    fn every_block_of_a_sequential_write_is_written() {
        let path = std::env::temp_dir().join(format!("hv-io-{}", std::process::id()));
        std::fs::write(&path, vec![0u8; 64 * 4096]).unwrap();
        let name = path.to_str().unwrap();
        let result = perform(&load(name, "write sequential 4096 64 4").unwrap(), 0).unwrap();
        assert_eq!((result.ios, result.bytes), (64, 64 * 4096));
        assert!(result.longest_ns > 0 && result.longest_ns <= result.elapsed_ns);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes
            .chunks(4096)
            .enumerate()
            .all(|(n, block)| { block.iter().all(|byte| *byte == 0x5a ^ (n % 4) as u8) }));
        let result = perform(&load(name, "read random 512 100 3").unwrap(), 0).unwrap();
        assert_eq!(result.ios, 100);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn wrong_words_are_named() {
        for (words, cause) in [
            ("look random 4096 1 1", "look"),
            ("read nowhere 4096 1 1", "nowhere"),
            ("read random 100 1 1", "BLOCK"),
            ("read random 4096 1 2", "DEPTH"),
            ("read random 4096 x 1", "COUNT"),
            ("read", "usage"),
        ] {
            let err = format!("{:#}", load("/dev/null", words).unwrap_err());
            assert!(err.contains(cause), "{words}: {err}");
        }
    }

    #[test]
    fn an_empty_device_is_refused() {
        let load = load("/dev/null", "read random 4096 1 1").unwrap();
        assert!(perform(&load, 0).is_err());
    }
}
