// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The other end of a card's wire, in the test's own hands: every frame that the guest sent as it came out of the
//! host, and any frame the test likes into the guest.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// The address of this end.
pub const WIRE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];

/// A socket that the host connects to (its back end `connect`), with frames behind a 4-byte length in network order.
pub struct Wire {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stream: Option<UnixStream>,
    frames: VecDeque<Vec<u8>>,
    error: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// Makes the socket.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        let shared = Arc::new(Shared::default());
        let to = shared.clone();
        thread::spawn(move || {
            // One after another: a card that is offered anew connects anew.
            while let Ok((stream, _)) = listener.accept() {
                to.lock().stream = stream.try_clone().ok();
                to.changed.notify_all();
                let end = receive(stream, &to);
                let mut state = to.lock();
                state.stream = None;
                state.error = end.err().map(|err| err.to_string());
                drop(state);
                to.changed.notify_all();
            }
        });
        Ok(Self {
            path: path.to_owned(),
            shared,
        })
    }

    /// Where the host connects to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a frame on the wire, towards the guest.
    ///
    /// # Errors
    /// When the host is not connected.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_all(std::iter::once(frame))
    }

    /// Puts frames on the wire, towards the guest, with no pause in between.
    ///
    /// # Errors
    /// When the host is not connected.
    pub fn send_all<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        let stream = self
            .shared
            .lock()
            .stream
            .as_ref()
            .map(UnixStream::try_clone);
        let mut stream = stream.context("the host is not connected to the wire")??;
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend_from_slice(&u32::try_from(frame.len())?.to_be_bytes());
            bytes.extend_from_slice(frame);
        }
        stream.write_all(&bytes).context("wire")
    }

    /// Forgets the frames so far.
    pub fn clear(&self) {
        self.shared.lock().frames.clear();
    }

    /// Waits for `count` frames that `wanted` makes something of, and gives what it made. The others up to there are
    /// dropped.
    ///
    /// # Errors
    /// When they do not come in time, with the number of those that came.
    pub fn wait<T>(
        &self,
        count: usize,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let end = Instant::now() + limit;
        let mut found = Vec::with_capacity(count);
        let mut others = 0usize;
        let mut state = self.shared.lock();
        while found.len() < count {
            if let Some(frame) = state.frames.pop_front() {
                match wanted(&frame) {
                    Some(value) => found.push(value),
                    None => others += 1,
                }
                continue;
            }
            if let Some(error) = &state.error {
                bail!("the wire is broken: {error}");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "{} of {count} frames came within {} s, and {others} others",
                    found.len(),
                    limit.as_secs()
                );
            }
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(found)
    }

    /// The frames that came so far and that `wanted` makes something of; all are forgotten.
    pub fn take<T>(&self, wanted: impl FnMut(Vec<u8>) -> Option<T>) -> Vec<T> {
        let frames = std::mem::take(&mut self.shared.lock().frames);
        frames.into_iter().filter_map(wanted).collect()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive(mut stream: UnixStream, to: &Shared) -> Result<()> {
    // The longest frame: the largest MTU with its header and a VLAN tag.
    const LONGEST: usize = 65_521 + 18;
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            return Ok(());
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            bail!("a frame of {length} bytes");
        }
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame)?;
        to.lock().frames.push_back(frame);
        to.changed.notify_all();
    }
}

/// A datagram in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// Ethernet destination.
    pub to: [u8; 6],
    /// Ethernet source.
    pub from: [u8; 6],
    /// VLAN: priority and number.
    pub vlan: Option<(u8, u16)>,
    /// Source address and port.
    pub source: (Ipv4Addr, u16),
    /// Destination address and port.
    pub destination: (Ipv4Addr, u16),
    /// What it carries.
    pub payload: Vec<u8>,
    /// Both checksums are right.
    pub checked: bool,
}

