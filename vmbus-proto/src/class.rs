// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The device classes that VMBus offers: GUIDs, names, and what Linux derives from them
//! (`hyperv.h`, "GUID definitions of various offer types"; `channel_mgmt.c`, `vmbus_devs`).

use crate::guid::Guid;

open_enum! {
    /// Number of a device class as Linux shows it in sysfs (`enum vmbus_device_type`).
    pub struct DeviceType(u16) {
        /// Virtual IDE disk of generation 1 VMs.
        IDE = 0,
        /// SCSI controller.
        SCSI = 1,
        /// Fibre Channel adapter.
        FC = 2,
        /// Network adapter.
        NIC = 3,
        /// Network Direct (guest RDMA).
        ND = 4,
        /// PCI Express pass-through.
        PCIE = 5,
        /// Video.
        FB = 6,
        /// Keyboard.
        KBD = 7,
        /// Mouse.
        MOUSE = 8,
        /// Key-value pair exchange.
        KVP = 9,
        /// Time synchronisation.
        TS = 10,
        /// Heartbeat.
        HB = 11,
        /// Guest shutdown.
        SHUTDOWN = 12,
        /// File copy.
        FCOPY = 13,
        /// Backup (VSS).
        BACKUP = 14,
        /// Dynamic memory.
        DM = 15,
        /// Everything else.
        UNKNOWN = 16,
    }
}

/// A device class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceClass {
    /// Class GUID (`if_type` of the offer).
    pub guid: Guid,
    /// Linux' number of the class.
    pub device_type: DeviceType,
    /// Short name for people.
    pub name: &'static str,
    /// Channels of this class are spread over CPUs; the others stay on the boot CPU.
    pub perf: bool,
    /// Accepted from a host that the guest does not trust (isolated VM).
    pub allowed_in_isolated: bool,
    /// Ring size in bytes, header page included, that user-space ring access should use;
    /// 0 when the class has no preference.
    pub preferred_ring_size: u32,
}

