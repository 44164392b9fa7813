// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The SCSI controller.

use vmbus_proto::storvsc::client::{Client, Config as ClientConfig, MAX_TRANSFER_BYTES};
use vmbus_proto::storvsc::completion::{classify, judge, succeeded, Sent};
use vmbus_proto::storvsc::server::{Config, Server, Verdict};
use vmbus_proto::storvsc::{ScsiPacket, StorVersion};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{message, packets, steps};

/// Answers of a hostile host.
pub fn client(data: &[u8]) {
    let mut client = Client::new(ClientConfig {
        newest: StorVersion::V6_2,
        fibre_channel: data.first().is_some_and(|byte| byte & 1 != 0),
        sub_channels: 7,
    });
    let _ = client.start();
    steps(data, |input| {
        if input.arbitrary()? {
            if let Ok(vmbus_proto::storvsc::client::Step::Ready(agreed)) =
                client.on_answer(message(input, 128)?)
            {
                assert!((4096..=MAX_TRANSFER_BYTES).contains(&agreed.max_transfer_bytes));
                assert_eq!(agreed.max_transfer_bytes % 4096, 0);
            }
            return Ok(());
        }
        let (id, bytes) = (input.arbitrary()?, message(input, 128)?);
        let _ = classify(id, bytes);
        let mut packet = ScsiPacket::new_zeroed();
        let len = bytes.len().min(packet.as_bytes().len());
        packet.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
        let sent = Sent {
            opcode: input.arbitrary()?,
            transfer_len: input.arbitrary()?,
            fibre_channel: input.arbitrary()?,
        };
        let verdict = judge(&sent, &packet);
        assert!(verdict.transferred <= sent.transfer_len);
        assert_eq!(verdict.transferred + verdict.residual, sent.transfer_len);
        assert!(verdict.sense().len() <= verdict.sense_data.len());
        if let Ok((head, _)) = <[u64; 4]>::read_from_prefix(packet.as_bytes()) {
            let _ = succeeded(&head);
        }
        Ok(())
    });
}

/// Packets of a hostile guest.
pub fn server(data: &[u8]) {
    let mut server = Server::new(Config {
        newest: StorVersion::V6_2,
        max_transfer_bytes: 1 << 20,
        max_sub_channels: 8,
        fc: None,
    });
    packets(data, 128, |index, packet| {
        match server.on_packet(index, packet) {
            Verdict::CreateSubChannels { count, .. } => assert!(count <= 8),
            Verdict::Execute { transfer, .. } => assert!(transfer.len() <= 1 << 20),
            _ => {}
        }
    });
}
