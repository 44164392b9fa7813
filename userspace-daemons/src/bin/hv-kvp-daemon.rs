// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-kvp-daemon`: tells the Hyper-V host about this guest, keeps keys for it, and sets addresses when it asks.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hv_daemons::device::{self, Node};
use hv_daemons::kvp::{Daemon, IpInfo, Pools, Service, System, DIRECTORY};
use hv_daemons::net::{Config, Hooks, Interface, Network, SetError};
use hv_daemons::program::{self, Common};
use log::error;

/// Answers the Hyper-V host's "Data Exchange" requests: key-value pairs, facts about this system, its addresses
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    paths: Paths,
    /// Device of the driver
    #[arg(long, value_name = "FILE", default_value = "/dev/vmbus/hv_kvp")]
    device: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Clone)]
struct Paths {
    /// Where the pools of keys are kept
    #[arg(long, value_name = "DIR", default_value = DIRECTORY, global = true)]
    pools: PathBuf,
    /// Scripts hv_get_dns_info, hv_get_dhcp_info, hv_set_ifconfig that are used where they exist
    #[arg(long, value_name = "DIR", default_value = hv_daemons::net::HOOKS_DIRECTORY, global = true)]
    hooks: PathBuf,
    /// Say what setting addresses would change, and change nothing
    #[arg(long, global = true)]
    dry_run: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Print what the host gets to see: facts, pools, addresses
    Show,
    /// Set addresses as the host would (with --dry-run: print what would change)
    SetIp(SetIp),
}

#[derive(Args)]
struct SetIp {
    /// Interface
    interface: String,
    /// IPv4 by DHCP
    #[arg(long)]
    dhcp: bool,
    /// Address with prefix length; may be repeated
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    address: Vec<String>,
    /// Default gateway; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// Name server; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
}

const AFTER_HELP: &str = "\
Without a command it serves the host: in the background, or with --foreground under systemd (hv-kvp-daemon.service).
Pools are DIR/.kvp_pool_N: 0 set by the host, 1 by programs in this guest, 2 made up, 3 set by the host's management.
Addresses are set through files of its own for NetworkManager (/etc/NetworkManager/system-connections/hyperv-IF.nmconnection),
systemd-networkd (/etc/systemd/network/05-hyperv-IF.network) or ifupdown (/etc/network/interfaces.d/hyperv-IF),
whichever manages the interface, unless there is a script hv_set_ifconfig.";

fn main() -> ExitCode {
    let options = Options::parse();
    let network = Network {
        root: "/".into(),
        hooks: Hooks::new(&options.paths.hooks, &options.paths.pools),
        dry_run: options.paths.dry_run,
    };
    match &options.command {
        Some(Command::Show) => show(&options.paths.pools, &network),
        Some(Command::SetIp(wanted)) => set_ip(wanted, &network),
        None => serve(&options, network),
    }
}

fn serve(options: &Options, network: Network) -> ExitCode {
    let mut running = match program::start("hv-kvp-daemon", &options.common) {
        Ok(running) => running,
        Err(code) => return code,
    };
    let pools = match Pools::open(&options.paths.pools) {
        Ok(pools) => pools,
        Err(error) => {
            error!("cannot use {}: {error}", options.paths.pools.display());
            return ExitCode::FAILURE;
        }
    };
    let mut daemon = Daemon(Service {
        pools,
        system: System::new("/"),
        network,
    });
    let node = Node::new(&options.device, "Data Exchange", "hv_utils");
    match device::run(&node, &mut running, &mut daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn show(pools: &Path, network: &Network) -> ExitCode {
    let system = System::new("/");
    println!("facts (pool 2):");
    for (key, value) in (0..).map_while(|index| system.auto(index)) {
        println!("  {key} = {value}");
    }
    if pools.exists() {
        match Pools::open(pools) {
            Ok(pools) => [0, 1, 3, 4]
                .iter()
                .for_each(|&pool| show_pool(&pools, pool)),
            Err(error) => eprintln!("cannot read {}: {error}", pools.display()),
        }
    }
    for interface in network.interfaces() {
        let info = network.describe(&interface, &interface.mac);
        println!("interface {}:", interface.name);
        println!("  MAC address {}", interface.mac);
        println!(
            "  adapter {}",
            interface.guid.as_deref().unwrap_or("not of VMBus")
        );
        println!("  addresses {} ({})", info.addresses, info.subnets);
        println!("  gateways {}", info.gateways);
        println!("  name servers {}", info.dns);
        println!("  DHCP {}", if info.dhcp { "yes" } else { "no" });
    }
    ExitCode::SUCCESS
}

fn show_pool(pools: &Pools, pool: u8) {
    println!("pool {pool}:");
    for index in 0.. {
        match pools.at(pool, index) {
            Ok(Some(record)) => println!(
                "  {} = {}",
                String::from_utf8_lossy(&record.key).escape_debug(),
                String::from_utf8_lossy(&record.value).escape_debug()
            ),
            Ok(None) => return,
            Err(error) => {
                eprintln!("cannot read pool {pool}: {error}");
                return;
            }
        }
    }
}

fn set_ip(wanted: &SetIp, network: &Network) -> ExitCode {
    let (addresses, prefixes): (Vec<&str>, Vec<&str>) = wanted
        .address
        .iter()
        .map(|a| a.split_once('/').unwrap_or((a, "")))
        .unzip();
    let info = IpInfo {
        dhcp: wanted.dhcp,
        addresses: addresses.join(";"),
        subnets: prefixes.join(";"),
        gateways: wanted.gateway.join(";"),
        dns: wanted.dns.join(";"),
        ..IpInfo::default()
    };
    let result = network
        .interface(&wanted.interface)
        .ok_or_else(|| SetError::NoInterface(wanted.interface.clone()))
        .and_then(|interface| change(&interface, &Config::parse(&info)?, network));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hv-kvp-daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn change(interface: &Interface, config: &Config, network: &Network) -> Result<(), SetError> {
    if network.hooks.can_set() {
        let script = network.hooks.directory().join("hv_set_ifconfig");
        println!("run: {} (hook)", script.display());
        return match network.dry_run {
            true => Ok(()),
            false => network.hooks.set(interface, config),
        };
    }
    let plan = network.plan(interface, config)?;
    print!("{plan}");
    for warning in &plan.warnings {
        eprintln!("warning: {warning}");
    }
    match network.dry_run {
        true => Ok(()),
        false => plan.apply(&network.root),
    }
}
