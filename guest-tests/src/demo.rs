// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The demonstration: a stock Debian guest, its VMBus drivers at work, step by step with measured figures.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use hvctl::{SampleKind, ShutdownKind, Until};

use crate::disks::Scratch;
use crate::scenarios::storage::boot as disk_boot;
use crate::scenarios::{clock, cost};
use crate::vm::{describe, Vm, BOOT_LIMIT, IC_DEVICES, SOON, SYSTEM_LIMIT};
use crate::{Drivers, Env, VmConfig};

mod network;

/// What to show.
#[derive(Debug, Clone)]
pub struct Options {
    /// Driver stack.
    pub drivers: Drivers,
    /// Virtual CPUs.
    pub smp: u32,
    /// How long the VM is frozen for the clock's step.
    pub freeze: Duration,
    /// Show the network, too.
    pub network: bool,
    /// Boot Debian from a synthetic disk afterwards.
    pub disk: bool,
}

/// A step: what it is called, and what it does. It says a figure for the table.
struct Step {
    title: String,
    run: fn(&mut Stage) -> Result<String>,
}

/// What the steps hand on to each other.
struct Stage<'a> {
    env: &'a Env,
    options: &'a Options,
    vm: Option<Vm>,
    // What the first guest's cards are plugged into.
    network: Option<network::Network>,
    // Of the guest that boots from a disk.
    image: Option<Scratch>,
}

impl Stage<'_> {
    fn vm(&self) -> Result<&Vm> {
        self.vm.as_ref().context("no guest is running")
    }
}

/// A line of the table.
struct Row {
    title: String,
    result: &'static str,
    figure: String,
    took: Option<Duration>,
}

/// Runs all steps, narrates them, and prints the table. Whether all passed.
pub fn run(env: &Env, options: &Options) -> bool {
    let begin = Instant::now();
    let steps = steps(options);
    let total = steps.len();
    let mut stage = Stage {
        env,
        options,
        vm: None,
        network: None,
        image: None,
    };
    let mut rows = Vec::new();
    let mut failure = None;
    for (number, step) in steps.into_iter().enumerate() {
        if failure.is_some() {
            rows.push(Row {
                title: step.title,
                result: "not run",
                figure: String::new(),
                took: None,
            });
            continue;
        }
        println!("\n[{}/{total}] {}", number + 1, step.title);
        let begin = Instant::now();
        let result = (step.run)(&mut stage).and_then(|figure| {
            // Whatever a step shows is worth nothing when a side broke the rules meanwhile.
            if let Some(vm) = &stage.vm {
                vm.check()?;
            }
            Ok(figure)
        });
        let took = begin.elapsed();
        let (result, figure) = match result {
            Ok(figure) => ("ok", figure),
            Err(err) => {
                let err = match &stage.vm {
                    Some(vm) => vm.explain(err).to_string(),
                    None => format!("{err:#}"),
                };
                failure = Some((number + 1, step.title.clone(), err));
                ("FAILED", String::new())
            }
        };
        println!(
            "      {result}{}{figure} ({:.1} s)",
            if figure.is_empty() { "" } else { ": " },
            took.as_secs_f64()
        );
        rows.push(Row {
            title: step.title,
            result,
            figure,
            took: Some(took),
        });
    }
    drop(stage);
    println!("\n{}", table(&rows));
    println!(
        "{:.1} s in all; logs in {}",
        begin.elapsed().as_secs_f64(),
        env.logs.join(log_name(options)).display()
    );
    match failure {
        None => true,
        Some((number, title, err)) => {
            println!("\nstep {number} failed ({title}): {err}");
            false
        }
    }
}

fn log_name(options: &Options) -> String {
    format!("demo-{}", options.drivers.name())
}

