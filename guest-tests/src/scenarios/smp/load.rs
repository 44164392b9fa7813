// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Load on disk and network that goes on in the background. Each request is waited for: one that is lost stops the load.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use guest_agent::{Command as Ask, IoResult, Output, Spawned};

use super::{NET0, SCSI0};
use crate::bench::peer;
use crate::scenarios::programs::until;
use crate::vm::{describe, Vm, SOON};

/// A load may go on for this long: longer than any test.
const LIMIT: Duration = Duration::from_secs(7200);

/// Programs in the guest that go on until [`Load::stop`].
pub(super) struct Load<'a> {
    vm: &'a Vm,
    handles: Vec<u64>,
}

/// What became of a load.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Done {
    /// Requests, echoes, pieces of streams.
    pub(super) requests: u64,
    /// The longest that one of them took.
    pub(super) longest: Duration,
}

/// Packets from the guest so far, by device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress([u64; 2]);

impl<'a> Load<'a> {
    /// Starts reading from the disk, four requests at a time, exchanging datagrams, and TCP in both directions.
    pub(super) fn start(vm: &'a Vm, disk: &str) -> Result<Self> {
        let address = address();
        vm.sh("rm -f /tmp/stop")?;
        let mut handles = Vec::new();
        for command in [
            format!("hv-io /dev/{disk} read random 4096 200 4"),
            format!("hv-net udp-echo {address} 200 50"),
            format!("hv-net tcp-send {address} 65536 16"),
            format!("hv-net tcp-receive {address} 65536 16"),
        ] {
            let script = format!("while [ ! -e /tmp/stop ]; do {command} || exit 1; done");
            handles.push(spawn(vm, &script)?);
        }
        Ok(Self { vm, handles })
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Result<Progress> {
        let mut sums = [0; 2];
        for channel in self.vm.host().channels()? {
            for (sum, device) in sums.iter_mut().zip([SCSI0, NET0]) {
                if channel.device == device {
                    *sum += channel.counters.packets_in;
                }
            }
        }
        Ok(Progress(sums))
    }

    /// Waits until disk and network have got on since then.
    pub(super) fn gets_on(&self, since: Progress, after: &str) -> Result<()> {
        let waited = until("the load goes on", SOON, || {
            let now = self.progress()?;
            Ok(now.0.iter().zip(since.0).all(|(now, then)| *now > then + 4))
        });
        waited
            .map(drop)
            .with_context(|| format!("after {after}: {since:?}, then {:?}", self.progress()))
    }

    /// Lets it end. All that was begun must have come to its end.
    pub(super) fn stop(self) -> Result<Done> {
        self.vm.write("/tmp/stop", "")?;
        let mut done = Done::default();
        for handle in self.handles {
            done.add(collect(self.vm, handle)?);
        }
        ensure!(done.requests > 0, "the load did nothing");
        Ok(done)
    }
}

impl Done {
    fn add(&mut self, results: Vec<IoResult>) {
        for result in results {
            self.requests += result.ios;
            self.longest = self.longest.max(Duration::from_nanos(result.longest_ns));
        }
    }
}

/// The same load once, with the disk's part from each CPU in turn, so that each channel of the disk has something to do.
pub(super) fn once(vm: &Vm, disk: &str, cpus: u32) -> Result<Done> {
    let address = address();
    let mut scripts = vec![
        format!("hv-net udp-echo {address} 200 20"),
        format!("hv-net tcp-send {address} 65536 8"),
        format!("hv-net tcp-receive {address} 65536 8"),
    ];
    scripts.extend((0..cpus).map(|cpu| {
        format!(
            "busybox taskset {:x} hv-io /dev/{disk} read random 4096 40 2",
            1u64 << cpu
        )
    }));
    let mut handles = Vec::new();
    for script in scripts {
        handles.push(spawn(vm, &script)?);
    }
    let mut done = Done::default();
    for handle in handles {
        done.add(collect(vm, handle)?);
    }
    Ok(done)
}

fn address() -> String {
    peer::ADDRESS.map(|byte| byte.to_string()).join(".")
}

fn spawn(vm: &Vm, script: &str) -> Result<u64> {
    let argv = ["sh", "-c", script].map(String::from).to_vec();
    let ask = Ask::Spawn {
        argv,
        timeout_ms: LIMIT.as_millis() as u64,
    };
    let spawned: Spawned = vm.agent.call(ask, SOON)?;
    Ok(spawned.handle)
}

/// The results that a program printed, one a line.
fn collect(vm: &Vm, handle: u64) -> Result<Vec<IoResult>> {
    let ask = Ask::Collect {
        handle,
        kill: false,
    };
    // A request that is lost is known by the guest's own limits before.
    let out: Output = vm.agent.call(ask, 3 * SOON)?;
    if out.rc != Some(0) {
        bail!("the load failed: {}", describe(&out));
    }
    let text = out.stdout.text();
    let results = text.lines().map(serde_json::from_str);
    results
        .collect::<Result<_, _>>()
        .with_context(|| format!("the load printed {text:?}"))
}
