// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The service on the channel's rings, which `uio_hv_generic` maps into this process (Linux 6.10 and later).
//!
//! The rings are memory that the host writes: `vmbus-proto` reads them as the driver would, and the channel is given up when they are corrupt.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{fence, Ordering};

use log::{debug, info, warn};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use vmbus_proto::ic::fcopy::{parse_device, to_device, MAX_BODY, VERSIONS};
use vmbus_proto::ic::{MessageType, Session, Status, HEADERS_SIZE};
use vmbus_proto::packet::PacketKind;
use vmbus_proto::ring::{Consumer, ControlWord, Producer, ReadError, RingMemory, CONTROL_SIZE};

use super::receiver::Receiver;
use crate::device::{next_event, End, Event};
use crate::program::Running;

/// The channel's directory: a service of Hyper-V has one instance.
const DEVICE: &str = "sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4";

/// Largest packet, descriptor included. Longer ones are skipped.
const MAX_PACKET: usize = 16 * 1024;

/// Largest mapping that is believed, in bytes; the driver makes 32 KiB.
const MAX_RINGS: usize = 64 << 20;

/// A UIO device that stands for the file copy channel.
#[derive(Clone, Debug)]
pub struct Uio {
    node: PathBuf,
    size: usize,
}

impl Uio {
    /// Looks for the device below `root`.
    #[must_use]
    pub fn find(root: &Path) -> Option<Self> {
        let directory = root.join(DEVICE).join("uio");
        let uio = fs::read_dir(directory).ok()?.flatten().next()?;
        let size = fs::read_to_string(uio.path().join("maps/map0/size")).ok()?;
        let size = usize::from_str_radix(size.trim().trim_start_matches("0x"), 16).ok()?;
        // Two rings of whole pages each.
        let sane = size <= MAX_RINGS && size % (2 * CONTROL_SIZE) == 0 && size > 2 * CONTROL_SIZE;
        sane.then(|| Self {
            node: root.join("dev").join(uio.file_name()),
            size,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.node
    }

    /// Opens the channel and serves until something ends it.
    ///
    /// # Errors
    ///
    /// Of the device, or of what is in the rings.
    pub fn serve(&self, receiver: &mut Receiver, running: &mut Running) -> io::Result<End> {
        let device = OpenOptions::new().read(true).write(true).open(&self.node)?;
        let offset = FileOffset::new(device.try_clone()?, 0);
        let region = MmapRegion::<()>::from_file(offset, self.size)
            .map_err(|error| io::Error::other(format!("cannot map the rings: {error}")))?;
        let ring = |at| -> io::Result<Ring<'_>> {
            let half = self.size / 2;
            let slice = region
                .get_slice(at * half, half)
                .map_err(io::Error::other)?;
            Ok(Ring(slice))
        };
        let mut channel = Channel::new(ring(0)?, ring(1)?)?;
        info!("serving {}", self.node.display());
        running.ready("waiting for files");
        let end = channel.run(device, receiver, running);
        receiver.reset();
        end
    }
}

/// One ring in mapped memory.
struct Ring<'m>(VolatileSlice<'m>);

impl Ring<'_> {
    /// The pieces of `length` bytes from `offset` of the data area on: where, and how many.
    fn pieces(&self, offset: u32, length: usize) -> [(usize, usize); 2] {
        let size = self.data_size() as usize;
        let offset = offset as usize % size;
        let first = length.min(size - offset);
        [
            (CONTROL_SIZE + offset, first),
            (CONTROL_SIZE, (length - first).min(size)),
        ]
    }
}

impl RingMemory for Ring<'_> {
    fn data_size(&self) -> u32 {
        u32::try_from(self.0.len() - CONTROL_SIZE).unwrap_or(0)
    }

    fn load(&self, word: ControlWord) -> u32 {
        self.0.load(word.offset(), Ordering::Relaxed).unwrap_or(0)
    }

    fn load_acquire(&self, word: ControlWord) -> u32 {
        self.0.load(word.offset(), Ordering::Acquire).unwrap_or(0)
    }

    fn store(&self, word: ControlWord, value: u32) {
        let _ = self.0.store(value, word.offset(), Ordering::Relaxed);
    }

    fn store_release(&self, word: ControlWord, value: u32) {
        let _ = self.0.store(value, word.offset(), Ordering::Release);
    }

    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn read(&self, offset: u32, out: &mut [u8]) {
        let [first, second] = self.pieces(offset, out.len());
        let (a, b) = out.split_at_mut(first.1);
        let _ = self.0.read_slice(a, first.0);
        let b = &mut b[..second.1];
        let _ = self.0.read_slice(b, second.0);
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        let [first, second] = self.pieces(offset, bytes.len());
        let (a, b) = bytes.split_at(first.1);
        let _ = self.0.write_slice(a, first.0);
        let _ = self.0.write_slice(&b[..second.1], second.0);
    }
}