fn steps(options: &Options) -> Vec<Step> {
    let name = match options.drivers {
        Drivers::Rust => "the Rust modules",
        _ => "the in-tree C drivers",
    };
    let step = |title: String, run| Step { title, run };
    let mut all = vec![
        step(
            "Boot the unmodified Debian kernel on the emulated Hyper-V host".into(),
            boot,
        ),
        step(
            format!("Load {name}: connect to the host over VMBus"),
            connect,
        ),
        step(
            "Devices on /sys/bus/vmbus, as lsvmbus lists them".into(),
            devices,
        ),
        step("100 heartbeats".into(), heartbeats),
        step(
            format!(
                "Freeze the VM for {} s: the clock is corrected",
                options.freeze.as_secs()
            ),
            freeze,
        ),
        step(
            "Set the guest's clock 5 hours back: the next marked sample corrects it".into(),
            hours,
        ),
        step("Take every device away and give it back".into(), rescind),
        step("The host asks for a clean power off".into(), power_off),
    ];
    if options.network {
        let after_heartbeats = 4;
        let network = [
            step(
                "Network: addresses by DHCP and SLAAC, ping".into(),
                network::addresses,
            ),
            step(
                "Data over the network, in each direction, with its checksum".into(),
                network::transfer,
            ),
            step("Speed of the network".into(), network::speed),
        ];
        all.splice(after_heartbeats..after_heartbeats, network);
    }
    if options.disk {
        all.extend([
            step("Debian boots from the synthetic SCSI disk".into(), debian),
            step("Every byte written there is read back right".into(), verify),
            step("Power off; the file system is checked".into(), debian_off),
        ]);
    }
    all
}

fn say(line: impl AsRef<str>) {
    for line in line.as_ref().lines() {
        println!("      {line}");
    }
}

fn boot(stage: &mut Stage) -> Result<String> {
    let mut config = VmConfig::new(&log_name(stage.options), stage.options.drivers)
        .smp(stage.options.smp)
        .cmdline(cost::TRACE_INIT);
    if stage.options.network {
        let network = stage.network.insert(network::Network::start()?);
        config.nics = network.nics();
        // iperf3 is in the Debian image.
        config.tools = true;
    }
    let vm = Vm::boot(stage.env, config)?;
    let hello = vm.agent.hello(1, SOON)?;
    say(format!(
        "Linux {}, {} CPU{}",
        hello.kernel,
        hello.cpus,
        if hello.cpus == 1 { "" } else { "s" }
    ));
    say(vm.log("Hypervisor detected", 0, SOON)?.text);
    let figure = format!("up after {:.1} s", vm.boot_time.as_secs_f64());
    stage.vm = Some(vm);
    Ok(figure)
}

fn connect(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    vm.load_drivers()?;
    for module in vm.config.modules() {
        say(format!("module {module}"));
    }
    if vm.config.drivers == Drivers::C {
        say("(the C bus driver is built into the kernel and connected during boot)");
    }
    say(vm.log("Vmbus version:", 0, SOON)?.text);
    let status = vm.host().status()?;
    let version = status.version.context("the host agreed to no version")?;
    let (to_version, to_offers) = cost::init_times(vm)?;
    Ok(format!(
        "VMBus {version} after {:.1} ms, all offers after {:.1} ms",
        to_version as f64 / 1e3,
        to_offers as f64 / 1e3
    ))
}

fn devices(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let list = vm.sh("lsvmbus -v")?;
    say(list
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect::<Vec<_>>()
        .join("\n"));
    let channels = vm.host().channels()?;
    // A card's further channels are no devices.
    let offered = channels.iter().filter(|c| c.subchannel == 0).count();
    let listed = vm.sh("ls /sys/bus/vmbus/devices | wc -l")?;
    if listed.trim() != offered.to_string() {
        bail!(
            "{} devices on the bus, the host offers {offered}",
            listed.trim()
        );
    }
    Ok(format!("{offered} devices"))
}

fn heartbeats(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let (hypercalls, interrupts, longest) = cost::heartbeat_cost(vm, 100)?;
    Ok(format!(
        "100 answered, 0 missed; {hypercalls:.2} hypercalls and {interrupts:.2} interrupts each, longest {longest} us"
    ))
}

fn freeze(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let frozen = clock::freeze_and_correct(vm, stage.options.freeze)?;
    Ok(format!(
        "right to {:+.1} ms {:.0} ms after it went on",
        frozen.offset.ms,
        frozen.took.as_secs_f64() * 1e3
    ))
}

fn hours(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    vm.set_clock(-5 * 3_600_000)?;
    say(format!(
        "the guest's clock now says {}",
        vm.sh("date -u '+%F %T UTC'")?.trim()
    ));
    let begin = Instant::now();
    vm.host().time_sample(SampleKind::Sync, 0, false)?;
    let (took, offset) = clock::becomes_right(vm, begin)?;
    say(format!(
        "after the sample {}",
        vm.sh("date -u '+%F %T UTC'")?.trim()
    ));
    Ok(format!(
        "right to {:+.1} ms after {:.0} ms",
        offset.ms,
        took.as_secs_f64() * 1e3
    ))
}

