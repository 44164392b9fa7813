// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a watcher is told.

use serde::{Deserialize, Serialize};

/// One line to a watcher: `{"event": "NAME", …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum Event {
    /// A version was agreed.
    Connected {
        /// Such as `6.0`.
        version: String,
    },
    /// A version was refused.
    VersionRefused {
        /// Such as `6.0`.
        version: String,
    },
    /// All offers were delivered.
    OffersDelivered,
    /// The guest unloaded its connection.
    Unloaded,
    /// The VM was reset.
    VmReset,
    /// A channel was offered.
    Offered {
        /// Name of the device.
        device: String,
        /// Its new relid.
        relid: u32,
    },
    /// A channel was opened.
    Opened {
        /// Name of the device.
        device: String,
        /// Of the channel.
        relid: u32,
        /// Virtual processor it signals.
        target_vp: u32,
    },
    /// A channel was closed.
    Closed {
        /// Name of the device.
        device: String,
        /// Of the channel.
        relid: u32,
    },
    /// An offer was rescinded.
    Rescinded {
        /// Name of the device.
        device: String,
        /// Of the channel.
        relid: u32,
    },
    /// The guest released the relid of a rescinded channel.
    Released {
        /// Name of the device.
        device: String,
        /// Of the channel.
        relid: u32,
    },
    /// A device's protocol agreed on its versions.
    Negotiated {
        /// Name of the device.
        device: String,
        /// Such as `3.0/3.2`.
        agreed: String,
    },
    /// A NIC's driver is ready for frames, or no longer.
    NetRunning {
        /// Name of the device.
        device: String,
        /// Whether its packet filter lets anything pass.
        running: bool,
    },
    /// The guest answered a shutdown request.
    ShutdownAnswered {
        /// Status in the answer.
        status: u32,
    },
    /// The VM was found to have been stopped.
    StopSeen {
        /// For how long.
        ms: u64,
    },
    /// The guest broke the protocol.
    Violation {
        /// How.
        text: String,
    },
    /// The guest reported a crash.
    GuestCrash,
    /// Events were lost because the watcher did not read them.
    Lost {
        /// How many.
        count: u64,
    },
}
