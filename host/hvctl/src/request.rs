// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What can be asked of the host.

use serde::{Deserialize, Serialize};

use crate::disk::{DiskFault, DiskNotice, DiskSpec};
use crate::exchange::{BackupOp, KvpOp, Sending};
use crate::net::{NetDirection, NetFault, NetLink};

/// One line from client to host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client; the answer carries the same.
    pub id: u64,
    /// What is asked, and its arguments, in the same JSON object.
    #[serde(flatten)]
    pub cmd: Command,
}

/// What is asked. Devices are named by their name (`heartbeat`), or by instance GUID.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "cmd",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum Command {
    /// Connection, version and guest facts. Answer: [`Status`](crate::Status).
    Status,
    /// All channels. Answer: array of [`ChannelInfo`](crate::ChannelInfo).
    Channels,
    /// All counters. Answer: [`Counters`](crate::Counters).
    Counters,
    /// Counts from zero again: counters, heartbeat statistics, violations.
    ResetCounters,
    /// Answer: [`Violations`](crate::Violations).
    Violations,
    /// Offers a device, or one of its sub-channels, that was rescinded; after the guest has released the old
    /// relid, if it has one.
    Offer {
        /// Name or instance GUID; `NAME/INDEX` for a sub-channel, counted from 1.
        device: String,
    },
    /// Rescinds a device's offer, or that of one of its sub-channels.
    Rescind {
        /// Name or instance GUID; `NAME/INDEX` for a sub-channel, counted from 1.
        device: String,
    },
    /// Answers when the condition holds (at once if it holds already), with an error when the time is over.
    Wait {
        /// What to wait for.
        #[serde(flatten)]
        until: Until,
        /// Time limit in ms.
        timeout_ms: u64,
    },
    /// Heartbeat device: sets what is given. Answer: [`HeartbeatStatus`](crate::HeartbeatStatus).
    Heartbeat {
        /// New interval between beats; 0 stops them. Starts at 2000.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interval_ms: Option<u64>,
        /// Sends this many beats outside of the interval.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        burst: Option<Burst>,
    },
    /// Sends a shutdown request to the guest's shutdown integration service.
    /// Answer: [`ShutdownReply`](crate::ShutdownReply).
    Shutdown {
        /// What the guest shall do.
        kind: ShutdownKind,
        /// Sets the force bit of the request.
        #[serde(default)]
        force: bool,
        /// Reason text for the guest (at most 2047 bytes).
        #[serde(default)]
        reason: String,
        /// Waits at most this long for the guest's answer; absent: does not wait.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait_ms: Option<u64>,
    },
    /// Time synchronisation device: does what is given, and answers [`TimesyncStatus`](crate::TimesyncStatus).
    Timesync {
        /// Sends a sample now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        send: Option<SampleKind>,
        /// Added to the host's clock in this sample.
        #[serde(default)]
        offset_ms: i64,
        /// Instead of the host's clock: ms since 1970-01-01 UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unix_ms: Option<i64>,
        /// Uses `offset_ms` for all later samples, too.
        #[serde(default)]
        keep: bool,
        /// New interval between periodic samples; 0 stops them. Starts at 5000.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interval_ms: Option<u64>,
        /// Whether a forced sample is sent when the VM was found to have been stopped. Starts as true.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sync_after_stop: Option<bool>,
    },
    /// All disks. Answer: array of [`DiskInfo`](crate::DiskInfo).
    Disks,
    /// Adds a disk to a storage controller.
    DiskAdd {
        /// Name or instance GUID of the controller.
        device: String,
        /// Logical unit.
        lun: u8,
        /// SCSI target.
        #[serde(default)]
        target: u8,
        /// The disk.
        #[serde(flatten)]
        disk: DiskSpec,
        /// Tell the guest to look for it.
        #[serde(default = "yes")]
        notify: bool,
    },
    /// Takes a disk away. Commands that it is at work on end as they do.
    DiskRemove {
        /// Name or instance GUID of the controller.
        device: String,
        /// Logical unit.
        lun: u8,
        /// SCSI target.
        #[serde(default)]
        target: u8,
        /// Tell the guest.
        #[serde(default = "yes")]
        notify: bool,
    },
    /// Changes the size of a disk; its next command gets a unit attention.
    DiskResize {
        /// Name or instance GUID of the controller.
        device: String,
        /// Logical unit.
        lun: u8,
        /// SCSI target.
        #[serde(default)]
        target: u8,
        /// New size in bytes.
        size: u64,
        /// Tell the guest to look at its disks, so that an idle one is noticed, too.
        #[serde(default = "yes")]
        notify: bool,
    },
    /// Cuts the power of a disk with a volatile cache: what was not flushed is lost, and all commands fail from then on. Answer:
    /// [`DiskCutAnswer`](crate::DiskCutAnswer).
    DiskCut {
        /// Name or instance GUID of the controller.
        device: String,
        /// Logical unit.
        lun: u8,
        /// SCSI target.
        #[serde(default)]
        target: u8,
        /// About half of the sectors that were not flushed reach the medium; this says which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
    },
    /// Sends a notice to the driver of a storage controller.
    DiskNotify {
        /// Name or instance GUID of the controller.
        device: String,
        /// Which.
        what: DiskNotice,
    },
    /// Makes a storage controller misbehave.
    DiskFault {
        /// Name or instance GUID of the controller.
        device: String,
        /// Only for commands to this logical unit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lun: Option<u8>,
        /// Only for commands with this operation code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opcode: Option<u8>,
        /// How many commands to hit.
        #[serde(default = "one")]
        count: u32,
        /// How many that would be hit to let pass before.
        #[serde(default)]
        skip: u32,
        /// What to do to them.
        #[serde(flatten)]
        fault: DiskFault,
    },
    /// All NICs. Answer: array of [`NetInfo`](crate::NetInfo).
    Nets,
    /// Changes the link of a NIC.
    NetLink {
        /// Name or instance GUID.
        device: String,
        /// How; absent: only the speed changes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<NetLink>,
        /// New speed in Mbit/s.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        speed: Option<u32>,
    },
    /// Sends the guest a send-indirection table (NVSP 5 and newer).
    NetTable {
        /// Name or instance GUID.
        device: String,
        /// Channel for each entry.
        table: Vec<u32>,
    },
    /// Brings a frame to the guest as if it came from the back end.
    NetInject {
        /// Name or instance GUID.
        device: String,
        /// The frame, hexadecimal.
        hex: String,
        /// The channel it comes on, whatever its hash says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        queue: Option<u16>,
        /// Per-packet information instead of what the host would give, hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ppi: Option<String>,
    },
    /// Tells the guest of a virtual function (NVSP 4 and newer), or that it is gone.
    NetVf {
        /// Name or instance GUID.
        device: String,
        /// Its serial number; absent: gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial: Option<u32>,
    },
    /// Makes a NIC misbehave.
    NetFault {
        /// Name or instance GUID.
        device: String,
        /// Only for frames that go this way (drop, delay, duplicate, reorder, corrupt).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        direction: Option<NetDirection>,
        /// Only on this channel.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        queue: Option<u16>,
        /// How many frames or messages to hit; 0: all until cleared.
        #[serde(default = "one")]
        count: u32,
        /// How many that would be hit to let pass before.
        #[serde(default)]
        skip: u32,
        /// What to do to them.
        #[serde(flatten)]
        fault: NetFault,
    },
    /// Key-value pair device: asks the guest. Answer: [`KvpReply`](crate::KvpReply).
    Kvp {
        /// What.
        #[serde(flatten)]
        op: KvpOp,
        /// How it is sent.
        #[serde(default)]
        how: Sending,
    },
    /// Backup device: asks the guest. Answer: [`BackupReply`](crate::BackupReply).
    Backup {
        /// What.
        op: BackupOp,
        /// How it is sent.
        #[serde(default)]
        how: Sending,
    },
    /// File copy device: copies a file of the host into the guest. Answer: [`CopyReply`](crate::CopyReply).
    Copy {
        /// Path of the host.
        file: String,
        /// Directory in the guest.
        directory: String,
        /// Name there.
        name: String,
        /// Replace a file that exists.
        #[serde(default)]
        overwrite: bool,
        /// Create the directories on the way.
        #[serde(default)]
        create_path: bool,
        /// Cancel after so many bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cancel_after: Option<u64>,
        /// How the first message is sent; `wait_ms` is for the whole copy.
        #[serde(default)]
        how: Sending,
    },
    /// Stops all vCPUs, as QMP `stop`.
    Pause,
    /// Continues all vCPUs, as QMP `cont`.
    Resume,
    /// Hard reset of the VM.
    Reset,
    /// Powers the VM off without asking the guest.
    PowerOff,
    /// Makes the host misbehave.
    Fault {
        /// How.
        #[serde(flatten)]
        fault: Fault,
    },
    /// Starts counting guest instructions afresh.
    ProfileMark,
    /// Instructions since the mark. Answer: JSON of the hypervisor half.
    ProfileRead,
    /// Sets the level of the host's log: `error`, `warn`, `info`, `debug`, `trace`.
    LogLevel {
        /// New level.
        level: String,
    },
    /// Sends events as they happen, on this connection, after the answer.
    Watch,
}

