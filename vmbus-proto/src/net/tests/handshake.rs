// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest's state machines, against hosts with verbs.

use super::super::client::{self, Client, InitError, Sections, Step};
use super::super::nvsp::*;
use super::super::offload::*;
use super::super::rndis::*;
use super::super::rss::RssCapabilities;
use super::super::setup::{self, choose_offloads, Features, Requests, Setup, SetupError};
use crate::msg::GpadlId;
use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::IntoBytes;

fn config() -> client::Config {
    client::Config {
        newest: NvspVersion::V6_1,
        mtu: 1500,
        sriov: true,
        isolated: false,
        receive_bytes: 16 << 20,
        send_bytes: 1 << 20,
    }
}

/// Answers what a client asks, as far as it gets.
struct Host {
    newest: NvspVersion,
    receive: SendReceiveBufferComplete,
    send: SendSendBufferComplete,
    seen: Vec<NvspMessage>,
}

impl Host {
    fn new() -> Self {
        Self {
            newest: NvspVersion::V6_1,
            receive: SendReceiveBufferComplete {
                status: NvspStatus::SUCCESS,
                runs: 1,
                first: ReceiveSections {
                    offset: 0,
                    size: 1728,
                    count: 9000,
                    end: 1728 * 9000,
                },
            },
            send: SendSendBufferComplete {
                status: NvspStatus::SUCCESS,
                section_size: 6144,
            },
            seen: Vec::new(),
        }
    }

