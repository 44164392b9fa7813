// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The client's state machines of `vmbus-proto` against the host's server: no threads, no rings, only
//! messages, in every order that two sides and their queues can produce.
//!
//! Whatever the order, three things must hold: the server never finds a violation, the client
//! never finds a message unexpected, and the server never holds rings that the client thinks are its
//! own again.

use std::collections::{HashMap, HashSet, VecDeque};

use hv_partition::GuestRam;
use hv_vmbus_host::server::{Action as Todo, OfferId, OfferSpec, Server};
use proptest::prelude::*;
use vmbus_proto::channel::{
    self, judge_offer, same_device, Channel, OfferPolicy, OpenRequest, State, Verdict,
};
use vmbus_proto::connection::{Action, Config, Connection, Post};
use vmbus_proto::gpadl::GpadlMessages;
use vmbus_proto::msg::{
    ChannelMessage, GpadlId, HostMessage, MessageBuffer, OfferChannel, OfferFlags, Relid, Status,
    USER_DATA_SIZE, VMBUS_MESSAGE_TYPE,
};
use vmbus_proto::tlfs::hypercall::ConnectionId;
use vmbus_proto::{FeatureFlags, Guid, VmbusVersion};

const PAGES: usize = 64;
/// Offers of the server: two devices, and subchannels of the first.
const OFFERS: usize = 4;

fn spec(n: usize) -> OfferSpec {
    let (device, subchannel) = [(1, 0), (2, 0), (1, 1), (1, 2)][n];
    OfferSpec {
        name: format!("device{device}"),
        class: Guid::new(device, 0, 0, [0; 8]),
        instance: Guid::new(device, 1, 0, [0; 8]),
        subchannel,
        flags: OfferFlags::empty(),
        mmio_megabytes: 0,
        user_data: [0; USER_DATA_SIZE],
        monitored: false,
    }
}

/// Both sides, and what is on its way between them.
struct World {
    server: Server,
    connection: Connection,
    channels: Vec<Channel>,
    to_host: VecDeque<Post>,
    to_guest: VecDeque<MessageBuffer>,
    opening: Vec<OfferId>,
    next_id: u32,
    connected: u32,
    opened: u32,
    /// Relids that were given back, until they are offered again.
    released: HashSet<Relid>,
    /// GPADLs that were asked back, and whose they were.
    unshared: HashMap<GpadlId, Relid>,
}

