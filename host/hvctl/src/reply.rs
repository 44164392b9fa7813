// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the host answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line from host to client that answers a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// That of the request; 0 when the request could not be read.
    pub id: u64,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<serde_json::Value>,
    /// A sentence that says why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
}

/// State of the VMBus connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// No contact, or unloaded.
    Disconnected,
    /// A version is agreed.
    Connected,
    /// All offers were delivered.
    OffersDelivered,
    /// Unload is under way.
    Unloading,
}

/// Answer to `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the VMBus connection.
    pub state: ConnectionState,
    /// Agreed version, such as `6.0`.
    pub version: Option<String>,
    /// Newest version the host accepts.
    pub max_version: String,
    /// Virtual processor that gets channel messages.
    pub message_vp: Option<u32>,
    /// How often a guest connected since the VM started.
    pub connects: u64,
    /// How often the guest unloaded since the VM started.
    pub unloads: u64,
    /// Live GPADLs.
    pub gpadls: u64,
    /// Protocol violations.
    pub violations: u64,
    /// Number of virtual processors.
    pub vp_count: u32,
    /// Partition reference time in 100 ns units.
    pub reference_time: u64,
    /// Facts of the hypervisor half (guest OS id, crash parameters and text, …).
    pub partition: serde_json::Value,
}

impl Status {
    /// Whether offers were delivered.
    pub fn connected(&self) -> bool {
        self.state == ConnectionState::OffersDelivered
    }
}

/// State of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelState {
    /// Not offered: no guest is connected, or the device was taken away.
    Hidden,
    /// Offered, closed.
    Offered,
    /// Open.
    Open,
    /// Rescinded; the guest has not released the relid yet.
    Rescinded,
}

/// One channel. Answer to `channels` is an array of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// Name of the device.
    pub device: String,
    /// Class GUID (interface type), lower case, with hyphens.
    pub class: String,
    /// Instance GUID.
    pub instance: String,
    /// 0 for the primary channel.
    pub subchannel: u16,
    /// Channel id that the guest knows it by; none when hidden.
    pub relid: Option<u32>,
    /// Connection id for the guest's signals.
    pub connection_id: Option<u32>,
    /// Where in its life it is.
    pub state: ChannelState,
    /// Virtual processor that the host signals.
    pub target_vp: Option<u32>,
    /// Whether the guest signals by monitor page.
    pub monitor: bool,
    /// Data bytes of the guest-to-host ring.
    pub out_ring_bytes: Option<u32>,
    /// Data bytes of the host-to-guest ring.
    pub in_ring_bytes: Option<u32>,
    /// Versions the device's protocol agreed on (integration services: `3.0/3.2` framework/message).
    pub agreed: Option<String>,
    /// Counters of this channel.
    pub counters: ChannelCounters,
}

/// Counters of one channel, from the host's view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelCounters {
    /// Packets sent to the guest.
    pub packets_out: u64,
    /// Packets received from the guest.
    pub packets_in: u64,
    /// Bytes sent to the guest, descriptors included.
    pub bytes_out: u64,
    /// Bytes received from the guest.
    pub bytes_in: u64,
    /// Event flags newly set for the guest, each an interrupt.
    pub interrupts: u64,
    /// Signals wanted by the ring that found the flag still set.
    pub interrupts_merged: u64,
    /// Signals of both kinds that the guest cannot have wanted: its ring was not empty before, or it did not wait for room.
    #[serde(default)]
    pub unneeded_interrupts: u64,
    /// Signals received from the guest (hypercall, interrupt page, or monitor page).
    pub signals: u64,
    /// Signals of those that came while the host's mask was set or nothing was to do.
    pub unneeded_signals: u64,
    /// Signals of those that came by monitor page.
    pub monitor_signals: u64,
    /// Times the channel was opened.
    pub opens: u64,
    /// Packets sent that asked for a completion and have none yet: how many now, not a sum.
    #[serde(default)]
    pub incomplete: u64,
}

/// Answer to `counters`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Of the VMBus half: `messages_in`, `messages_out`, `violations`, `unneeded_signals` ….
    pub host: BTreeMap<String, u64>,
    /// Of the hypervisor half: `hypercall_post_message`, `hypercall_signal_event`, `synic_interrupts` ….
    pub partition: BTreeMap<String, u64>,
    /// By device name (`name.N` for sub-channel N).
    pub channels: BTreeMap<String, ChannelCounters>,
}

/// Answer to `violations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violations {
    /// All since the start or `reset-counters`.
    pub count: u64,
    /// The newest 64, oldest first.
    pub texts: Vec<String>,
    /// Signals that were not needed. No violation: the protocol allows them, a good driver avoids them.
    pub unneeded_signals: u64,
}

/// Answer to `heartbeat`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatStatus {
    /// Interval between beats; 0: none are sent.
    pub interval_ms: u64,
    /// Beats sent.
    pub sent: u64,
    /// Answered in sequence.
    pub answered: u64,
    /// Not answered when the next was sent and ten seconds had passed, or answered with a wrong sequence number.
    pub missed: u64,
    /// Beats of a burst still to be sent.
    pub burst_left: u32,
    /// Framework and message version agreed, such as `3.0/3.0`.
    pub agreed: Option<String>,
    /// From sending to the answer, newest beat, in µs of reference time.
    pub last_rtt_us: Option<u64>,
    /// The longest.
    pub max_rtt_us: Option<u64>,
}

/// Answer to `shutdown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownReply {
    /// Status in the guest's answer: 0 accepted, 0x80004005 (`HV_E_FAIL`) refused. None when not waited for.
    pub status: Option<u32>,
}

/// Answer to `timesync`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimesyncStatus {
    /// Interval between periodic samples; 0: none are sent.
    pub interval_ms: u64,
    /// Samples sent, of every kind.
    pub sent: u64,
    /// Of those, with the sync flag.
    pub syncs: u64,
    /// Samples the guest answered.
    pub answered: u64,
    /// Times the VM was found to have been stopped.
    pub stops_seen: u64,
    /// Offset of all samples from the host's clock.
    pub offset_ms: i64,
    /// Framework and message version agreed, such as `3.0/4.0`.
    pub agreed: Option<String>,
}
