// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Control messages.

use arbitrary::Unstructured;
use vmbus_proto::channel::{judge_offer, Channel, OfferPolicy, OpenRequest, State, Verdict};
use vmbus_proto::connection::{Action, Config, Connection};
use vmbus_proto::msg::{GpadlId, GuestMessage, HostMessage, MAX_MESSAGE_SIZE, USER_DATA_SIZE};
use vmbus_proto::tlfs::HvStatus;
use vmbus_proto::version::{FeatureFlags, VmbusVersion};

use super::{message, steps};

/// Most channels at a time.
const CHANNELS: usize = 8;

/// What the guest keeps of one host.
struct Guest {
    connection: Connection,
    version: VmbusVersion,
    channels: Vec<Channel>,
}

/// Messages of a hostile host, with the guest doing what it may in between.
pub fn host_messages(data: &[u8]) {
    let config = Config {
        max_version: VmbusVersion::V6_0,
        target_vp: 0,
        vtl: 0,
        interrupt_page: 0x1000,
        monitor_pages: [0x2000, 0x3000],
        features: FeatureFlags::all(),
        isolated: data.first().is_some_and(|byte| byte & 1 != 0),
    };
    let mut guest = Guest {
        connection: Connection::new(config),
        version: VmbusVersion::V6_0,
        channels: Vec::new(),
    };
    let _ = guest.connection.start();
    steps(data, |input| match input.int_in_range(0..=5)? {
        0..=3 => guest.on_bytes(message(input, MAX_MESSAGE_SIZE)?),
        4 => guest.act(input),
        _ => {
            let status = HvStatus(input.arbitrary()?);
            let _ = guest.connection.on_post_failed(status);
            Ok(())
        }
    });
}

impl Guest {
    fn on_bytes(&mut self, bytes: &[u8]) -> arbitrary::Result<()> {
        let Ok(message) = HostMessage::parse(bytes) else {
            return Ok(());
        };
        match self.connection.on_message(&message) {
            Action::Connected(negotiated) => {
                self.version = negotiated.version;
                let _ = self.connection.request_offers();
            }
            Action::Channel => self.on_channel(&message),
            _ => {}
        }
        Ok(())
    }

    fn on_channel(&mut self, message: &HostMessage) {
        if let HostMessage::OfferChannel(offer) = message {
            let policy = OfferPolicy {
                version: self.version,
                isolated: false,
                confidential: false,
            };
            let in_use = self
                .channels
                .iter()
                .any(|channel| channel.relid() == Some(offer.relid));
            let same =
                |channel: &&mut Channel| vmbus_proto::channel::same_device(channel.offer(), offer);
            let room = self.channels.len() < CHANNELS;
            let primary = self.channels.iter_mut().find(same);
            let state = primary.as_ref().map(|channel| channel.state());
            match (judge_offer(offer, policy, in_use, state), primary) {
                (Ok(Verdict::Again), Some(channel)) => {
                    channel
                        .offered_again(*offer)
                        .expect("a detached channel takes its offer");
                }
                (Ok(Verdict::Primary | Verdict::Subchannel | Verdict::AfterOlder), _) if room => {
                    self.channels.push(Channel::new(*offer, self.version));
                }
                _ => {}
            }
            return;
        }
        for channel in &mut self.channels {
            let _ = channel.on_message(message);
        }
    }

    /// What a driver does with a channel.
    fn act(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        if self.channels.is_empty() {
            return Ok(());
        }
        let at = input.choose_index(self.channels.len())?;
        let Some(channel) = self.channels.get_mut(at) else {
            return Ok(());
        };
        let request = OpenRequest {
            open_id: input.arbitrary()?,
            target_vp: 0,
            downstream_page_offset: 4,
            user_data: [0; USER_DATA_SIZE],
        };
        match input.int_in_range(0..=7)? {
            0 => drop(channel.share_ring(GpadlId(input.int_in_range(0..=3)?))),
            1 => drop(channel.open(&request)),
            2 => drop(channel.close()),
            3 => drop(channel.unshare_ring()),
            4 => drop(channel.move_to(input.int_in_range(0..=3)?)),
            5 => {
                if channel.release().is_ok() {
                    assert_eq!(channel.state(), State::Released);
                    self.channels.remove(at);
                }
            }
            6 => channel.not_posted(),
            _ => channel.detach(),
        }
        Ok(())
    }
}

/// Messages of a hostile guest.
pub fn guest_messages(data: &[u8]) {
    if let Ok(message) = GuestMessage::parse(data) {
        let _ = message.message_type();
    }
}