fn rescind(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let begin = Instant::now();
    for device in IC_DEVICES {
        vm.host().rescind(device)?;
        vm.host().wait(
            Until::Released {
                device: device.into(),
            },
            SOON,
        )?;
        let left = vm.sh("ls /sys/bus/vmbus/devices | wc -l")?;
        say(format!("{device} taken away, {} devices left", left.trim()));
        vm.host().offer(device)?;
        vm.host().wait_negotiated(device, SOON)?;
    }
    vm.beats(10)?;
    Ok(format!(
        "{} devices gone and back in {:.0} ms, heartbeats go on",
        IC_DEVICES.len(),
        begin.elapsed().as_secs_f64() * 1e3
    ))
}

fn power_off(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let violations = vm.host().violations()?.count;
    let begin = Instant::now();
    let reply = vm.host().shutdown(ShutdownKind::PowerOff, false, SOON)?;
    if reply.status != Some(0) {
        bail!(
            "the guest refused with {:#x}",
            reply.status.unwrap_or_default()
        );
    }
    let event = vm.qmp.event("SHUTDOWN", BOOT_LIMIT)?;
    let reason = event["data"]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if reason != "guest-shutdown" {
        bail!("the VM ended by {reason}");
    }
    Ok(format!(
        "off after {:.1} s; {violations} protocol violations in all",
        begin.elapsed().as_secs_f64()
    ))
}

fn debian(stage: &mut Stage) -> Result<String> {
    // The first guest is off.
    stage.vm = None;
    stage.network = None;
    let image = stage.env.debian_copy()?;
    let name = format!("{}-disk", log_name(stage.options));
    let config = VmConfig::new(&name, stage.options.drivers).smp(stage.options.smp);
    let vm = Vm::boot(stage.env, disk_boot::on_disk(config, image.path()))?;
    stage.image = Some(image);
    let vm = stage.vm.insert(vm);
    let took = disk_boot::boot(vm, false)?;
    say(vm.sh(". /etc/os-release; echo \"$PRETTY_NAME, $(systemctl --version | head -n 1)\"")?);
    say(vm.sh("lsscsi")?);
    say(vm.sh("findmnt -no SOURCE,TARGET,FSTYPE,SIZE,USED /")?);
    Ok(format!(
        "multi-user.target after {:.1} s",
        took.as_secs_f64()
    ))
}

fn verify(stage: &mut Stage) -> Result<String> {
    const MIB: u32 = 16;
    let vm = stage.vm()?;
    let begin = Instant::now();
    let script = format!(
        "cd /var/tmp && fio --name=demo --size={}m --numjobs=4 --rw=randwrite --bssplit=4k/60:64k/40 --iodepth=32 \
         --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output=/dev/null",
        MIB / 4
    );
    let out = vm.run(&script, SYSTEM_LIMIT)?;
    if out.rc != Some(0) {
        bail!("fio: {}", describe(&out));
    }
    Ok(format!(
        "{MIB} MiB in random order, 4 jobs, 32 deep: 0 errors, {:.1} s",
        begin.elapsed().as_secs_f64()
    ))
}

fn debian_off(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let violations = vm.host().violations()?.count;
    let begin = Instant::now();
    disk_boot::shut_down(vm)?;
    let took = begin.elapsed();
    let image = stage.image.as_ref().context("no image")?;
    disk_boot::fsck(image.path())?;
    Ok(format!(
        "off after {:.1} s, fsck clean; {violations} protocol violations",
        took.as_secs_f64()
    ))
}

fn table(rows: &[Row]) -> String {
    let titles = rows
        .iter()
        .map(|row| row.title.chars().count())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!(
        "{:3} {:titles$}  {:7} {:>7}  figure\n",
        "", "step", "result", "time"
    );
    for (number, row) in rows.iter().enumerate() {
        let took = row
            .took
            .map_or(String::new(), |took| format!("{:.1} s", took.as_secs_f64()));
        let _ = writeln!(
            text,
            "{:3} {:titles$}  {:7} {took:>7}  {}",
            number + 1,
            row.title,
            row.result,
            row.figure
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let row = |title: &str, result, took| Row {
            title: title.into(),
            result,
            figure: "7".into(),
            took,
        };
        let text = table(&[
            row("Boot", "ok", Some(Duration::from_millis(1234))),
            row("Connect to it", "not run", None),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "    step           result     time  figure");
        assert_eq!(lines[1], "  1 Boot           ok        1.2 s  7");
        assert_eq!(lines[2], "  2 Connect to it  not run          7");
    }
}