/// What `wait` waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "for",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum Until {
    /// A version is agreed, offers are requested and all are delivered.
    Connected,
    /// The guest has no VMBus connection (never had, or unloaded).
    Disconnected,
    /// The device's primary channel is open.
    ChannelOpen {
        /// Name or instance GUID.
        device: String,
    },
    /// The device's primary channel is offered or gone, but not open.
    ChannelClosed {
        /// Name or instance GUID.
        device: String,
    },
    /// The device was rescinded and the guest has given its relid back.
    Released {
        /// Name or instance GUID.
        device: String,
    },
    /// The integration service on this device has agreed on its versions with the guest.
    Negotiated {
        /// Name or instance GUID.
        device: String,
    },
    /// The NIC's driver has set a packet filter that lets something pass.
    NetRunning {
        /// Name or instance GUID.
        device: String,
    },
    /// Heartbeats answered since the counters were reset.
    Beats {
        /// At least this many.
        count: u64,
    },
    /// The guest reported a crash by the crash MSRs.
    GuestCrash,
    /// The count of protocol violations is at least this.
    Violations {
        /// At least this many.
        count: u64,
    },
}

/// A series of heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// How many.
    pub count: u32,
    /// One each this many ms; 0: each as soon as the one before was answered.
    pub every_ms: u64,
}

