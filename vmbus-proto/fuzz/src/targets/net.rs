// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The network card.

use vmbus_proto::msg::GpadlId;
use vmbus_proto::net::client::{subchannels_granted, Client, Config as ClientConfig, Step};
use vmbus_proto::net::nvsp::{Completion, Notice, NvspVersion};
use vmbus_proto::net::offload::Offload;
use vmbus_proto::net::packet::{ReceivedPacket, Receiver};
use vmbus_proto::net::rndis::{GuestMessage, HostMessage, LinkEvent, ParsedParameter};
use vmbus_proto::net::rss::{RssCapabilities, RssSetting};
use vmbus_proto::net::server::{Config as ServerConfig, Server, Verdict};
use vmbus_proto::net::setup::{
    Config as SetupConfig, Requests, Setup, Step as SetupStep, MAX_REQUEST,
};

use super::{message, packets, steps};

/// Largest message here, in bytes.
const MESSAGE: usize = 2048;

const VERSIONS: [NvspVersion; 5] = [
    NvspVersion::V1,
    NvspVersion::V2,
    NvspVersion::V4,
    NvspVersion::V5,
    NvspVersion::V6_1,
];

/// NVSP messages of a hostile host.
pub fn client(data: &[u8]) {
    let mut client = Client::new(ClientConfig {
        newest: NvspVersion::V6_1,
        mtu: 1500,
        sriov: false,
        isolated: false,
        receive_bytes: 16 << 20,
        send_bytes: 1 << 20,
    });
    let mut last = client.start();
    steps(data, |input| {
        match input.int_in_range(0..=3)? {
            0 => last = client.on_answer(message(input, 64)?),
            1 => {
                last = match &last {
                    Ok(Step::Notice(_)) => client.sent(),
                    Ok(Step::ShareReceive(_) | Step::ShareSend(_)) => client.shared(GpadlId(1)),
                    _ => client.on_answer(message(input, 64)?),
                }
            }
            2 => {
                let version = *input.choose(&VERSIONS)?;
                let _ = Notice::parse(version, message(input, MESSAGE)?);
            }
            _ => {
                let bytes = message(input, MESSAGE)?;
                let _ = Completion::parse(bytes);
                let asked = input.arbitrary()?;
                if let Ok(count) = subchannels_granted(bytes, asked) {
                    assert!(count <= asked);
                }
            }
        }
        if let Ok(Step::Ready(agreed)) = &last {
            for sections in [agreed.receive, agreed.send] {
                let end = u64::from(sections.size) * u64::from(sections.count);
                assert!(end <= sections.bytes.into());
            }
        }
        Ok(())
    });
}

/// NVSP messages of a hostile guest.
pub fn server(data: &[u8]) {
    let mut server = Server::new(ServerConfig {
        newest: NvspVersion::V6_1,
        max_mtu: 65_521,
        max_sub_channels: 8,
    });
    packets(data, 64, |index, packet| {
        match server.on_packet(index, packet) {
            Verdict::SubChannels { count, .. } => assert!(count <= 8),
            Verdict::ReceiveBuffer(_) => drop(server.receive_buffer(None)),
            Verdict::SendBuffer(_) => drop(server.send_buffer(Some(6144))),
            Verdict::RevokeReceiveBuffer => server.receive_buffer_gone(),
            Verdict::RevokeSendBuffer => server.send_buffer_gone(),
            _ => {}
        }
    });
}

/// RNDIS messages of a hostile host.
pub fn rndis_host(data: &[u8]) {
    let mut requests = Requests::default();
    let mut setup = Setup::new(SetupConfig {
        version: NvspVersion::V6_1,
        rsc: true,
    });
    let mut out = [0; MAX_REQUEST];
    let _ = setup.start(&mut requests, &mut out);
    steps(data, |input| {
        match input.int_in_range(0..=4)? {
            0..=2 => {
                let bytes = message(input, MESSAGE)?;
                let Ok(parsed) = HostMessage::parse(bytes) else {
                    return Ok(());
                };
                if let HostMessage::Indicate { status, buffer } = &parsed {
                    let _ = LinkEvent::new(*status, buffer);
                }
                if let Ok(SetupStep::Send { len, .. }) =
                    setup.on_message(&mut requests, &parsed, &mut out)
                {
                    assert!(len <= out.len());
                }
            }
            3 => {
                let info = message(input, MESSAGE)?;
                let _ = Offload::parse(info);
                let _ = RssCapabilities::parse(info);
            }
            _ => received(message(input, MESSAGE)?, Receiver::Guest),
        }
        Ok(())
    });
}

/// RNDIS messages of a hostile guest.
pub fn rndis_guest(data: &[u8]) {
    steps(data, |input| {
        match input.int_in_range(0..=3)? {
            0 => drop(GuestMessage::parse(message(input, MESSAGE)?)),
            1 => {
                if let Some(parameter) = ParsedParameter::parse(message(input, MESSAGE)?) {
                    let _ = parameter.is_named("NetworkAddress");
                    let _ = parameter.network_address();
                }
            }
            2 => {
                let channels = input.int_in_range(1..=64)?;
                let _ = RssSetting::parse(message(input, MESSAGE)?, channels);
            }
            _ => received(message(input, MESSAGE)?, Receiver::Host),
        }
        Ok(())
    });
}

/// A frame that is found lies within what was given.
fn received(bytes: &[u8], receiver: Receiver) {
    let available = bytes.len() as u32;
    if let Ok(packet) = ReceivedPacket::read(bytes, available, receiver) {
        assert!(u64::from(packet.data_offset) + u64::from(packet.data_len) <= available.into());
        assert!(packet.message_len <= available);
    }
}