/// The open channel.
struct Channel<M: RingMemory> {
    out: Producer<M>,
    inbound: Consumer<M>,
    session: Session,
}

impl<M: RingMemory> Channel<M> {
    fn new(out: M, inbound: M) -> io::Result<Self> {
        Ok(Self {
            out: Producer::attach(out).map_err(broken)?,
            inbound: Consumer::attach(inbound).map_err(broken)?,
            session: Session::new(MessageType::FCOPY, VERSIONS),
        })
    }

    fn run(
        &mut self,
        mut device: impl Read + Write + AsFd,
        receiver: &mut Receiver,
        running: &mut Running,
    ) -> io::Result<End> {
        // Lets the host interrupt; there may be something already.
        device.write_all(&1i32.to_ne_bytes())?;
        loop {
            if self.drain(receiver)? {
                device.write_all(&1i32.to_ne_bytes())?;
            }
            match next_event(device.as_fd(), running.signals.as_fd(), None, None)? {
                Event::Readable => {}
                Event::Stop => return Ok(End::Stop),
                _ => return Ok(End::Again("the device is gone".into())),
            }
            let mut count = [0; 4];
            device.read_exact(&mut count)?;
        }
    }

    /// Answers what is in the ring. True: the host has to be signalled.
    fn drain(&mut self, receiver: &mut Receiver) -> io::Result<bool> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut signal = false;
        loop {
            let (id, payload) = match self.inbound.read(&mut buffer) {
                Ok(packet) => match packet.kind {
                    PacketKind::InBand => (packet.transaction_id(), packet.payload.to_vec()),
                    _ => {
                        warn!("a packet of another kind than in-band");
                        continue;
                    }
                },
                Err(ReadError::Empty) => {
                    let drained = self.inbound.finish();
                    signal |= drained.signal;
                    if drained.more {
                        continue;
                    }
                    return Ok(signal);
                }
                Err(ReadError::BufferTooSmall { needed }) => {
                    return Err(broken(format_args!("packet of {needed} bytes")));
                }
                Err(ReadError::Corrupt(error)) => return Err(broken(error)),
            };
            if let Some(answer) = answer(&mut self.session, payload, receiver) {
                self.out.send_in_band(&answer, id, false).map_err(broken)?;
                let _ = self.out.commit();
                signal = true;
            }
        }
    }
}

