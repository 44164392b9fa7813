// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest's side of RNDIS after [`super::client`]: what the device is and can do, and what to offload to it.
//!
//! [`Setup`] decides, its owner does the I/O: it sends the message written for it as an RNDIS control message, waits for the
//! answer, a message of its own in the receive buffer, and hands that in. The order is that of Linux (`rndis_filter.c`,
//! `rndis_filter_device_add`): hosts need not know another one.

use core::fmt;
use zerocopy::FromBytes;

use super::nvsp::{NvspVersion, MAX_CHANNELS};
use super::offload::{
    BadObject, ChecksumFlags, ChecksumSetting, Offload, OffloadParameters, Setting,
    ENCAPSULATION_802_3,
};
use super::rndis::{
    write_message, write_oid_request, HostMessage, Initialize, Oid, RndisStatus, RndisType,
    GUEST_MAX_TRANSFER, MAJOR_VERSION,
};
use super::rss::RssCapabilities;
use super::MacAddress;

/// Bytes that [`Setup`] writes at most.
pub const MAX_REQUEST: usize = 8 + 20 + core::mem::size_of::<Offload>();

/// Numbers requests and knows the answer to the last one. One request at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    last: u32,
    waiting: bool,
}

impl Requests {
    /// The id of the next request, not 0. An answer to an older one no longer counts.
    pub fn begin(&mut self) -> u32 {
        self.last = match self.last.wrapping_add(1) {
            0 => 1,
            next => next,
        };
        self.waiting = true;
        self.last
    }

    /// Whether `message` answers the request begun last; once.
    pub fn is_answer(&mut self, message: &HostMessage<'_>) -> bool {
        // RESET_C has no id.
        let matches = match message {
            HostMessage::ResetComplete(_) => true,
            other => other.request_id() == Some(self.last),
        };
        let answer = self.waiting && matches;
        if answer {
            self.waiting = false;
        }
        answer
    }
}

/// What the owner chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The version agreed on.
    pub version: NvspVersion,
    /// Receive segments coalesced if the host can (LRO).
    pub rsc: bool,
}

wire_flags! {
    /// What the device does for the guest: not a wire format, but made of bits as well.
    pub struct Features(u32) {
        /// Fills in checksums of TCP over IPv4.
        const TX_TCP4 = 1 << 0;
        /// Fills in checksums of UDP over IPv4.
        const TX_UDP4 = 1 << 1;
        /// Fills in checksums of TCP over IPv6.
        const TX_TCP6 = 1 << 2;
        /// Fills in checksums of UDP over IPv6.
        const TX_UDP6 = 1 << 3;
        /// Cuts up segments of IPv4.
        const LSO4 = 1 << 4;
        /// Cuts up segments of IPv6.
        const LSO6 = 1 << 5;
        /// Can coalesce received segments.
        const RSC = 1 << 6;
    }
}

/// What the device is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Packets that one message may carry, at least one.
    pub max_packets: u32,
    /// Packets that share a message start at multiples of this, a power of two from 1 to 4096.
    pub alignment: u32,
    /// Largest MTU, if the host says.
    pub max_mtu: Option<u32>,
    /// Its address.
    pub mac: MacAddress,
    /// What it does for the guest.
    pub features: Features,
    /// Bytes of a segment to cut up at most; `u32::MAX` when it cuts none.
    pub lso_max_size: u32,
    /// Whether the link is up. Up when the host does not say.
    pub link_up: bool,
    /// Speed in units of 100 bit/s, if the host says.
    pub speed: Option<u32>,
    /// Receive-side scaling, with two channels at least. `queues` is at most [`MAX_CHANNELS`].
    pub rss: Option<RssCapabilities>,
}

/// What the set-up waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing sent yet.
    Idle,
    /// INIT sent.
    Initialize,
    /// Largest MTU asked for.
    MaxFrame,
    /// Address asked for.
    Mac,
    /// Name asked for.
    Name,
    /// Offloads asked for.
    OffloadQuery,
    /// Offloads set.
    OffloadSet,
    /// Link state asked for.
    Link,
    /// Speed asked for.
    Speed,
    /// Receive-side scaling asked for.
    Rss,
    /// Done. Frames come once a packet filter has been set.
    Ready,
    /// Close the channel.
    Failed,
}

/// What the owner is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[allow(clippy::large_enum_variant)] // Lives on the stack of the caller.
pub enum Step<'m> {
    /// Send the message of this many bytes. `name` is the device's name for users in UTF-16, when that has just come.
    Send {
        /// Bytes written.
        len: usize,
        /// The name.
        name: Option<&'m [u8]>,
    },
    /// Done.
    Ready(Device),
    /// Not the answer waited for: an indication, or an answer to something else.
    NotMine,
}