/// What a shutdown request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownKind {
    /// Flags 0.
    PowerOff,
    /// Flags 2.
    Reboot,
    /// Flags 4.
    Hibernate,
}

/// Kind of a time sample, by its flag bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleKind {
    /// No flag: for reference only.
    Probe,
    /// `ICTIMESYNCFLAG_SYNC`: set the clock at once.
    Sync,
    /// `ICTIMESYNCFLAG_SAMPLE`: steer the clock gradually.
    Sample,
}

/// Faults of the host that a guest must survive. Each acts once per call unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "fault",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum Fault {
    /// Drops a channel message to the guest.
    DropMessage {
        /// Lets this many pass first.
        skip: u32,
    },
    /// Delays each of the next messages to the guest.
    DelayMessages {
        /// How many.
        count: u32,
        /// By how long.
        ms: u64,
    },
    /// Sends the next message to the guest twice.
    DuplicateMessage,
    /// Posts a message of these bytes (240 at most) to the guest.
    PostMessage {
        /// Hexadecimal.
        hex: String,
        /// SynIC message type; 1 is that of VMBus.
        #[serde(default = "one")]
        msg_type: u32,
        /// Virtual processor.
        #[serde(default)]
        vp: u32,
    },
    /// Returns this HV_STATUS to the next HvCallPostMessage calls instead of taking the message.
    RefusePost {
        /// How many.
        count: u32,
        /// For example 19 = HV_STATUS_INSUFFICIENT_BUFFERS.
        status: u16,
    },
    /// Refuses the next channel opens with this status.
    RefuseOpen {
        /// How many.
        count: u32,
        /// Status in the open result.
        status: u32,
    },
    /// Refuses the next GPADLs with this status.
    RefuseGpadl {
        /// How many.
        count: u32,
        /// Status in the GPADL result.
        status: u32,
    },
    /// Overwrites a word in the control page of an open ring.
    CorruptRing {
        /// Name or instance GUID.
        device: String,
        /// Which ring.
        ring: RingSide,
        /// Which word.
        field: RingField,
        /// The new value.
        value: u32,
    },
    /// Sends a packet of these bytes on an open channel.
    SendPacket {
        /// Name or instance GUID.
        device: String,
        /// Descriptor's packet type; 6 is in-band data, 11 a completion.
        packet_type: u16,
        /// Descriptor's flags; 1 asks for a completion.
        #[serde(default)]
        flags: u16,
        /// Descriptor's transaction id.
        #[serde(default)]
        transaction_id: u64,
        /// Payload, hexadecimal.
        hex: String,
    },
    /// Puts bytes into the host-to-guest ring as they are, descriptor included, and signals.
    SendRaw {
        /// Name or instance GUID.
        device: String,
        /// Hexadecimal; padded to 8 bytes.
        hex: String,
    },
    /// Sets an event flag that no channel asked for.
    SignalEvent {
        /// Virtual processor.
        vp: u32,
        /// Bit number in the event flags.
        flag: u16,
    },
    /// Stops reading a device's guest-to-host ring until turned off.
    StallDevice {
        /// Name or instance GUID.
        device: String,
        /// On or off.
        on: bool,
    },
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// One of a channel's two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingSide {
    /// Guest to host.
    GuestToHost,
    /// Host to guest.
    HostToGuest,
}