impl Udp {
    /// As a frame, with its checksums.
    ///
    /// # Errors
    /// When it is too long.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let (source, destination) = (self.source.0.octets(), self.destination.0.octets());
        let ip = match self.vlan {
            None => ethernet.ipv4(source, destination, 64),
            Some((priority, number)) => ethernet
                .vlan(etherparse::VlanHeader::Single(
                    etherparse::SingleVlanHeader {
                        pcp: etherparse::VlanPcp::try_new(priority)?,
                        drop_eligible_indicator: false,
                        vlan_id: etherparse::VlanId::try_new(number)?,
                        ether_type: etherparse::EtherType(0),
                    },
                ))
                .ipv4(source, destination, 64),
        };
        let udp = ip.udp(self.source.1, self.destination.1);
        let mut frame = Vec::with_capacity(udp.size(self.payload.len()));
        udp.write(&mut frame, &self.payload)?;
        Ok(frame)
    }

    /// From the other side.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self {
            to: self.from,
            from: self.to,
            source: self.destination,
            destination: self.source,
            ..self.clone()
        }
    }
}

/// The datagram in a frame, if it is one in IPv4 that is not a fragment.
pub fn udp(frame: &[u8]) -> Option<Udp> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
        (&packet.net, &packet.transport)
    else {
        return None;
    };
    let vlan = packet.vlan().and_then(|vlan| {
        let etherparse::VlanSlice::SingleVlan(tag) = vlan else {
            return None;
        };
        let header = tag.to_header();
        Some((header.pcp.value(), header.vlan_id.value()))
    });
    let header = ip.header().to_header();
    let right = udp
        .to_header()
        .calc_checksum_ipv4(&header, udp.payload())
        .is_ok_and(|sum| sum == udp.checksum());
    let (to, from) = (frame.get(..6)?, frame.get(6..12)?);
    Some(Udp {
        to: to.try_into().ok()?,
        from: from.try_into().ok()?,
        vlan,
        source: (header.source.into(), udp.source_port()),
        destination: (header.destination.into(), udp.destination_port()),
        payload: udp.payload().to_owned(),
        checked: right && header.calc_header_checksum() == header.header_checksum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(vlan: Option<(u8, u16)>) -> Udp {
        Udp {
            to: [2, 0, 0, 0, 0, 1],
            from: WIRE_MAC,
            vlan,
            source: (Ipv4Addr::new(10, 0, 0, 1), 7),
            destination: (Ipv4Addr::new(10, 0, 0, 2), 9),
            payload: b"hello".to_vec(),
            checked: true,
        }
    }

    #[test]
    fn datagrams_are_built_and_read() {
        for vlan in [None, Some((5, 100))] {
            let datagram = sample(vlan);
            let mut frame = datagram.frame().unwrap();
            assert_eq!(udp(&frame), Some(datagram.clone()));
            let last = frame.len() - 1;
            frame[last] ^= 1;
            assert!(!udp(&frame).unwrap().checked);
            assert_eq!(datagram.turned().turned(), datagram);
        }
        assert_eq!(udp(&[0; 60]), None);
    }

    #[test]
    fn frames_go_both_ways() {
        let dir = crate::env::TempDir::new().unwrap();
        let wire = Wire::new(&dir.path().join("w")).unwrap();
        assert!(wire.send(b"x").is_err());
        let mut host = UnixStream::connect(wire.path()).unwrap();
        let frame = sample(None).frame().unwrap();
        for part in [&b"noise"[..], &frame] {
            host.write_all(&(part.len() as u32).to_be_bytes()).unwrap();
            host.write_all(part).unwrap();
        }
        let found = wire.wait(1, Duration::from_secs(10), udp).unwrap();
        assert_eq!(found, [sample(None)]);
        wire.send(b"there").unwrap();
        let mut back = [0; 9];
        host.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"\0\0\0\x05there");
        assert!(wire.wait(1, Duration::from_millis(10), udp).is_err());
        host.write_all(&1_000_000u32.to_be_bytes()).unwrap();
        let err = wire.wait(1, Duration::from_secs(10), udp).unwrap_err();
        assert!(err.to_string().contains("1000000 bytes"), "{err}");
    }
}
