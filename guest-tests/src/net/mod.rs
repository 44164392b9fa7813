// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Network cards of a guest, and what is at the other end of their wire: passt, another guest, or a test itself.
//!
//! Nothing here needs a privilege outside: passt is a program of the user, the rest are sockets in a directory of the
//! guest and on the loopback.

mod guest;
mod iperf;
mod passt;
mod web;
mod wire;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{bail, ensure, Context, Result};

pub use guest::dhcp;
pub use iperf::{IperfReport, IperfServer, IperfSum};
pub use passt::{Passt, GATEWAY, GATEWAY6, GUEST, PREFIX6};
pub use web::{Upload, Web};
pub use wire::{udp, Udp, Wire, WIRE_MAC};

/// What a card's wire leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// The host answers ARP, neighbour solicitation and ping for 10.0.0.1.
    Echo,
    /// Nothing: frames vanish.
    None,
    /// Frames are counted and vanish.
    Sink,
    /// A stream socket that the host connects to: passt's, a [`Wire`]'s, that of another guest.
    Connect(PathBuf),
    /// A stream socket that the host makes and another one connects to.
    Listen(PathBuf),
    /// A TAP device of the machine.
    Tap(String),
}

impl Backend {
    /// The host's word for it (docs/network-host.md).
    fn word(&self) -> String {
        match self {
            Self::Echo => "echo".into(),
            Self::None => "none".into(),
            Self::Sink => "sink".into(),
            Self::Connect(path) => format!("connect;{}", path.display()),
            Self::Listen(path) => format!("listen;{}", path.display()),
            Self::Tap(name) => format!("tap;{name}"),
        }
    }
}

/// A network card that the emulated host offers from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Where its frames go.
    pub backend: Backend,
    /// Arguments as the host knows them: `mtu=9000`, `offload=none`, `max=5`.
    pub options: Vec<String>,
}

impl Nic {
    /// A card on this wire.
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            options: Vec::new(),
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// The host's `devices` that make these cards: `net0`, `net1`, …
pub fn devices(nics: &[Nic]) -> Vec<String> {
    nics.iter()
        .enumerate()
        .map(|(number, nic)| {
            let mut words = vec![format!("net{number}")];
            words.push(format!("backend={}", nic.backend.word()));
            words.extend(nic.options.iter().cloned());
            words.join(":")
        })
        .collect()
}

/// `KIND[,OPT…]` of `scripts/vm --net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicArg {
    /// What the wire leads to.
    pub kind: NicKind,
    /// Ports of this machine's loopback that are the guest's, as passt takes them.
    pub forward: Vec<String>,
    /// Arguments for the host.
    pub options: Vec<String>,
}

/// What the wire of [`NicArg`] leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicKind {
    /// passt: the guest reaches what this machine reaches.
    User,
    /// One of the host's.
    Host(Backend),
}

impl FromStr for NicArg {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(',');
        let kind = words.next().unwrap_or_default();
        let (kind, value) = kind.split_once('=').unwrap_or((kind, ""));
        let path = || -> Result<PathBuf> {
            ensure!(!value.is_empty(), "{kind} needs the path of a socket");
            ensure!(
                !value.contains(['+', ':', ';']),
                "{value}: a path with + : or ; cannot be told to the host"
            );
            std::path::absolute(Path::new(value)).with_context(|| value.to_owned())
        };
        let kind = match (kind, value) {
            ("user", "") => NicKind::User,
            ("echo", "") => NicKind::Host(Backend::Echo),
            ("none", "") => NicKind::Host(Backend::None),
            ("sink", "") => NicKind::Host(Backend::Sink),
            ("listen", _) => NicKind::Host(Backend::Listen(path()?)),
            ("connect", _) => NicKind::Host(Backend::Connect(path()?)),
            ("tap", name) if !name.is_empty() => NicKind::Host(Backend::Tap(name.into())),
            _ => bail!(
                "unknown wire {text:?}; there are user, echo, none, sink, listen=PATH, connect=PATH, tap=INTERFACE"
            ),
        };
        let mut arg = Self {
            kind,
            forward: Vec::new(),
            options: Vec::new(),
        };
        for word in words {
            match word.split_once('=') {
                Some(("forward", ports)) if arg.kind == NicKind::User => {
                    arg.forward.push(ports.into());
                }
                Some(("backend" | "forward", _)) | None => {
                    bail!("{word:?} is no option of a network card")
                }
                // The host knows its own and refuses others.
                Some(_) => arg.options.push(word.into()),
            }
        }
        Ok(arg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_a_card() {
        let arg: NicArg = "user,forward=8022:22,mtu=9000".parse().unwrap();
        assert_eq!(arg.kind, NicKind::User);
        assert_eq!(
            (arg.forward, arg.options),
            (vec!["8022:22".to_owned()], vec!["mtu=9000".to_owned()])
        );
        let arg: NicArg = "listen=/run/a.sock".parse().unwrap();
        assert_eq!(
            arg.kind,
            NicKind::Host(Backend::Listen("/run/a.sock".into()))
        );
        for wrong in [
            "",
            "users",
            "listen",
            "tap=",
            "connect=/a+b",
            "echo,forward=1",
            "user,backend=echo",
        ] {
            assert!(wrong.parse::<NicArg>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn words_for_the_host() {
        let nics = [
            Nic::new(Backend::Echo),
            Nic::new(Backend::Connect("/run/p".into())).option("max=5"),
        ];
        assert_eq!(
            devices(&nics),
            ["net0:backend=echo", "net1:backend=connect;/run/p:max=5"]
        );
    }
}
