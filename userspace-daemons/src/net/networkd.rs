// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A file of our own for systemd-networkd (systemd.network(5)), sorted before those of netplan and of administrators' habit.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use log::warn;

use super::plan::program;
use super::{Change, Config, Interface, Plan};

/// Where D-Bus is, if it is. networkctl(1) has its orders carried out by it.
const BUS: &str = "run/dbus/system_bus_socket";
/// How long D-Bus may take to answer. systemd starts it, if it is not running.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn plan(root: &Path, interface: &Interface, config: &Config) -> Plan {
    let name = &interface.name;
    let after = if bus_answers(&root.join(BUS), PATIENCE) {
        vec![
            program(&["networkctl", "reload"]),
            program(&["networkctl", "reconfigure", name]),
        ]
    } else {
        // A small system may be without, and a broken one has its socket alone. systemctl(1) has a way of its own to systemd. Not reload: before systemd 254 that is networkctl.
        vec![program(&[
            "systemctl",
            "restart",
            "systemd-networkd.service",
        ])]
    };
    Plan {
        changes: vec![Change {
            path: format!("/etc/systemd/network/05-hyperv-{name}.network").into(),
            mode: 0o644,
            contents: file(interface, config),
        }],
        after,
        ..Plan::default()
    }
}

/// Whether somebody speaks D-Bus behind a socket: by the first line of the D-Bus specification's "Authentication Protocol", with which the
/// connection could go on.
fn bus_answers(socket: &Path, patience: Duration) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        // The user's number: the codes of its decimal digits, 30 to 39, in hexadecimal ones.
        let user = rustix::process::geteuid().as_raw().to_string();
        let user: String = user.chars().flat_map(|digit| ['3', digit]).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"OK")
    };
    match ask() {
        Ok(answers) => answers,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warn!("D-Bus does not answer ({error}); doing without");
            }
            false
        }
    }
}

/// Connects to a socket; an error at once when nobody takes connections and as many wait as may, where a blocking connect(2) would wait
/// without limit.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    use rustix::net::{
        connect, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&fd, &SocketAddrUnix::new(socket)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn file(interface: &Interface, config: &Config) -> String {
    let mut text = String::from(
        "# Written by hv-kvp-daemon as the Hyper-V host asked; replaced at its next request.\n",
    );
    // By name, too: a virtual function has the same address.
    let _ = writeln!(
        text,
        "[Match]\nName={}\nMACAddress={}",
        interface.name, interface.mac
    );
    let dhcp = if config.dhcp { "ipv4" } else { "no" };
    let _ = writeln!(text, "\n[Network]\nDHCP={dhcp}");
    if config.addresses(true).next().is_some() {
        text += "IPv6AcceptRA=no\n";
    }
    for (address, prefix) in &config.addresses {
        let _ = writeln!(text, "Address={address}/{prefix}");
    }
    for dns in &config.dns {
        let _ = writeln!(text, "DNS={dns}");
    }
    for v6 in [false, true] {
        for (i, gateway) in config.gateways(v6).enumerate() {
            let _ = writeln!(text, "\n[Route]\nGateway={gateway}\nMetric={}", 100 + i);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::super::managers::tests::eth0;
    use super::*;

    #[test]
    fn the_bus_decides() {
        let root = tempfile::tempdir().unwrap();
        let commands = || plan(root.path(), &eth0(), &Config::default()).after;
        let without = [program(&[
            "systemctl",
            "restart",
            "systemd-networkd.service",
        ])];
        assert_eq!(commands(), without);
        std::fs::create_dir_all(root.path().join("run/dbus")).unwrap();
        // A socket that nobody has any more.
        let socket = root.path().join(BUS);
        let listener = UnixListener::bind(&socket).unwrap();
        drop(listener);
        assert!(socket.exists());
        assert_eq!(commands(), without);
        std::fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let bus = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap();
            assert!(line.starts_with("\0AUTH EXTERNAL 3"), "{line:?}");
            stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
        });
        assert_eq!(
            commands(),
            [
                program(&["networkctl", "reload"]),
                program(&["networkctl", "reconfigure", "eth0"])
            ]
        );
        bus.join().unwrap();
    }

    #[test]
    fn a_bus_that_hangs_is_none() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("socket");
        // Connections are made, and nobody takes them.
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(!bus_answers(&socket, Duration::from_millis(100)));
        // As many wait as may.
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = connect(&socket) {
            waiting.push(stream);
        }
        assert!(!bus_answers(&socket, Duration::from_millis(100)));
    }

    #[test]
    fn both_families() {
        let config = Config {
            dhcp: false,
            addresses: vec![
                ("10.0.0.5".parse().unwrap(), 24),
                ("fd00::5".parse().unwrap(), 64),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            dns: vec!["1.1.1.1".parse().unwrap()],
        };
        let text = file(&eth0(), &config);
        assert!(text.ends_with(
            "[Match]\nName=eth0\nMACAddress=00:15:5D:00:00:0A\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n\
             Address=10.0.0.5/24\nAddress=fd00::5/64\nDNS=1.1.1.1\n\n[Route]\nGateway=10.0.0.1\nMetric=100\n\
             \n[Route]\nGateway=fd00::1\nMetric=100\n"
        ), "{text}");
        let dhcp = Config {
            dhcp: true,
            ..Config::default()
        };
        assert!(file(&eth0(), &dhcp).ends_with("[Network]\nDHCP=ipv4\n"));
    }
}