/// Why the set-up failed. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The host refused something that must be.
    Refused {
        /// The step.
        state: State,
        /// Its reason.
        status: RndisStatus,
    },
    /// The answer is of another kind than the question.
    NotAnAnswer(State),
    /// The address has not six bytes.
    Mac {
        /// Bytes.
        len: usize,
    },
    /// What the host says about offloads is malformed.
    Offload(BadObject),
    /// The owner gave too small a buffer: [`MAX_REQUEST`].
    Buffer,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { state, status } => write!(f, "{state:?}: refused with {status:?}"),
            Self::NotAnAnswer(state) => write!(f, "{state:?}: answer of another kind"),
            Self::Mac { len } => write!(f, "MAC address of {len} bytes"),
            Self::Offload(e) => write!(f, "offloads: {e}"),
            Self::Buffer => f.write_str("no room for a request"),
        }
    }
}

impl core::error::Error for SetupError {}

/// The guest's side of RNDIS until frames can flow.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    config: Config,
    state: State,
    device: Device,
}

impl Setup {
    /// A set-up to be started once NVSP is ready.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Idle,
            device: Device {
                max_packets: 1,
                alignment: 8,
                max_mtu: None,
                mac: [0; 6],
                features: Features::empty(),
                lso_max_size: u32::MAX,
                link_up: true,
                speed: None,
                rss: None,
            },
        }
    }

    /// What the set-up waits for.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Writes the first message to `out` and returns its size.
    ///
    /// # Errors
    /// [`SetupError::Buffer`].
    pub fn start(&mut self, requests: &mut Requests, out: &mut [u8]) -> Result<usize, SetupError> {
        *self = Self::new(self.config);
        self.state = State::Initialize;
        let body = Initialize {
            request_id: requests.begin(),
            major: MAJOR_VERSION,
            minor: 0,
            max_transfer_size: GUEST_MAX_TRANSFER,
        };
        write_message(out, RndisType::INIT, &body, &[]).ok_or(SetupError::Buffer)
    }

    /// Takes a message from the host and writes the next one to `out`.
    ///
    /// # Errors
    /// [`SetupError`]: the set-up is over.
    pub fn on_message<'m>(
        &mut self,
        requests: &mut Requests,
        message: &HostMessage<'m>,
        out: &mut [u8],
    ) -> Result<Step<'m>, SetupError> {
        if !requests.is_answer(message) {
            return Ok(Step::NotMine);
        }
        let step = self.advance(requests, message, out);
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    fn advance<'m>(
        &mut self,
        requests: &mut Requests,
        message: &HostMessage<'m>,
        out: &mut [u8],
    ) -> Result<Step<'m>, SetupError> {
        let state = self.state;
        // Of an object that the host does not have nothing is said.
        let (status, info): (RndisStatus, &'m [u8]) = match (state, message) {
            (State::Initialize, HostMessage::InitializeComplete(answer)) => {
                self.device.max_packets = answer.max_packets.max(1);
                self.device.alignment = 1 << answer.alignment_shift.min(12);
                (answer.status, &[])
            }
            (State::OffloadSet, HostMessage::SetComplete(answer)) => (answer.status, &[]),
            (
                State::Initialize | State::OffloadSet | State::Idle | State::Ready | State::Failed,
                _,
            ) => return Err(SetupError::NotAnAnswer(state)),
            (_, HostMessage::QueryComplete { status, info, .. }) => (*status, info),
            _ => return Err(SetupError::NotAnAnswer(state)),
        };
        let success = status == RndisStatus::SUCCESS;
        let refused = SetupError::Refused { state, status };
        let number = if success {
            u32::read_from_prefix(info).ok().map(|(number, _)| number)
        } else {
            None
        };
        let mut ask = |next: State, oid: Oid, data: &[u8]| {
            self.state = next;
            write_oid_request(out, RndisType::QUERY, requests.begin(), oid, data)
                .map(|len| Step::Send { len, name: None })
                .ok_or(SetupError::Buffer)
        };
        match state {
            State::Initialize if !success => Err(refused),
            State::Initialize => ask(State::MaxFrame, Oid::GEN_MAXIMUM_FRAME_SIZE, &[]),
            State::MaxFrame => {
                self.device.max_mtu = number;
                ask(State::Mac, Oid::IEEE_802_3_PERMANENT_ADDRESS, &[])
            }
            State::Mac if !success => Err(refused),
            State::Mac => {
                self.device.mac = *info
                    .first_chunk()
                    .ok_or(SetupError::Mac { len: info.len() })?;
                ask(State::Name, Oid::GEN_FRIENDLY_NAME, &[])
            }
            State::Name => {
                let query = Offload::for_query(self.config.version);
                let step = ask(
                    State::OffloadQuery,
                    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
                    query.sized_bytes(),
                )?;
                Ok(match step {
                    Step::Send { len, .. } => Step::Send {
                        len,
                        name: (success && !info.is_empty()).then_some(info),
                    },
                    other => other,
                })
            }
            State::OffloadQuery if !success => Err(refused),
            State::OffloadQuery => {
                let offload = Offload::parse(info).map_err(SetupError::Offload)?;
                let choice = choose_offloads(&offload, self.config.rsc);
                self.device.features = choice.features;
                self.device.lso_max_size = choice.lso_max_size;
                self.state = State::OffloadSet;
                let parameters = choice.parameters.for_version(self.config.version);
                let len = write_oid_request(
                    out,
                    RndisType::SET,
                    requests.begin(),
                    Oid::TCP_OFFLOAD_PARAMETERS,
                    parameters.sized_bytes(),
                )
                .ok_or(SetupError::Buffer)?;
                Ok(Step::Send { len, name: None })
            }
            State::OffloadSet if !success => Err(refused),
            State::OffloadSet => ask(State::Link, Oid::GEN_MEDIA_CONNECT_STATUS, &[]),
            State::Link => {
                self.device.link_up = number.unwrap_or(0) == 0;
                if self.config.version < NvspVersion::V5 {
                    return Ok(self.ready());
                }
                ask(State::Speed, Oid::GEN_LINK_SPEED, &[])
            }
            State::Speed => {
                self.device.speed = number;
                let query = RssCapabilities::for_query();
                ask(
                    State::Rss,
                    Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
                    query.wire_bytes(),
                )
            }
            State::Rss => {
                // Without, or with something malformed, the primary channel carries everything.
                self.device.rss = RssCapabilities::parse(info)
                    .ok()
                    .filter(|capabilities| success && capabilities.queues >= 2)
                    .map(|capabilities| RssCapabilities {
                        queues: capabilities.queues.min(MAX_CHANNELS),
                        ..capabilities
                    });
                Ok(self.ready())
            }
            State::Idle | State::Ready | State::Failed => Err(SetupError::NotAnAnswer(state)),
        }
    }

    fn ready<'m>(&mut self) -> Step<'m> {
        self.state = State::Ready;
        Step::Ready(self.device)
    }
}