    fn answer(&self, request: &NvspMessage) -> NvspMessage {
        match request.message_type {
            MessageType::INIT => {
                let init: Init = request.body_as();
                assert_eq!(init.min, init.max);
                let status = if init.min <= self.newest {
                    NvspStatus::SUCCESS
                } else {
                    NvspStatus::NONE
                };
                let body = InitComplete {
                    version: u32::MAX,
                    max_mdl_chain: 34,
                    status,
                };
                NvspMessage::new(MessageType::INIT_COMPLETE, &body)
            }
            MessageType::SEND_RECV_BUF => {
                NvspMessage::new(MessageType::SEND_RECV_BUF_COMPLETE, &self.receive)
            }
            MessageType::SEND_SEND_BUF => {
                NvspMessage::new(MessageType::SEND_SEND_BUF_COMPLETE, &self.send)
            }
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, client: &mut Client) -> Result<client::Negotiated, InitError> {
        let mut step = client.start()?;
        loop {
            step = match step {
                Step::Request(message) => {
                    self.seen.push(message);
                    client.on_answer(self.answer(&message).as_bytes())?
                }
                Step::Notice(message) => {
                    self.seen.push(message);
                    client.sent()?
                }
                Step::ShareReceive(_) => client.shared(GpadlId(1))?,
                Step::ShareSend(_) => client.shared(GpadlId(2))?,
                Step::Ready(agreed) => return Ok(agreed),
            };
        }
    }
}

#[test]
fn newest_host() {
    let mut host = Host::new();
    let mut client = Client::new(config());
    let agreed = host.run(&mut client).unwrap();
    assert_eq!(agreed.version, NvspVersion::V6_1);
    assert_eq!(
        agreed.receive,
        Sections {
            bytes: 16 << 20,
            size: 1728,
            count: 9000
        }
    );
    assert_eq!(agreed.send.count, (1 << 20) / 6144);
    let types: Vec<_> = host.seen.iter().map(|m| m.message_type).collect();
    assert_eq!(
        types,
        [
            MessageType::INIT,
            MessageType::SEND_NDIS_CONFIG,
            MessageType::SEND_NDIS_VER,
            MessageType::SEND_RECV_BUF,
            MessageType::SEND_SEND_BUF,
        ]
    );
    let ndis: NdisConfig = host.seen[1].body_as();
    assert_eq!(ndis.mtu, 1514);
    assert_eq!(ndis.capabilities.bits(), 0b1010_1100);
    let version: NdisVersion = host.seen[2].body_as();
    assert_eq!((version.major, version.minor), (6, 30));
    let buffer: SendBuffer = host.seen[3].body_as();
    assert_eq!((buffer.gpadl, buffer.id), (GpadlId(1), 0xcafe));
    assert_eq!(
        client.on_answer(&[]),
        Err(InitError::Unexpected(client::State::Ready))
    );
    assert_eq!(client.state(), client::State::Ready);
}

#[test]
fn hosts_of_all_versions() {
    for (tries, version) in NvspVersion::SPOKEN.into_iter().enumerate() {
        let mut host = Host::new();
        host.newest = version;
        let mut client = Client::new(config());
        let agreed = host.run(&mut client).unwrap();
        assert_eq!(agreed.version, version);
        let max = if version <= NvspVersion::V2 { 15 } else { 16 };
        assert_eq!(agreed.receive.bytes, max << 20);
        let configs = host
            .seen
            .iter()
            .filter(|m| m.message_type == MessageType::SEND_NDIS_CONFIG);
        assert_eq!(configs.count(), usize::from(version != NvspVersion::V1));
        let inits = host
            .seen
            .iter()
            .filter(|m| m.message_type == MessageType::INIT);
        assert_eq!(inits.count(), tries + 1);
        let mut isolated = Client::new(client::Config {
            isolated: true,
            ..config()
        });
        let result = host.run(&mut isolated);
        if version == NvspVersion::V6_1 {
            let sriov = host.seen[6].body_as::<NdisConfig>().capabilities;
            assert!(!sriov.contains(NdisCapabilities::SRIOV));
            result.unwrap();
        } else {
            assert_eq!(result, Err(InitError::TooOldForIsolated(version)));
        }
    }
    let mut host = Host::new();
    host.newest = NvspVersion(0);
    let mut client = Client::new(config());
    assert_eq!(host.run(&mut client), Err(InitError::NoCommonVersion));
    assert_eq!(client.state(), client::State::Failed);
}

#[test]
fn attack_sections() {
    let receive = |change: fn(&mut SendReceiveBufferComplete)| {
        let mut host = Host::new();
        change(&mut host.receive);
        let mut client = Client::new(config());
        let result = host.run(&mut client);
        assert_eq!(client.state(), client::State::Failed);
        result.unwrap_err()
    };
    let sections = |size, count| {
        InitError::Sections(Sections {
            bytes: 16 << 20,
            size,
            count,
        })
    };
    assert_eq!(receive(|r| r.first.size = 67), sections(67, 9000));
    assert_eq!(receive(|r| r.first.size = 0), sections(0, 9000));
    assert_eq!(receive(|r| r.first.count = 0), sections(1728, 0));
    assert_eq!(receive(|r| r.first.count = 9710), sections(1728, 9710));
    assert_eq!(
        receive(|r| {
            r.first.size = 1 << 31;
            r.first.count = 2;
        }),
        sections(1 << 31, 2)
    );
    for runs in [0, 2, u32::MAX] {
        let mut host = Host::new();
        host.receive.runs = runs;
        assert_eq!(
            host.run(&mut Client::new(config())),
            Err(InitError::Runs {
                count: runs,
                offset: 0
            })
        );
    }
    assert_eq!(
        receive(|r| r.first.offset = 1),
        InitError::Runs {
            count: 1,
            offset: 1
        }
    );
    assert!(matches!(
        receive(|r| r.status = NvspStatus::FAIL),
        InitError::Refused {
            status: NvspStatus::FAIL,
            ..
        }
    ));
    for size in [0, 67, (1 << 20) + 1, u32::MAX] {
        let mut host = Host::new();
        host.send.section_size = size;
        assert!(matches!(
            host.run(&mut Client::new(config())),
            Err(InitError::Sections(_))
        ));
    }
}

#[test]
fn attack_answers() {
    let mut client = Client::new(config());
    let Ok(Step::Request(request)) = client.start() else {
        panic!("no request");
    };
    let answer = Host::new().answer(&request);
    let mut late = client;
    assert!(matches!(
        late.on_answer(&answer.as_bytes()[..15]),
        Err(InitError::ShortAnswer(_))
    ));
    let mut other = client;
    let wrong = NvspMessage::new(MessageType::SEND_SEND_BUF_COMPLETE, &[1u32, 6144]);
    assert!(matches!(
        other.on_answer(wrong.as_bytes()),
        Err(InitError::NotAnAnswer { .. })
    ));
    let mut idle = Client::new(config());
    for result in [
        idle.on_answer(answer.as_bytes()),
        idle.sent(),
        idle.shared(GpadlId(1)),
    ] {
        assert_eq!(result, Err(InitError::Unexpected(client::State::Idle)));
    }
}

#[test]
fn sub_channels() {
    let answer = |status, count| {
        NvspMessage::new(
            MessageType::SUBCHANNEL,
            &SubchannelComplete { status, count },
        )
    };
    let granted =
        |status, count| client::subchannels_granted(answer(status, count).as_bytes(), 7).ok();
    assert_eq!(granted(NvspStatus::SUCCESS, 7), Some(7));
    assert_eq!(granted(NvspStatus::SUCCESS, 0), Some(0));
    assert_eq!(granted(NvspStatus::SUCCESS, 8), None);
    assert_eq!(granted(NvspStatus::FAIL, 7), None);
    let request: SubchannelRequest = client::request_subchannels(7).body_as();
    assert_eq!((request.operation.0, request.count), (1, 7));
    assert!(client::subchannels_granted(&[133, 0, 0, 0, 1, 0, 0, 0], 7).is_err());
}

/// A device that has everything.
fn all_offloads() -> Offload {
    let flags = ChecksumFlags::from_bits_retain;
    let mut offload = Offload::for_query(NvspVersion::V6_1);
    offload.checksum.ipv4_tx = flags(0x155);
    offload.checksum.ipv6_tx = flags(0x55);
    offload.lso_v2 = LargeSendOffload {
        ipv4_encapsulation: 2,
        ipv4_max_size: 0xf53c,
        ipv4_min_segments: 2,
        ipv6_encapsulation: 2,
        ipv6_max_size: 0xf000,
        ipv6_min_segments: 2,
        ipv6_options: flags(5),
    };
    offload.rsc_ipv4 = 1;
    offload.rsc_ipv6 = 1;
    offload
}

#[test]
fn offloads_chosen_as_linux_does() {
    let offload = all_offloads();
    let choice = choose_offloads(&offload, true);
    assert_eq!(choice.features.bits(), 0x7f);
    assert_eq!(choice.lso_max_size, 0xf000);
    let parameters = choice.parameters;
    assert_eq!(parameters.ipv4, ChecksumSetting::DISABLED);
    assert_eq!(parameters.udp_ipv6, ChecksumSetting::TX_RX);
    assert_eq!(parameters.lso_v2_ipv6, Setting::ENABLED);
    assert_eq!(parameters.rsc_ipv4, Setting::ENABLED);
    let off = choose_offloads(&offload, false);
    assert!(off.features.contains(Features::RSC));
    assert_eq!(off.parameters.rsc_ipv6, Setting::DISABLED);
    // TCP without options: nothing for IPv4.
    let mut poor = offload;
    poor.checksum.ipv4_tx = ChecksumFlags::TCP | ChecksumFlags::UDP;
    let choice = choose_offloads(&poor, true);
    assert_eq!(
        choice.features,
        Features::TX_TCP6 | Features::TX_UDP6 | Features::LSO6 | Features::RSC
    );
    assert_eq!(choice.parameters.udp_ipv4, ChecksumSetting::NO_CHANGE);
    poor.lso_v2.ipv6_options = ChecksumFlags::TCP_OPTIONS;
    poor.rsc_ipv6 = 0;
    let choice = choose_offloads(&poor, true);
    assert_eq!(choice.features, Features::TX_TCP6 | Features::TX_UDP6);
    assert_eq!(choice.lso_max_size, u32::MAX);
    assert_eq!(choice.parameters.rsc_ipv4, Setting::NO_CHANGE);
}

/// Answers of a device by OID.
fn device_answer(oid: Oid) -> (RndisStatus, Vec<u8>) {
    let value = match oid {
        Oid::GEN_MAXIMUM_FRAME_SIZE => 9000u32.to_le_bytes().into(),
        Oid::IEEE_802_3_PERMANENT_ADDRESS => std::vec![2, 1, 2, 3, 4, 5],
        Oid::GEN_FRIENDLY_NAME => std::vec![b'n', 0, b'0', 0],
        Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => all_offloads().as_bytes().into(),
        Oid::GEN_MEDIA_CONNECT_STATUS => 1u32.to_le_bytes().into(),
        Oid::GEN_LINK_SPEED => 100_000_000u32.to_le_bytes().into(),
        Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
            let mut capabilities = RssCapabilities::for_query();
            capabilities.queues = 1000;
            capabilities.table_size = 128;
            capabilities.wire_bytes().into()
        }
        other => panic!("{other:?}"),
    };
    (RndisStatus::SUCCESS, value)
}