/// A word of a ring's control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingField {
    /// `write_index`
    Write,
    /// `read_index`
    Read,
    /// `interrupt_mask`
    Mask,
    /// `pending_send_sz`
    Pending,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The JSON is a contract with clients in other languages.
    #[test]
    fn requests_have_their_documented_json() {
        let table = [
            (r#"{"id":1,"cmd":"status"}"#, Command::Status),
            (r#"{"id":1,"cmd":"power-off"}"#, Command::PowerOff),
            (
                r#"{"id":1,"cmd":"rescind","device":"heartbeat"}"#,
                Command::Rescind {
                    device: "heartbeat".into(),
                },
            ),
            (
                r#"{"id":1,"cmd":"wait","for":"channel-open","device":"shutdown","timeout_ms":5}"#,
                Command::Wait {
                    until: Until::ChannelOpen {
                        device: "shutdown".into(),
                    },
                    timeout_ms: 5,
                },
            ),
            (
                r#"{"id":1,"cmd":"heartbeat","burst":{"count":3,"every_ms":0}}"#,
                Command::Heartbeat {
                    interval_ms: None,
                    burst: Some(Burst {
                        count: 3,
                        every_ms: 0,
                    }),
                },
            ),
            (
                r#"{"id":1,"cmd":"shutdown","kind":"hibernate"}"#,
                Command::Shutdown {
                    kind: ShutdownKind::Hibernate,
                    force: false,
                    reason: String::new(),
                    wait_ms: None,
                },
            ),
            (
                r#"{"id":1,"cmd":"disk-add","device":"scsi0","lun":5,"file":"/x.img","read_only":true}"#,
                Command::DiskAdd {
                    device: "scsi0".into(),
                    lun: 5,
                    target: 0,
                    disk: DiskSpec {
                        file: Some("/x.img".into()),
                        read_only: true,
                        sector: 512,
                        discard: true,
                        ..DiskSpec::default()
                    },
                    notify: true,
                },
            ),
            (
                r#"{"id":1,"cmd":"disk-fault","device":"scsi0","opcode":40,"kind":"status","srb":4,"scsi":2,"sense":[3,17,0]}"#,
                Command::DiskFault {
                    device: "scsi0".into(),
                    lun: None,
                    opcode: Some(40),
                    count: 1,
                    skip: 0,
                    fault: DiskFault::Status {
                        srb: 4,
                        scsi: 2,
                        sense: Some([3, 17, 0]),
                    },
                },
            ),
            (
                r#"{"id":1,"cmd":"net-link","device":"net0","link":"down"}"#,
                Command::NetLink {
                    device: "net0".into(),
                    link: Some(NetLink::Down),
                    speed: None,
                },
            ),
            (
                r#"{"id":1,"cmd":"net-fault","device":"net0","direction":"rx","count":3,"kind":"delay","ms":5}"#,
                Command::NetFault {
                    device: "net0".into(),
                    direction: Some(NetDirection::Rx),
                    queue: None,
                    count: 3,
                    skip: 0,
                    fault: NetFault::Delay { ms: 5 },
                },
            ),
            (
                r#"{"id":1,"cmd":"fault","fault":"post-message","hex":"01"}"#,
                Command::Fault {
                    fault: Fault::PostMessage {
                        hex: "01".into(),
                        msg_type: 1,
                        vp: 0,
                    },
                },
            ),
        ];
        for (json, cmd) in table {
            let request: Request =
                serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"));
            assert_eq!(request, Request { id: 1, cmd }, "{json}");
            let again = serde_json::to_string(&request).expect("serialises");
            assert_eq!(
                serde_json::from_str::<Request>(&again).expect("reads its own"),
                request
            );
        }
    }

    #[test]
    fn nonsense_is_no_request() {
        for json in [
            "",
            "1",
            "{}",
            r#"{"id":1}"#,
            r#"{"id":1,"cmd":"dance"}"#,
            r#"{"cmd":"status"}"#,
            r#"{"id":-1,"cmd":"status"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }
}
