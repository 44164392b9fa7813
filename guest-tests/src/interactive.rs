// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A guest on this process's terminal.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::net::dhcp;
use crate::scenarios::network::interface;
use crate::{Env, Vm, VmConfig};

/// Boots a guest with its console on this process's terminal, loads the drivers when told to, has the cards `by_dhcp` get an
/// address, and waits for the guest's end. The terminal is set back afterwards.
///
/// # Errors
/// See [`Vm::boot`].
pub fn run(env: &Env, config: VmConfig, load: bool, by_dhcp: &[String]) -> Result<()> {
    let _terminal = Terminal::save();
    let vm = Vm::boot(
        env,
        VmConfig {
            interactive: true,
            ..config
        },
    )?;
    if !vm.config.plain {
        println!("\r\ncontrol socket: {}\r", vm.control().display());
    }
    println!(
        "logs: {}\r\nleave with exit or poweroff\r",
        vm.logs.display()
    );
    if load {
        if let Err(err) = vm.load_drivers() {
            // The shell stays: this is where one wants to look around.
            println!(
                "loading the {} drivers: {err:#}\r",
                vm.config.drivers.name()
            );
        }
    }
    if load || vm.config.root.is_some() {
        for card in by_dhcp {
            match interface(&vm, card).and_then(|name| Ok((dhcp(&vm, &name)?, name))) {
                Ok((address, name)) => println!("{name}: {address}\r"),
                Err(err) => println!("{card}: {err:#}\r"),
            }
        }
    }
    if vm.config.profile {
        let path = vm.logs.join("kallsyms");
        match vm.kallsyms() {
            Ok(text) => {
                fs::write(&path, text).with_context(|| path.display().to_string())?;
                println!(
                    "symbols for hvctl profile read --kallsyms: {}\r",
                    path.display()
                );
            }
            Err(err) => println!("no symbols: {err:#}\r"),
        }
    }
    vm.wait_end()
}

/// Sets the terminal back to what it was: QEMU, killed or not, must not leave it in raw mode.
struct Terminal(Option<String>);

impl Terminal {
    fn save() -> Self {
        let out = Command::new("stty")
            .arg("-g")
            .stdin(Stdio::inherit())
            .stderr(Stdio::null())
            .output();
        let state = out.ok().filter(|out| out.status.success());
        Self(state.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            let _ = Command::new("stty")
                .arg(state)
                .stdin(Stdio::inherit())
                .status();
        }
    }
}