fn run_setup(
    version: NvspVersion,
    change: &mut dyn FnMut(Oid, &mut RndisStatus, &mut Vec<u8>),
) -> Result<(setup::Device, Vec<Oid>, Vec<u8>), SetupError> {
    let mut setup = Setup::new(setup::Config { version, rsc: true });
    let mut requests = Requests::default();
    let mut out = [0; setup::MAX_REQUEST];
    let mut asked = Vec::new();
    let mut friendly = Vec::new();
    let mut len = setup.start(&mut requests, &mut out)?;
    loop {
        let mut answer = [0; 512];
        let size = match GuestMessage::parse(&out[..len]).unwrap() {
            GuestMessage::Initialize(request) => {
                let body = InitializeComplete {
                    request_id: request.request_id,
                    max_packets: 8,
                    alignment_shift: 3,
                    ..InitializeComplete::default()
                };
                write_message(&mut answer, RndisType::INIT_C, &body, &[])
            }
            GuestMessage::Query {
                request_id, oid, ..
            } => {
                asked.push(oid);
                let (mut status, mut info) = device_answer(oid);
                change(oid, &mut status, &mut info);
                write_query_complete(&mut answer, request_id, status, &info)
            }
            GuestMessage::Set {
                request_id,
                oid,
                info,
            } => {
                asked.push(oid);
                OffloadParameters::parse(info).unwrap();
                let mut status = RndisStatus::SUCCESS;
                change(oid, &mut status, &mut Vec::new());
                let body = StatusComplete { request_id, status };
                write_message(&mut answer, RndisType::SET_C, &body, &[])
            }
            other => panic!("{other:?}"),
        }
        .unwrap();
        let message = HostMessage::parse(&answer[..size]).unwrap();
        // An indication in between disturbs nothing.
        let indication = HostMessage::Indicate {
            status: RndisStatus::MEDIA_CONNECT,
            buffer: &[],
        };
        assert_eq!(
            setup.on_message(&mut requests, &indication, &mut out),
            Ok(setup::Step::NotMine)
        );
        match setup.on_message(&mut requests, &message, &mut out)? {
            setup::Step::Send { len: next, name } => {
                if let Some(name) = name {
                    friendly = name.to_vec();
                }
                len = next;
            }
            setup::Step::Ready(device) => return Ok((device, asked, friendly)),
            setup::Step::NotMine => panic!("not mine"),
        }
        // Nor does the same answer once more.
        let mut again = setup;
        assert_eq!(
            again.on_message(&mut requests, &message, &mut [0; 256]),
            Ok(setup::Step::NotMine)
        );
    }
}

