// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The other end of the network of a measurement: a machine that takes, gives and echoes, on a socket that any NIC can be
//! plugged into. The same for all stacks.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, Result};
use guest_agent::{net_port, NET_BURST};
use hv_net::{Backend, Peer as Plug, Sent, Stream};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

/// The peer's address; the guest takes another one of the same /24.
pub const ADDRESS: [u8; 4] = [10, 9, 0, 1];
/// The guest's.
pub const GUEST: &str = "10.9.0.2/24";
const MAC: [u8; 6] = [0x02, 0x15, 0x5d, 0, 0, 0xfe];
/// Bytes under way in a TCP connection, each way.
const TCP_BUFFER: usize = 1 << 20;
/// Nothing is waited for longer.
const IDLE: Duration = Duration::from_millis(200);

/// Runs until dropped.
pub struct Peer {
    stopping: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Listens at `path`, with an MTU.
    ///
    /// # Errors
    /// Nobody can listen there.
    pub fn listen(path: &Path, mtu: usize) -> Result<Self> {
        let (wake, woken) = mpsc::sync_channel(1);
        let mut stream = Stream::new(Plug::Listen(path.into()))?;
        let waker = wake.clone();
        let start = stream.start(Arc::new(move || {
            // One is enough, and nobody may be there any more.
            if let Err(TrySendError::Full(()) | TrySendError::Disconnected(())) = waker.try_send(())
            {
            }
        }));
        start.map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let wire = Wire {
            stream,
            blocked: VecDeque::new(),
            mtu,
        };
        let thread = std::thread::Builder::new()
            .name("bench-peer".into())
            .spawn(move || Machine::new(wire).run(&woken, &stop))?;
        Ok(Self {
            stopping,
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // It is awake if this fails.
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The socket as smoltcp wants it.
struct Wire {
    stream: Stream,
    /// Frames that the socket had no room for.
    blocked: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Wire {
    /// Sends what was blocked. `false`: there is still no room.
    fn unblock(&mut self) -> bool {
        while let Some(frame) = self.blocked.front() {
            if self.stream.send(frame) == Sent::Full {
                return false;
            }
            self.blocked.pop_front();
        }
        true
    }
}

struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Tx<'w>(&'w mut Wire);

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        if !self.0.unblock() || self.0.stream.send(&frame) == Sent::Full {
            self.0.blocked.push_back(frame);
        }
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Rx, Tx<'_>)> {
        let mut frame = Vec::new();
        self.stream
            .receive(&mut frame)
            .then_some((Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tx<'_>> {
        self.unblock().then_some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// The machine: its sockets and how far they are.
struct Machine {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    echo: SocketHandle,
    sink: SocketHandle,
    source: SocketHandle,
    sinks: [Sink; CONNECTIONS],
    sources: [Source; CONNECTIONS],
}

/// TCP connections at a time to each port, those that are just ending included.
const CONNECTIONS: usize = 3;

/// A socket for a connection that brings.
struct Sink {
    handle: SocketHandle,
    /// Bytes that it has brought; `None` once that was said.
    taken: Option<u64>,
}

/// A socket for a connection that is given something.
struct Source {
    handle: SocketHandle,
    /// Bytes that are to come yet, once asked.
    to_give: Option<u64>,
}

fn udp_socket(port: u16) -> udp::Socket<'static> {
    // Bursts of the largest datagrams, twice over.
    let buffer = || {
        udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; 2 * NET_BURST as usize],
            vec![0; 2 * NET_BURST as usize * 1500],
        )
    };
    let mut socket = udp::Socket::new(buffer(), buffer());
    // Port and state are right: it is new.
    let _ = socket.bind(port);
    socket
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
    tcp::Socket::new(buffer(), buffer())
}

impl Machine {
    fn new(mut wire: Wire) -> Self {
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut wire, Instant::now());
        interface.update_ip_addrs(|addresses| {
            let [a, b, c, d] = ADDRESS;
            // There is room for at least one.
            let _ = addresses.push(IpCidr::new(IpAddress::v4(a, b, c, d), 24));
        });
        let mut sockets = SocketSet::new(Vec::new());
        Self {
            echo: sockets.add(udp_socket(net_port::ECHO)),
            sink: sockets.add(udp_socket(net_port::SINK)),
            source: sockets.add(udp_socket(net_port::SOURCE)),
            sinks: std::array::from_fn(|_| Sink {
                handle: sockets.add(tcp_socket()),
                taken: Some(0),
            }),
            sources: std::array::from_fn(|_| Source {
                handle: sockets.add(tcp_socket()),
                to_give: None,
            }),
            wire,
            interface,
            sockets,
        }
    }

    fn run(mut self, woken: &Receiver<()>, stopping: &AtomicBool) {
        while !stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            let busy = self.serve();
            // What has just been written goes out at once.
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            self.wire.stream.flush();
            if busy {
                continue;
            }
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(IDLE, |delay| Duration::from(delay).min(IDLE));
            if !delay.is_zero() {
                if let Err(RecvTimeoutError::Disconnected) = woken.recv_timeout(delay) {
                    return;
                }
            } else if !self.wire.blocked.is_empty() {
                // There is something to send, but no room: that is told.
                let _ = woken.recv_timeout(IDLE);
            }
        }
    }

    /// Does what can be done on the sockets. Whether there may be more to do at once.
    fn serve(&mut self) -> bool {
        let mut busy = false;
        let echo = self.sockets.get_mut::<udp::Socket>(self.echo);
        while echo.can_recv() && echo.can_send() {
            busy = true;
            if let Ok((data, from)) = echo.recv() {
                let data = data.to_vec();
                let _ = echo.send_slice(&data, from.endpoint);
            }
        }
        let sink = self.sockets.get_mut::<udp::Socket>(self.sink);
        while sink.can_recv() && sink.can_send() {
            busy = true;
            let Ok((data, from)) = sink.recv() else { break };
            let Some(number) = data.first_chunk().copied() else {
                continue;
            };
            if u64::from_le_bytes(number) % NET_BURST == NET_BURST - 1 {
                let _ = sink.send_slice(&number, from.endpoint);
            }
        }
        let source = self.sockets.get_mut::<udp::Socket>(self.source);
        while source.can_recv() && source.can_send() {
            busy = true;
            let Ok((data, from)) = source.recv() else {
                break;
            };
            let size = data.first_chunk().map_or(8, |s| u64::from_le_bytes(*s));
            let datagram = vec![0x5a; size.clamp(8, 1472) as usize];
            for _ in 0..NET_BURST {
                let _ = source.send_slice(&datagram, from.endpoint);
            }
        }
        for sink in &mut self.sinks {
            busy |= sink.serve(&mut self.sockets);
        }
        for source in &mut self.sources {
            busy |= source.serve(&mut self.sockets);
        }
        busy
    }
}

impl Sink {
    fn serve(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let socket = sockets.get_mut::<tcp::Socket>(self.handle);
        if !socket.is_open() {
            // The port is not 0 and the socket is closed.
            let _ = socket.listen(net_port::SINK);
            self.taken = Some(0);
            return false;
        }
        let mut busy = false;
        while socket.can_recv() {
            busy = true;
            let len = socket.recv(|data| (data.len(), data.len())).unwrap_or(0);
            self.taken = self.taken.map(|taken| taken + len as u64);
        }
        // The guest has said all: so do we.
        if socket.state() == tcp::State::CloseWait {
            if let Some(taken) = self.taken.take() {
                let _ = socket.send_slice(&taken.to_le_bytes());
                socket.close();
                busy = true;
            }
        }
        busy
    }
}

impl Source {
    fn serve(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let socket = sockets.get_mut::<tcp::Socket>(self.handle);
        if !socket.is_open() {
            let _ = socket.listen(net_port::SOURCE);
            self.to_give = None;
            return false;
        }
        let mut busy = false;
        if self.to_give.is_none() && socket.recv_queue() >= 8 {
            let mut wanted = [0; 8];
            if socket.recv_slice(&mut wanted) == Ok(8) {
                self.to_give = Some(u64::from_le_bytes(wanted));
            }
        }
        while let Some(left) = self.to_give.filter(|left| *left > 0) {
            if !socket.can_send() {
                break;
            }
            let given = socket.send(|room| {
                let len = room.len().min(left.min(1 << 20) as usize);
                room[..len].fill(0x5a);
                (len, len as u64)
            });
            busy = true;
            self.to_give = Some(left - given.unwrap_or(left));
        }
        if self.to_give == Some(0) {
            socket.close();
            // The next connection is not to wait until this one is forgotten.
            if socket.state() == tcp::State::TimeWait {
                socket.abort();
                busy = true;
            }
        }
        busy
    }
}