/// Turns a packet into its answer. None: it gets none.
fn answer(session: &mut Session, mut packet: Vec<u8>, receiver: &mut Receiver) -> Option<Vec<u8>> {
    let mut message = Box::new([0; MAX_BODY]);
    let outcome = session.on_packet(
        &mut packet,
        |versions| format!("versions {} and {}", versions.framework, versions.message),
        |_, body| {
            let request = to_device(body, &mut message)
                .and_then(|length| parse_device(message.get(..length).unwrap_or_default()));
            Ok(match request {
                Ok(request) => (receiver.handle(&request), String::from("done")),
                Err(error) => {
                    warn!("request refused: {error}");
                    (Status::INVALID_ARGUMENT, error.to_string())
                }
            })
        },
    );
    match outcome.event {
        Ok(text) => debug!("{text}"),
        Err(error) => warn!("message refused: {error}"),
    }
    (outcome.reply && packet.len() >= HEADERS_SIZE).then_some(packet)
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::receiver::Rules;
    use super::*;
    use vmbus_proto::ic::fcopy::{self, CopyFlags, Request};
    use vmbus_proto::ic::{negotiate, parse_response, write_request, IcVersion};

    const SIZE: usize = 4 * 4096;

    /// A host on the other side of both rings.
    struct Host {
        out: Producer<Ring<'static>>,
        inbound: Consumer<Ring<'static>>,
        versions: (IcVersion, IcVersion),
    }

    fn pair() -> (Channel<Ring<'static>>, Host) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * SIZE as u64).unwrap();
        let region = MmapRegion::<()>::from_file(FileOffset::new(file, 0), 2 * SIZE).unwrap();
        let region = Box::leak(Box::new(region));
        let ring = |at| Ring(region.get_slice(at * SIZE, SIZE).unwrap());
        // The driver has set them up.
        Producer::init(ring(0)).unwrap();
        Consumer::init(ring(1)).unwrap();
        let channel = Channel::new(ring(0), ring(1)).unwrap();
        let host = Host {
            out: Producer::attach(ring(1)).unwrap(),
            inbound: Consumer::attach(ring(0)).unwrap(),
            versions: (IcVersion::new(0, 0), IcVersion::new(0, 0)),
        };
        (channel, host)
    }

    impl Host {
        fn answer(&mut self) -> Vec<u8> {
            let mut buffer = vec![0; MAX_PACKET];
            let packet = self.inbound.read(&mut buffer).unwrap();
            assert_eq!(packet.kind, PacketKind::InBand);
            let payload = packet.payload.to_vec();
            let _ = self.inbound.finish();
            payload
        }

        fn send(&mut self, packet: &[u8]) {
            self.out.send_in_band(packet, 7, false).unwrap();
            let _ = self.out.commit();
        }
    }

    fn receiver() -> (tempfile::TempDir, Receiver) {
        let directory = tempfile::tempdir().unwrap();
        let receiver = Receiver::new(Rules {
            root: directory.path().into(),
            max_size: u64::MAX,
            mode: 0o644,
        });
        (directory, receiver.unwrap())
    }

    #[test]
    fn a_file_through_the_rings() {
        let (mut channel, mut host) = pair();
        let (directory, mut receiver) = receiver();
        let mut packet = [0; 256];
        let length = negotiate::propose(
            &mut packet,
            1,
            &[vmbus_proto::ic::FRAMEWORK_3_0],
            &[fcopy::VERSION_1_1],
        )
        .unwrap();
        host.send(&packet[..length]);
        assert!(channel.drain(&mut receiver).unwrap());
        host.answer();
        let agreed = channel.session.agreed().unwrap();
        host.versions = (agreed.framework, agreed.message);

        // More than goes round the ring once.
        let data: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let mut ask = |request: &Request<'_>| {
            let mut body = Box::new([0; MAX_BODY]);
            let length = fcopy::write(request, &mut body).unwrap();
            let mut packet = vec![0; HEADERS_SIZE + length];
            let length =
                write_request(&mut packet, agreed, MessageType::FCOPY, 3, &body[..length]).unwrap();
            host.send(&packet[..length]);
            assert!(channel.drain(&mut receiver).unwrap());
            parse_response(&host.answer()).unwrap().0.status
        };
        let start = Request::Start {
            file: "file",
            directory: "/d",
            flags: CopyFlags::CREATE_PATH,
            size: data.len() as u64,
        };
        assert_eq!(ask(&start), Status::OK);
        for (i, piece) in data.chunks(6144).enumerate() {
            let write = Request::Write {
                offset: i as u64 * 6144,
                data: piece,
            };
            assert_eq!(ask(&write), Status::OK);
        }
        assert_eq!(ask(&Request::Complete), Status::OK);
        assert_eq!(ask(&Request::Complete), Status::FAIL);
        assert_eq!(fs::read(directory.path().join("d/file")).unwrap(), data);
    }

    #[test]
    fn nonsense_of_the_host_is_survived_or_ends_the_channel() {
        let (mut channel, mut host) = pair();
        let (_directory, mut receiver) = receiver();
        for packet in [&[][..], &[0; 5], &[0xff; 60], &[0; 6300]] {
            host.send(packet);
            let _ = channel.drain(&mut receiver).unwrap();
        }
        // An index outside of the ring.
        channel
            .inbound
            .memory()
            .store(ControlWord::WriteIndex, 0xffff_fff8);
        assert!(channel.drain(&mut receiver).is_err());
    }

    #[test]
    fn the_device_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert!(Uio::find(root.path()).is_none());
        let maps = root.path().join(DEVICE).join("uio/uio3/maps/map0");
        fs::create_dir_all(&maps).unwrap();
        for (size, good) in [
            ("0x8000\n", true),
            ("0x2000", false),
            ("0x9000", false),
            ("x", false),
        ] {
            fs::write(maps.join("size"), size).unwrap();
            assert_eq!(Uio::find(root.path()).is_some(), good, "{size}");
        }
        fs::write(maps.join("size"), "0x8000").unwrap();
        assert!(Uio::find(root.path()).unwrap().path().ends_with("dev/uio3"));
    }
}