#[test]
fn a_device_that_has_everything() {
    let (device, asked, name) = run_setup(NvspVersion::V6_1, &mut |_, _, _| {}).unwrap();
    assert_eq!(
        asked,
        [
            Oid::GEN_MAXIMUM_FRAME_SIZE,
            Oid::IEEE_802_3_PERMANENT_ADDRESS,
            Oid::GEN_FRIENDLY_NAME,
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
            Oid::TCP_OFFLOAD_PARAMETERS,
            Oid::GEN_MEDIA_CONNECT_STATUS,
            Oid::GEN_LINK_SPEED,
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
        ]
    );
    assert_eq!(name, [b'n', 0, b'0', 0]);
    assert_eq!(device.mac, [2, 1, 2, 3, 4, 5]);
    assert_eq!((device.max_packets, device.alignment), (8, 8));
    assert_eq!(device.max_mtu, Some(9000));
    assert!(!device.link_up);
    assert_eq!(device.speed, Some(100_000_000));
    assert_eq!(device.rss.unwrap().queues, 64);
    let (old, asked, _) = run_setup(NvspVersion::V4, &mut |_, _, _| {}).unwrap();
    assert_eq!(asked.len(), 6);
    assert_eq!((old.speed, old.rss), (None, None));
}

#[test]
fn a_device_that_refuses() {
    let without = |missing: Oid| {
        run_setup(NvspVersion::V6_1, &mut |oid, status, info| {
            if oid == missing {
                *status = RndisStatus::NOT_SUPPORTED;
                info.clear();
            }
        })
        .map(|(device, _, _)| device)
    };
    assert_eq!(without(Oid::GEN_MAXIMUM_FRAME_SIZE).unwrap().max_mtu, None);
    assert_eq!(without(Oid::GEN_LINK_SPEED).unwrap().speed, None);
    assert!(without(Oid::GEN_MEDIA_CONNECT_STATUS).unwrap().link_up);
    assert_eq!(
        without(Oid::GEN_RECEIVE_SCALE_CAPABILITIES).unwrap().rss,
        None
    );
    without(Oid::GEN_FRIENDLY_NAME).unwrap();
    for needed in [
        Oid::IEEE_802_3_PERMANENT_ADDRESS,
        Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
        Oid::TCP_OFFLOAD_PARAMETERS,
    ] {
        assert!(matches!(
            without(needed),
            Err(SetupError::Refused {
                status: RndisStatus::NOT_SUPPORTED,
                ..
            })
        ));
    }
    let short = run_setup(NvspVersion::V6_1, &mut |_, _, info| info.truncate(5));
    assert_eq!(short.unwrap_err(), SetupError::Mac { len: 5 });
}

