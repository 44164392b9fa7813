// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-net`: a plain load on the network for measurements, against the peer of `scripts/bench network`. What is sent and
//! received is the same in each run; nothing is ever so far ahead that it could be dropped.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use guest_agent::{net_port, IoResult, NET_BURST, NET_USAGE};

use crate::io::Laps;

/// An answer that takes longer will not come.
const ANSWER: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    UdpSend,
    UdpReceive,
    UdpEcho,
    TcpSend,
    TcpReceive,
}

#[derive(Clone, Debug)]
struct Load {
    mode: Mode,
    peer: IpAddr,
    size: usize,
    count: u64,
}

impl Load {
    /// MODE ADDRESS SIZE COUNT
    fn parse(args: &[String]) -> Result<Self> {
        let [mode, peer, size, count] = args else {
            bail!("usage: {NET_USAGE}");
        };
        let mode = match mode.as_str() {
            "udp-send" => Mode::UdpSend,
            "udp-receive" => Mode::UdpReceive,
            "udp-echo" => Mode::UdpEcho,
            "tcp-send" => Mode::TcpSend,
            "tcp-receive" => Mode::TcpReceive,
            other => bail!("no mode {other:?}; usage: {NET_USAGE}"),
        };
        let load = Self {
            mode,
            peer: peer.parse().context("ADDRESS")?,
            size: size.parse().context("SIZE")?,
            count: count.parse().context("COUNT")?,
        };
        ensure!(
            (8..=1 << 20).contains(&load.size) && load.count > 0,
            "SIZE must be 8 to 1 MiB, and COUNT not 0"
        );
        ensure!(
            !matches!(mode, Mode::UdpSend | Mode::UdpReceive) || load.count % NET_BURST == 0,
            "COUNT of datagrams must be a multiple of {NET_BURST}"
        );
        Ok(load)
    }

    fn udp(&self, port: u16) -> Result<UdpSocket> {
        let any = match self.peer {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(SocketAddr::new(self.peer, port))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(socket)
    }

    fn tcp(&self, port: u16) -> Result<TcpStream> {
        let socket = TcpStream::connect_timeout(&SocketAddr::new(self.peer, port), ANSWER)?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.set_write_timeout(Some(ANSWER))?;
        Ok(socket)
    }
}

/// Runs as `hv-net`; the result goes to standard output as a line of JSON.
pub fn run(args: &[String]) -> Result<()> {
    let load = Load::parse(args)?;
    let begin = Instant::now();
    let longest_ns = perform(&load).with_context(|| format!("{:?}", load.mode))?;
    let result = IoResult {
        ios: load.count,
        bytes: load.count * load.size as u64,
        elapsed_ns: begin.elapsed().as_nanos() as u64,
        longest_ns,
    };
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// The longest exchange, in nanoseconds: an echo, a burst, a piece of a stream.
fn perform(load: &Load) -> Result<u64> {
    let mut buffer = vec![0x5a; load.size];
    // Connecting is part of the first.
    let mut laps = Laps::start();
    match load.mode {
        Mode::UdpEcho => {
            let socket = load.udp(net_port::ECHO)?;
            for number in 0..load.count {
                buffer[..8].copy_from_slice(&number.to_le_bytes());
                socket.send(&buffer)?;
                let len = socket.recv(&mut buffer).context("no echo")?;
                ensure!(
                    len == load.size && buffer[..8] == number.to_le_bytes(),
                    "echo {number} is not what was sent"
                );
                laps.lap();
            }
        }
        Mode::UdpSend => {
            let socket = load.udp(net_port::SINK)?;
            let mut answer = [0; 8];
            for number in 0..load.count {
                buffer[..8].copy_from_slice(&number.to_le_bytes());
                socket.send(&buffer)?;
                // The peer answers the last of each burst.
                if number % NET_BURST == NET_BURST - 1 {
                    socket.recv(&mut answer).context("no answer to a burst")?;
                    ensure!(answer == number.to_le_bytes(), "answer to another burst");
                    laps.lap();
                }
            }
        }
        Mode::UdpReceive => {
            let socket = load.udp(net_port::SOURCE)?;
            let size = (load.size as u64).to_le_bytes();
            for _ in 0..load.count / NET_BURST {
                socket.send(&size)?;
                for number in 0..NET_BURST {
                    let len = socket
                        .recv(&mut buffer)
                        .with_context(|| format!("datagram {number} of a burst did not come"))?;
                    ensure!(len == load.size, "datagram of {len} bytes");
                }
                laps.lap();
            }
        }
        Mode::TcpSend => {
            let mut socket = load.tcp(net_port::SINK)?;
            for _ in 0..load.count {
                socket.write_all(&buffer)?;
                laps.lap();
            }
            socket.shutdown(Shutdown::Write)?;
            let mut got = [0; 8];
            socket.read_exact(&mut got).context("no answer")?;
            let (got, sent) = (u64::from_le_bytes(got), load.count * load.size as u64);
            ensure!(got == sent, "{got} bytes of {sent} arrived");
        }
        Mode::TcpReceive => {
            let mut socket = load.tcp(net_port::SOURCE)?;
            let wanted = load.count * load.size as u64;
            socket.write_all(&wanted.to_le_bytes())?;
            let mut got = 0;
            loop {
                match socket.read(&mut buffer)? {
                    0 => break,
                    len => got += len as u64,
                }
                laps.lap();
            }
            ensure!(got == wanted, "{got} bytes of {wanted} came");
        }
    }
    Ok(laps.longest_ns())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(words: &str) -> Result<Load> {
        Load::parse(&words.split(' ').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn wrong_words_are_named() {
        for (words, cause) in [
            ("tcp 10.0.0.1 64 1", "tcp"),
            ("udp-send nobody 64 64", "ADDRESS"),
            ("udp-send 10.0.0.1 7 64", "SIZE"),
            ("udp-send 10.0.0.1 64 65", "multiple"),
            ("udp-echo 10.0.0.1 64 0", "COUNT"),
            ("udp-echo", "usage"),
        ] {
            let err = format!("{:#}", load(words).unwrap_err());
            assert!(err.contains(cause), "{words}: {err}");
        }
        assert_eq!(load("tcp-send fd00::1 65536 3").unwrap().count, 3);
    }
}