macro_rules! classes {
    ($( $(#[$meta:meta])* $konst:ident = ($d1:literal, $d2:literal, $d3:literal, $d4:expr),
        $dt:ident, $name:literal, perf: $perf:literal, isolated: $iso:literal, ring: $ring:literal; )*) => {
        $( $(#[$meta])* pub const $konst: Guid = Guid::new($d1, $d2, $d3, $d4); )*

        /// All classes with a name, those without a Linux driver included.
        pub const CLASSES: &[DeviceClass] = &[
            $( DeviceClass {
                guid: $konst,
                device_type: DeviceType::$dt,
                name: $name,
                perf: $perf,
                allowed_in_isolated: $iso,
                preferred_ring_size: $ring,
            }, )*
        ];
    };
}

classes! {
    /// IDE, `{32412632-86cb-44a2-9b5c-50d1417354f5}` (`HV_IDE_GUID`).
    IDE = (0x3241_2632, 0x86cb, 0x44a2, [0x9b, 0x5c, 0x50, 0xd1, 0x41, 0x73, 0x54, 0xf5]),
        IDE, "ide", perf: true, isolated: false, ring: 0;
    /// SCSI, `{ba6163d9-04a1-4d29-b605-72e2ffb1dc7f}` (`HV_SCSI_GUID`).
    SCSI = (0xba61_63d9, 0x04a1, 0x4d29, [0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f]),
        SCSI, "scsi", perf: true, isolated: true, ring: 0;
    /// Fibre Channel, `{2f9bcc4a-0069-4af3-b76b-6fd0be528cda}` (`HV_SYNTHFC_GUID`).
    FC = (0x2f9b_cc4a, 0x0069, 0x4af3, [0xb7, 0x6b, 0x6f, 0xd0, 0xbe, 0x52, 0x8c, 0xda]),
        FC, "fc", perf: true, isolated: false, ring: 0;
    /// Network adapter, `{f8615163-df3e-46c5-913f-f2d2f965ed0e}` (`HV_NIC_GUID`).
    NIC = (0xf861_5163, 0xdf3e, 0x46c5, [0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e]),
        NIC, "net", perf: true, isolated: true, ring: 0;
    /// Network Direct, `{8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501}` (`HV_ND_GUID`).
    ND = (0x8c2e_af3d, 0x32a7, 0x4b09, [0xab, 0x99, 0xbd, 0x1f, 0x1c, 0x86, 0xb5, 0x01]),
        ND, "nd", perf: true, isolated: false, ring: 0;
    /// PCI Express pass-through, `{44c4f61d-4444-4400-9d52-802e27ede19f}` (`HV_PCIE_GUID`).
    PCIE = (0x44c4_f61d, 0x4444, 0x4400, [0x9d, 0x52, 0x80, 0x2e, 0x27, 0xed, 0xe1, 0x9f]),
        PCIE, "pcie", perf: false, isolated: true, ring: 0;
    /// Video, `{da0a7802-e377-4aac-8e77-0558eb1073f8}` (`HV_SYNTHVID_GUID`).
    SYNTHVID = (0xda0a_7802, 0xe377, 0x4aac, [0x8e, 0x77, 0x05, 0x58, 0xeb, 0x10, 0x73, 0xf8]),
        FB, "video", perf: false, isolated: false, ring: 0;
    /// Keyboard, `{f912ad6d-2b17-48ea-bd65-f927a61c7684}` (`HV_KBD_GUID`).
    KEYBOARD = (0xf912_ad6d, 0x2b17, 0x48ea, [0xbd, 0x65, 0xf9, 0x27, 0xa6, 0x1c, 0x76, 0x84]),
        KBD, "keyboard", perf: false, isolated: false, ring: 0;
    /// Mouse, `{cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a}` (`HV_MOUSE_GUID`).
    MOUSE = (0xcfa8_b69e, 0x5b4a, 0x4cc0, [0xb9, 0x8b, 0x8b, 0xa1, 0xa1, 0xf3, 0xf9, 0x5a]),
        MOUSE, "mouse", perf: false, isolated: false, ring: 0;
    /// Key-value pair exchange, `{a9a0f4e7-5a45-4d96-b827-8a841e8c03e6}` (`HV_KVP_GUID`).
    KVP = (0xa9a0_f4e7, 0x5a45, 0x4d96, [0xb8, 0x27, 0x8a, 0x84, 0x1e, 0x8c, 0x03, 0xe6]),
        KVP, "kvp", perf: false, isolated: false, ring: 0;
    /// Time synchronisation, `{9527e630-d0ae-497b-adce-e80ab0175caf}` (`HV_TS_GUID`).
    TIMESYNC = (0x9527_e630, 0xd0ae, 0x497b, [0xad, 0xce, 0xe8, 0x0a, 0xb0, 0x17, 0x5c, 0xaf]),
        TS, "timesync", perf: false, isolated: true, ring: 0;
    /// Heartbeat, `{57164f39-9115-4e78-ab55-382f3bd5422d}` (`HV_HEART_BEAT_GUID`).
    HEARTBEAT = (0x5716_4f39, 0x9115, 0x4e78, [0xab, 0x55, 0x38, 0x2f, 0x3b, 0xd5, 0x42, 0x2d]),
        HB, "heartbeat", perf: false, isolated: true, ring: 0;
    /// Guest shutdown, `{0e0b6031-5213-4934-818b-38d90ced39db}` (`HV_SHUTDOWN_GUID`).
    SHUTDOWN = (0x0e0b_6031, 0x5213, 0x4934, [0x81, 0x8b, 0x38, 0xd9, 0x0c, 0xed, 0x39, 0xdb]),
        SHUTDOWN, "shutdown", perf: false, isolated: true, ring: 0;
    /// File copy, `{34d14be3-dee4-41c8-9ae7-6b174977c192}` (`HV_FCOPY_GUID`).
    FCOPY = (0x34d1_4be3, 0xdee4, 0x41c8, [0x9a, 0xe7, 0x6b, 0x17, 0x49, 0x77, 0xc1, 0x92]),
        FCOPY, "fcopy", perf: false, isolated: false, ring: 0x4000;
    /// Backup, `{35fa2e29-ea23-4236-96ae-3a6ebacba440}` (`HV_VSS_GUID`).
    VSS = (0x35fa_2e29, 0xea23, 0x4236, [0x96, 0xae, 0x3a, 0x6e, 0xba, 0xcb, 0xa4, 0x40]),
        BACKUP, "vss", perf: false, isolated: false, ring: 0;
    /// Dynamic memory, `{525074dc-8985-46e2-8057-a307dc18a502}` (`HV_DM_GUID`).
    DYNAMIC_MEMORY = (0x5250_74dc, 0x8985, 0x46e2, [0x80, 0x57, 0xa3, 0x07, 0xdc, 0x18, 0xa5, 0x02]),
        DM, "dynmem", perf: false, isolated: false, ring: 0;
    /// Automatic VM activation, `{f8e65716-3cb3-4a06-9a60-1889c5cccab5}` (`HV_AVMA1_GUID`); no Linux driver.
    AVMA1 = (0xf8e6_5716, 0x3cb3, 0x4a06, [0x9a, 0x60, 0x18, 0x89, 0xc5, 0xcc, 0xca, 0xb5]),
        UNKNOWN, "avma1", perf: false, isolated: false, ring: 0x11000;
    /// Automatic VM activation, `{3375baf4-9e15-4b30-b765-67acb10d607b}` (`HV_AVMA2_GUID`); no Linux driver.
    AVMA2 = (0x3375_baf4, 0x9e15, 0x4b30, [0xb7, 0x65, 0x67, 0xac, 0xb1, 0x0d, 0x60, 0x7b]),
        UNKNOWN, "avma2", perf: false, isolated: false, ring: 0x11000;
    /// Remote desktop, `{276aacf4-ac15-426c-98dd-7521ad3f01fe}` (`HV_RDV_GUID`); no Linux driver.
    RDV = (0x276a_acf4, 0xac15, 0x426c, [0x98, 0xdd, 0x75, 0x21, 0xad, 0x3f, 0x01, 0xfe]),
        UNKNOWN, "rdv", perf: false, isolated: false, ring: 0x11000;
    /// Initial machine configuration, `{c376c1c3-d276-48d2-90a9-c04748072c60}` (`HV_IMC_GUID`); no Linux driver.
    IMC = (0xc376_c1c3, 0xd276, 0x48d2, [0x90, 0xa9, 0xc0, 0x47, 0x48, 0x07, 0x2c, 0x60]),
        UNKNOWN, "imc", perf: false, isolated: false, ring: 0x11000;
}

/// What a class that nobody knows gets (`vmbus_devs`, last entry).
pub const UNKNOWN_CLASS: DeviceClass = DeviceClass {
    guid: Guid::ZERO,
    device_type: DeviceType::UNKNOWN,
    name: "unknown",
    perf: false,
    allowed_in_isolated: false,
    preferred_ring_size: 0x11000,
};

/// The class with GUID `guid`, or [`UNKNOWN_CLASS`].
#[must_use]
pub fn class_of(guid: &Guid) -> &'static DeviceClass {
    CLASSES
        .iter()
        .find(|class| class.guid == *guid)
        .unwrap_or(&UNKNOWN_CLASS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn guids_are_distinct_and_found() {
        for (i, class) in CLASSES.iter().enumerate() {
            assert_eq!(class_of(&class.guid), class);
            assert!(CLASSES[..i].iter().all(|other| other.guid != class.guid));
        }
        assert_eq!(class_of(&Guid::ZERO), &UNKNOWN_CLASS);
    }

    #[test]
    fn texts_are_those_of_the_c_header() {
        assert_eq!(
            HEARTBEAT.to_string(),
            "57164f39-9115-4e78-ab55-382f3bd5422d"
        );
        assert_eq!(SHUTDOWN.to_string(), "0e0b6031-5213-4934-818b-38d90ced39db");
        assert_eq!(TIMESYNC.to_string(), "9527e630-d0ae-497b-adce-e80ab0175caf");
        assert_eq!(SCSI.to_string(), "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
        assert_eq!(IDE.to_string(), "32412632-86cb-44a2-9b5c-50d1417354f5");
        assert_eq!(FC.to_string(), "2f9bcc4a-0069-4af3-b76b-6fd0be528cda");
    }

    #[test]
    fn isolated_guests_accept_only_the_devices_of_linux_list() {
        let allowed: std::vec::Vec<_> = CLASSES
            .iter()
            .filter(|c| c.allowed_in_isolated)
            .map(|c| c.name)
            .collect();
        assert_eq!(
            allowed,
            ["scsi", "net", "pcie", "timesync", "heartbeat", "shutdown"]
        );
    }
}