/// What to ask of a device with these offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadChoice {
    /// What to set; [`OffloadParameters::for_version`] makes it ready.
    pub parameters: OffloadParameters,
    /// What the device then does for the guest; RSC when it can, whether it is to or not.
    pub features: Features,
    /// Bytes of a segment to cut up at most; `u32::MAX` when it cuts none.
    pub lso_max_size: u32,
}

/// Chooses as Linux does (`rndis_filter.c`, `rndis_netdev_set_hwcaps`): TCP with all its options or not at all, UDP and
/// large send with TCP only; nothing for the header of IPv4, which the kernel fills in and checks always.
#[must_use]
pub fn choose_offloads(offload: &Offload, rsc: bool) -> OffloadChoice {
    let mut choice = OffloadChoice {
        parameters: OffloadParameters {
            ipv4: ChecksumSetting::DISABLED,
            ..OffloadParameters::default()
        },
        features: Features::empty(),
        lso_max_size: u32::MAX,
    };
    let parameters = &mut choice.parameters;
    let tx4 = offload.checksum.ipv4_tx;
    let tx6 = offload.checksum.ipv6_tx;
    let lso = &offload.lso_v2;
    if tx4.contains(ChecksumFlags::TCP | ChecksumFlags::TCP_OPTIONS) {
        choice.features |= Features::TX_TCP4;
        parameters.tcp_ipv4 = ChecksumSetting::TX_RX;
        if lso.ipv4_encapsulation & ENCAPSULATION_802_3 != 0 {
            choice.features |= Features::LSO4;
            parameters.lso_v2_ipv4 = Setting::ENABLED;
            choice.lso_max_size = choice.lso_max_size.min(lso.ipv4_max_size);
        }
        if tx4.contains(ChecksumFlags::UDP) {
            choice.features |= Features::TX_UDP4;
            parameters.udp_ipv4 = ChecksumSetting::TX_RX;
        }
    }
    let options = ChecksumFlags::IP_OPTIONS | ChecksumFlags::TCP_OPTIONS;
    if tx6.contains(ChecksumFlags::TCP | options) {
        choice.features |= Features::TX_TCP6;
        parameters.tcp_ipv6 = ChecksumSetting::TX_RX;
        if lso.ipv6_encapsulation & ENCAPSULATION_802_3 != 0 && lso.ipv6_options.contains(options) {
            choice.features |= Features::LSO6;
            parameters.lso_v2_ipv6 = Setting::ENABLED;
            choice.lso_max_size = choice.lso_max_size.min(lso.ipv6_max_size);
        }
        if tx6.contains(ChecksumFlags::UDP) {
            choice.features |= Features::TX_UDP6;
            parameters.udp_ipv6 = ChecksumSetting::TX_RX;
        }
    }
    if offload.has_rsc() {
        choice.features |= Features::RSC;
        parameters.rsc_ipv4 = Setting::from_bool(rsc);
        parameters.rsc_ipv6 = Setting::from_bool(rsc);
    }
    choice
}