#[test]
fn request_ids_wrap_past_zero() {
    let mut requests = Requests::default();
    assert_eq!(requests.begin(), 1);
    let answer = |request_id| {
        HostMessage::SetComplete(StatusComplete {
            request_id,
            status: RndisStatus::SUCCESS,
        })
    };
    assert!(!requests.is_answer(&answer(0)));
    assert!(!requests.is_answer(&answer(2)));
    assert!(requests.is_answer(&answer(1)));
    assert!(!requests.is_answer(&answer(1)), "twice");
}

proptest! {
    #[test]
    fn hostile_hosts(answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..48), 1..12), types in any::<[bool; 12]>()) {
        let mut client = Client::new(config());
        let Ok(mut step) = client.start() else { return Ok(()); };
        for (mut answer, right) in answers.into_iter().zip(types) {
            let next = match step {
                Step::Request(request) => {
                    if right && answer.len() >= 4 {
                        answer[..4].copy_from_slice(&(request.message_type.0 + 1).to_le_bytes());
                    }
                    client.on_answer(&answer)
                }
                Step::Notice(_) => client.sent(),
                Step::ShareReceive(bytes) | Step::ShareSend(bytes) => {
                    prop_assert!(bytes > 0 && bytes % 4096 == 0);
                    client.shared(GpadlId(7))
                }
                Step::Ready(agreed) => {
                    for sections in [agreed.receive, agreed.send] {
                        prop_assert!(u64::from(sections.size) * u64::from(sections.count) <= sections.bytes.into());
                        prop_assert!(sections.count > 0);
                    }
                    return Ok(());
                }
            };
            match next {
                Ok(next) => step = next,
                Err(_) => {
                    prop_assert_eq!(client.state(), client::State::Failed);
                    return Ok(());
                }
            }
        }
    }
}