impl World {
    fn new(server_version: VmbusVersion, client_version: VmbusVersion) -> Self {
        let mut server = Server::new(server_version, 4, GuestRam::for_tests(PAGES * 4096));
        for n in 0..OFFERS {
            assert_eq!(server.add_offer(spec(n), n < 2), OfferId(n));
        }
        let connection = Connection::new(Config {
            max_version: client_version,
            target_vp: 1,
            vtl: 0,
            interrupt_page: 0x1000,
            monitor_pages: [0x2000, 0x3000],
            features: FeatureFlags::empty(),
            isolated: false,
        });
        Self {
            server,
            connection,
            channels: Vec::new(),
            to_host: VecDeque::new(),
            to_guest: VecDeque::new(),
            opening: Vec::new(),
            next_id: 1,
            connected: 0,
            opened: 0,
            released: HashSet::new(),
            unshared: HashMap::new(),
        }
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// The client posts a message about a channel.
    fn post(&mut self, message: MessageBuffer) {
        let connection_id = self
            .connection
            .negotiated()
            .expect("connected")
            .connection_id;
        self.to_host.push_back(Post {
            connection_id,
            message,
        });
    }

    fn post_message<M: ChannelMessage>(&mut self, message: &M) {
        self.post(MessageBuffer::from_message(message));
    }

    /// The server takes the oldest message.
    fn host_step(&mut self) -> bool {
        let Some(post) = self.to_host.pop_front() else {
            return false;
        };
        self.server.on_guest_message(
            post.connection_id.0,
            VMBUS_MESSAGE_TYPE,
            post.message.as_bytes(),
        );
        self.host_settle();
        true
    }

    fn host_settle(&mut self) {
        while let Some(todo) = self.server.next_action() {
            match todo {
                Todo::Post { message, .. } => self.to_guest.push_back(message),
                Todo::Open { offer, .. } => self.opening.push(offer),
                Todo::Close { offer } => self.opening.retain(|o| *o != offer),
                Todo::Retarget { .. } | Todo::GpadlGone { .. } | Todo::Event(_) => {}
            }
        }
        let found: Vec<_> = self.server.violations().texts().collect();
        assert!(found.is_empty(), "violations: {found:?}");
    }

    /// A device of the host answers an open.
    fn device_step(&mut self, status: Status) -> bool {
        if self.opening.is_empty() {
            return false;
        }
        let offer = self.opening.remove(0);
        self.server.open_complete(offer, status);
        self.host_settle();
        true
    }

    /// The client takes the oldest message.
    fn guest_step(&mut self) -> bool {
        let Some(message) = self.to_guest.pop_front() else {
            return false;
        };
        let message = HostMessage::parse(message.as_bytes()).expect("the server sends what parses");
        match self.connection.on_message(&message) {
            Action::Post(post) => self.to_host.push_back(post),
            Action::Connected(_) => {
                self.connected += 1;
                let post = self.connection.request_offers().expect("just connected");
                self.to_host.push_back(post);
            }
            Action::OffersDelivered | Action::Late => {}
            Action::Unloaded => self.channels.iter_mut().for_each(Channel::detach),
            Action::Channel => self.channel_message(&message),
            other @ (Action::Failed(_) | Action::Unexpected(_)) => {
                panic!("{other:?} on {message:?}")
            }
        }
        true
    }

    fn channel_message(&mut self, message: &HostMessage) {
        if let HostMessage::OfferChannel(offer) = message {
            return self.on_offer(offer);
        }
        for channel in &mut self.channels {
            match channel.on_message(message) {
                channel::Action::NotMine => continue,
                channel::Action::Unexpected(t) => {
                    panic!("unexpected {t:?} in {:?}", channel.state())
                }
                channel::Action::Opened => self.opened += 1,
                _ => {}
            }
            return;
        }
        // It crossed with the release of its channel, and of no other.
        let crossed = match message {
            HostMessage::RescindChannelOffer(m) => self.released.contains(&m.relid),
            HostMessage::GpadlCreated(m) => self.released.contains(&m.relid),
            HostMessage::OpenChannelResult(m) => self.released.contains(&m.relid),
            HostMessage::ModifyChannelResponse(m) => self.released.contains(&m.relid),
            HostMessage::GpadlTorndown(m) => self
                .unshared
                .get(&m.gpadl)
                .is_some_and(|r| self.released.contains(r)),
            _ => false,
        };
        assert!(crossed, "for no channel: {message:?}");
    }

    fn on_offer(&mut self, offer: &OfferChannel) {
        let policy = OfferPolicy {
            version: self.connection.negotiated().expect("connected").version,
            isolated: false,
            confidential: false,
        };
        self.channels.retain(|c| c.state() != State::Released);
        self.released.remove(&offer.relid);
        let in_use = self.channels.iter().any(|c| c.relid() == Some(offer.relid));
        let primary = self
            .channels
            .iter_mut()
            .find(|c| !c.offer().is_subchannel() && same_device(c.offer(), offer));
        let state = primary.as_ref().map(|c| c.state());
        match judge_offer(offer, policy, in_use, state) {
            Ok(Verdict::Primary | Verdict::Subchannel) => {
                self.channels.push(Channel::new(*offer, policy.version))
            }
            Ok(Verdict::Again) => primary
                .expect("judged so")
                .offered_again(*offer)
                .expect("detached"),
            other => panic!("{other:?} for {offer:?} with {state:?}"),
        }
    }

    /// The client does the next thing with a channel; `choice` picks among several.
    fn channel_step(&mut self, index: usize, choice: u8) -> bool {
        if self.connection.negotiated().is_none() || self.channels.is_empty() {
            return false;
        }
        let index = index % self.channels.len();
        let id = self.id();
        let channel = &mut self.channels[index];
        let sub = channel.offer().is_subchannel();
        match (channel.state(), choice % 3) {
            (State::Offered, 0 | 1) => {
                let relid = channel.offer().relid;
                channel.share_ring(GpadlId(id)).expect("offered");
                // Two rings; now and then so many pages that a body follows.
                let pages = if choice & 4 == 0 { 6 } else { 40 };
                let messages = GpadlMessages::new(
                    relid,
                    GpadlId(id),
                    0,
                    pages * 4096,
                    (4..4 + pages).map(u64::from),
                )
                .expect("fits");
                messages.for_each(|message| self.post(message));
            }
            // A channel that we do not want. (Not a primary: its subchannels would be orphans.)
            (State::Offered, 2) if sub => {
                let message = channel.release().expect("offered");
                self.released.insert(message.relid);
                self.post_message(&message);
            }
            (State::RingShared(_), 0 | 1) => {
                let request = OpenRequest {
                    open_id: id,
                    target_vp: 2,
                    downstream_page_offset: 3,
                    user_data: [0; USER_DATA_SIZE],
                };
                let message = channel.open(&request).expect("shared");
                self.post_message(&message);
            }
            (State::RingShared(_), _) => {
                let message = channel.unshare_ring().expect("shared");
                self.unshared.insert(message.gpadl, message.relid);
                self.post_message(&message);
            }
            (State::Open { .. }, 0) => {
                let message = channel.close().expect("open");
                self.post_message(&message);
            }
            (State::Open { .. }, 1) => match channel.move_to(u32::from(choice) % 4) {
                Ok(message) => self.post_message(&message),
                Err(_) => return false,
            },
            (State::Rescinded, _) => {
                let message = channel.release().expect("rescinded");
                self.released.insert(message.relid);
                self.post_message(&message);
            }
            _ => return false,
        }
        true
    }

    /// The host offers or rescinds.
    fn offer_step(&mut self, n: usize, rescind: bool) {
        if rescind {
            // Subchannels go with their device, first.
            if n == 0 {
                self.server.rescind(OfferId(2));
                self.server.rescind(OfferId(3));
            }
            self.server.rescind(OfferId(n));
        } else if n < 2 || self.server.is_open(OfferId(0)) {
            self.server.offer(OfferId(n));
        }
        self.host_settle();
    }

    fn unload(&mut self) -> bool {
        match self.connection.unload() {
            Ok(post) => self.to_host.push_back(post),
            Err(_) => return false,
        }
        true
    }

    /// Connects if that has not been done.
    fn start(&mut self, version: Option<VmbusVersion>) -> bool {
        let post = match version {
            Some(version) => self.connection.restart(version),
            None => self.connection.start(),
        };
        match post {
            Ok(post) => self.to_host.push_back(post),
            Err(_) => return false,
        }
        true
    }

    /// Rings that the client thinks are its own again, the server must not use.
    fn check_memory(&self) {
        for channel in &self.channels {
            let Some(relid) = channel.relid() else {
                continue;
            };
            if channel.state().host_may_use_ring() {
                continue;
            }
            for n in 0..OFFERS {
                let (state, its_relid) = self.server.channel_state(OfferId(n));
                assert!(
                    its_relid != Some(relid) || state != hvctl::ChannelState::Open,
                    "{:?} here, open there",
                    channel.state()
                );
            }
        }
        if !self.connection.host_may_use_memory() {
            assert_eq!(self.server.gpadl_count(), 0);
        }
    }

    /// Lets both sides come to rest.
    fn quiesce(&mut self) {
        while self.host_step() || self.guest_step() || self.device_step(Status::SUCCESS) {}
    }
}

/// Every pair of newest versions: what is agreed on, and the life of a device with a subchannel.
#[test]
fn each_pair_of_versions() {
    for server in VmbusVersion::SUPPORTED {
        for client in VmbusVersion::SUPPORTED {
            let mut world = World::new(server, client);
            world.start(None);
            world.quiesce();
            let negotiated = world.connection.negotiated().expect("connected");
            assert_eq!(negotiated.version, server.min(client));
            let by_message = negotiated.version.has_message_connection_id();
            assert_eq!(
                negotiated.connection_id,
                ConnectionId(if by_message { 4 } else { 1 })
            );
            assert_eq!(world.channels.len(), 2);
            for _ in 0..2 {
                for index in 0..2 {
                    world.channel_step(index, 0);
                    world.quiesce();
                }
            }
            assert_eq!(world.opened, 2);
            assert!(world.server.is_open(OfferId(0)) && world.server.is_open(OfferId(1)));
            assert_eq!(
                world.channel_step(0, 1),
                negotiated.version >= VmbusVersion::V4_1
            );
            world.quiesce();
            assert!(matches!(
                world.channels[0].state(),
                State::Open { moving: false, .. }
            ));
            world.offer_step(2, false);
            world.quiesce();
            assert_eq!(world.channels.len(), 3, "subchannel");
            world.channel_step(0, 0);
            world.quiesce();
            assert_eq!(
                world.channels[2].state(),
                State::Rescinded,
                "gone with its device's close"
            );
            world.channel_step(2, 0);
            world.unload();
            world.quiesce();
            world.check_memory();
            assert!(world.server.version().is_none());
            world.start(Some(negotiated.version));
            world.quiesce();
            assert_eq!(world.connected, 2);
            assert!(
                world
                    .channels
                    .iter()
                    .filter(|c| c.state() == State::Offered)
                    .count()
                    == 2
            );
        }
    }
}

/// After a refusal the channel can try again, or let go of its rings.
#[test]
fn refused_by_the_device_or_the_host() {
    let mut world = World::new(VmbusVersion::V6_0, VmbusVersion::V6_0);
    world.start(None);
    world.quiesce();
    world.server.refuse_gpadls(1, Status::UNSUCCESSFUL);
    world.channel_step(0, 0);
    world.quiesce();
    assert_eq!(world.channels[0].state(), State::Offered);
    world.channel_step(0, 0);
    world.quiesce();
    world.server.refuse_opens(1, Status::UNSUCCESSFUL);
    world.channel_step(0, 0);
    world.quiesce();
    assert!(matches!(world.channels[0].state(), State::RingShared(_)));
    world.channel_step(0, 0);
    while world.host_step() {}
    world.device_step(Status::UNSUCCESSFUL);
    world.quiesce();
    assert!(matches!(world.channels[0].state(), State::RingShared(_)));
    world.channel_step(0, 2);
    world.quiesce();
    assert_eq!(world.channels[0].state(), State::Offered);
    assert_eq!(world.server.gpadl_count(), 0);
    world.check_memory();
}

/// A step of one of the sides.
#[derive(Clone, Debug)]
enum Step {
    Host,
    Guest,
    Device(bool),
    Channel(usize, u8),
    Offer(usize, bool),
    Unload,
    Start(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Host),
        6 => Just(Step::Guest),
        3 => any::<bool>().prop_map(Step::Device),
        8 => (0usize..6, any::<u8>()).prop_map(|(i, c)| Step::Channel(i, c)),
        3 => (0usize..OFFERS, any::<bool>()).prop_map(|(i, r)| Step::Offer(i, r)),
        1 => Just(Step::Unload),
        1 => any::<bool>().prop_map(Step::Start),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any order of steps.
    #[test]
    fn any_order(version in 0usize..7, steps in proptest::collection::vec(step(), 0..400)) {
        let version = VmbusVersion::SUPPORTED[version];
        let mut world = World::new(version, VmbusVersion::V6_0);
        world.start(None);
        for step in steps {
            match step {
                Step::Host => { world.host_step(); }
                Step::Guest => { world.guest_step(); }
                Step::Device(good) => {
                    world.device_step(if good { Status::SUCCESS } else { Status::UNSUCCESSFUL });
                }
                Step::Channel(index, choice) => { world.channel_step(index, choice); }
                Step::Offer(n, rescind) => world.offer_step(n, rescind),
                Step::Unload => { world.unload(); }
                Step::Start(again) => { world.start(again.then_some(version)); }
            }
            world.check_memory();
        }
        // At rest both sides agree: what the host offers the client knows, once, and in the same state.
        world.start(None);
        world.quiesce();
        while world.channels.iter().any(|c| c.state() == State::Rescinded) {
            for index in 0..world.channels.len() {
                if world.channels[index].state() == State::Rescinded {
                    world.channel_step(index, 0);
                }
            }
            world.quiesce();
        }
        if world.connection.negotiated().is_none() {
            world.start(None);
            world.quiesce();
        }
        world.check_memory();
        prop_assert!(world.connection.negotiated().is_some());
        for n in 0..OFFERS {
            let (state, relid) = world.server.channel_state(OfferId(n));
            let here: Vec<_> = world.channels.iter().filter(|c| relid.is_some() && c.relid() == relid).collect();
            prop_assert_eq!(here.len(), usize::from(relid.is_some()));
            for channel in here {
                prop_assert_eq!(
                    matches!(channel.state(), State::Open { moving: false, .. }),
                    state == hvctl::ChannelState::Open,
                    "{:?} here, {:?} there", channel.state(), state
                );
            }
        }
    }
}
