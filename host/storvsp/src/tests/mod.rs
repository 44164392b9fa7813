// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A guest's driver, played by a script, against the controller: messages, rings and disks are real.

mod fuzz;
pub(crate) mod resets;

use hv_vmbus_host::testing::{Bench, GuestChannel};
use hv_vmbus_host::DeviceConfig;
use hvctl::{Command, DiskFault, DiskInfo, DiskNotice, DiskSpec, MalformedCompletion};
use vmbus_proto::storvsc::client::{Client, Config, Negotiated, Step};
use vmbus_proto::storvsc::srb::{DataIn, ScsiAddress, ScsiStatus, Transfer};
use vmbus_proto::storvsc::wire::SubChannelCount;
use vmbus_proto::storvsc::{
    NtStatus, Operation, ScsiPacket, ScsiRequest, SrbCode, StorVersion, VstorPacket,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::scsi::cdb::op;

/// Pages from here on are for data.
const DATA: u64 = 512;

struct Guest {
    bench: Bench,
    primary: GuestChannel,
    negotiated: Option<Negotiated>,
    next_id: u64,
}

fn config(name: &str, args: &[(&str, &str)]) -> DeviceConfig {
    DeviceConfig {
        name: name.into(),
        args: args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    }
}

fn address(target: u8, lun: u8) -> ScsiAddress {
    ScsiAddress {
        target,
        lun,
        ..ScsiAddress::default()
    }
}

fn rw(opcode: u8, lba: u8, count: u8) -> [u8; 10] {
    [opcode, 0, 0, 0, 0, lba, 0, 0, count, 0]
}

fn completion(payload: &[u8]) -> ScsiPacket {
    ScsiPacket::read_from_prefix(payload).expect("64 bytes").0
}

impl Guest {
    /// Connects and opens the controller, without the handshake.
    fn opened(configs: &[DeviceConfig]) -> (Bench, GuestChannel) {
        let mut bench = Bench::with_makers(configs, &[crate::make]);
        bench.connect();
        let class = if configs[0].name.starts_with("ide") {
            "ide"
        } else {
            "scsi"
        };
        let primary = bench.open(class, 8);
        (bench, primary)
    }

    fn new(configs: &[DeviceConfig]) -> Self {
        let (bench, primary) = Self::opened(configs);
        let mut guest = Self {
            bench,
            primary,
            negotiated: None,
            next_id: 100,
        };
        guest.handshake();
        guest
    }

    fn handshake(&mut self) {
        let mut client = Client::new(Config {
            newest: StorVersion::V6_2,
            fibre_channel: false,
            sub_channels: 3,
        });
        let mut packet = client.start();
        self.negotiated = Some(loop {
            self.bench
                .transmit_request(&mut self.primary, 1, packet.as_bytes());
            let (id, answer) = self.receive().expect("an answer");
            assert_eq!(id, 1);
            match client.on_answer(&answer).expect("a good answer") {
                Step::Send(next) => packet = next,
                Step::Ready(negotiated) => break negotiated,
            }
        });
    }

    fn negotiated(&self) -> Negotiated {
        self.negotiated.expect("a handshake")
    }

    fn with_ram_disk(args: &[(&str, &str)]) -> Self {
        let mut all = vec![("lun0", "ram;size=1M")];
        all.extend(args);
        Self::new(&[config("scsi0", &all)])
    }

    /// Sends a command with its data in pages from [`DATA`] on; its id.
    fn send_to(&mut self, at: ScsiAddress, cdb: &[u8], transfer: Transfer) -> u64 {
        self.next_id += 1;
        let request = ScsiRequest::command(at, cdb, transfer, true).expect("a command");
        let packet = ScsiPacket::execute(request);
        if transfer.is_empty() {
            self.bench
                .transmit_request(&mut self.primary, self.next_id, packet.as_bytes());
        } else {
            let pages: Vec<u64> = (DATA..DATA + u64::from(transfer.len().div_ceil(4096))).collect();
            self.bench.transmit_gpa(
                &mut self.primary,
                self.next_id,
                packet.as_bytes(),
                (0, transfer.len(), &pages),
            );
        }
        self.next_id
    }

    fn send(&mut self, cdb: &[u8], transfer: Transfer) -> u64 {
        self.send_to(address(0, 0), cdb, transfer)
    }

    fn receive(&mut self) -> Option<(u64, Vec<u8>)> {
        self.bench.receive(&mut self.primary)
    }

    /// The next packet from the host, for which its threads may have to work.
    fn wait(&mut self) -> (u64, Vec<u8>) {
        for _ in 0..100 {
            if let Some(got) = self.receive() {
                return got;
            }
            self.bench.wait_and_run();
        }
        panic!("the host says nothing");
    }

    fn run_at(&mut self, at: ScsiAddress, cdb: &[u8], transfer: Transfer) -> ScsiRequest {
        let id = self.send_to(at, cdb, transfer);
        let (got, payload) = self.wait();
        assert_eq!(got, id);
        assert_eq!(payload.len(), 64);
        let packet = completion(&payload);
        assert_eq!(packet.header.operation, Operation::COMPLETE_IO);
        packet.request
    }

    fn run(&mut self, cdb: &[u8], transfer: Transfer) -> ScsiRequest {
        self.run_at(address(0, 0), cdb, transfer)
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench.ram().read(DATA * 4096, &mut data).expect("RAM");
        data
    }

    fn set_data(&self, data: &[u8]) {
        self.bench.ram().write(DATA * 4096, data).expect("RAM");
    }

    fn fault(&mut self, opcode: Option<u8>, count: u32, fault: DiskFault) {
        let cmd = Command::DiskFault {
            device: "scsi0".into(),
            lun: None,
            opcode,
            count,
            skip: 0,
            fault,
        };
        self.bench.control(cmd).expect("a fault");
    }

    fn disks(&mut self) -> Vec<DiskInfo> {
        let value = self.bench.control(Command::Disks).expect("disks");
        serde_json::from_value(value).expect("disks")
    }

    fn violations(&mut self) -> u64 {
        self.bench.violations().count
    }
}

#[test]
fn commands_are_carried_out_at_once_or_by_threads() {
    for fast in ["on", "off"] {
        let mut guest = Guest::with_ram_disk(&[("fast", fast)]);
        assert_eq!(guest.negotiated().version, StorVersion::V6_2);
        assert_eq!(guest.negotiated().max_transfer_bytes, 256 << 10);
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i % 253) as u8).collect();
        guest.set_data(&bytes);
        let done = guest.run(&rw(op::WRITE_10, 3, 16), Transfer::ToDevice(8192));
        assert_eq!(done.srb_status.0, SrbCode::SUCCESS.0);
        assert_eq!(done.data_transfer_length, 8192);
        guest.set_data(&[0; 8192]);
        guest.run(&rw(op::READ_10, 3, 16), Transfer::FromDevice(8192));
        assert_eq!(guest.data(8192), bytes);
        let info = guest.disks().remove(0);
        assert_eq!(
            (info.device.as_str(), info.lun, info.size),
            ("scsi0", 0, 1 << 20)
        );
        assert_eq!((info.counters.reads, info.counters.writes), (1, 1));
        assert_eq!(
            (info.counters.bytes_read, info.counters.bytes_written),
            (8192, 8192)
        );
        assert_eq!(
            (info.counters.in_flight, info.counters.max_in_flight),
            (0, 1)
        );
        assert_eq!(guest.violations(), 0);
    }
}

#[test]
fn an_image_keeps_what_is_written_and_is_listed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("image");
    let spec = format!("{};size=1M", path.display());
    let mut guest = Guest::new(&[config("scsi0", &[("lun7", &spec)])]);
    guest.set_data(&[0x5a; 4096]);
    let at = address(0, 7);
    let written = guest.run_at(at, &rw(op::WRITE_10, 8, 8), Transfer::ToDevice(4096));
    assert_eq!(written.srb_status.code(), SrbCode::SUCCESS);
    let flushed = guest.run_at(
        at,
        &[op::SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        Transfer::None,
    );
    assert_eq!(flushed.srb_status.code(), SrbCode::SUCCESS);
    let image = std::fs::read(&path).expect("image");
    assert_eq!(image.len(), 1 << 20);
    assert!(image[..4096].iter().all(|b| *b == 0) && image[4096..8192].iter().all(|b| *b == 0x5a));
    let info = guest.disks().remove(0);
    assert_eq!(info.file.as_deref(), path.to_str());
    assert_eq!(
        (info.lun, info.counters.flushes, info.allocated),
        (7, 1, 4096)
    );
}

#[test]
fn what_is_not_there_answers_as_hyper_v_does() {
    let mut guest = Guest::with_ram_disk(&[]);
    for at in [
        address(0, 1),
        address(1, 0),
        ScsiAddress {
            path: 1,
            ..address(0, 0)
        },
    ] {
        let tur = guest.run_at(at, &[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], Transfer::None);
        assert_eq!(tur.srb_status.code(), SrbCode::INVALID_LUN);
        assert!(tur.sense().is_none());
        let inquiry = guest.run_at(at, &[op::INQUIRY, 0, 0, 0, 36, 0], Transfer::FromDevice(36));
        assert_eq!(inquiry.srb_status.code(), SrbCode::SUCCESS);
        assert_eq!(guest.data(1), [0x7f]);
    }
    let luns = guest.run(
        &[op::REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0],
        Transfer::FromDevice(16),
    );
    assert_eq!(luns.data_transfer_length, 16);
    assert_eq!(
        guest.data(16),
        [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    let unknown = guest.run(&[0xff], Transfer::None);
    assert_eq!(unknown.scsi_status, ScsiStatus::CHECK_CONDITION);
    let sense = unknown.sense().expect("sense");
    assert_eq!((sense[2], sense[12]), (5, 0x20));
}

#[test]
fn the_ide_disk_is_found_by_its_guid_whatever_the_path() {
    let mut guest = Guest::new(&[config("ide3", &[("disk", "ram;size=1M")])]);
    assert_eq!(guest.negotiated().sub_channels, 0);
    for path in [0, 1] {
        let at = ScsiAddress {
            path,
            ..address(1, 0)
        };
        let tur = guest.run_at(at, &[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], Transfer::None);
        assert_eq!(tur.srb_status.code(), SrbCode::SUCCESS);
    }
    let tur = guest.run(&[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], Transfer::None);
    assert_eq!(tur.srb_status.code(), SrbCode::INVALID_LUN);
}

#[test]
fn sixty_four_disks_on_four_controllers() {
    let mut args = Vec::new();
    for lun in 0..16 {
        args.push((format!("lun{lun}"), "ram;size=64K".to_owned()));
    }
    let configs: Vec<DeviceConfig> = (0..4)
        .map(|n| DeviceConfig {
            name: format!("scsi{n}"),
            args: args.clone(),
        })
        .collect();
    let mut guest = Guest::new(&configs);
    let disks = guest.disks();
    assert_eq!(disks.len(), 64);
    let serials: std::collections::HashSet<&str> =
        disks.iter().map(|d| d.serial.as_str()).collect();
    assert_eq!(serials.len(), 64);
    let cdb = [op::REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    guest.run(&cdb, Transfer::FromDevice(4096));
    assert_eq!(guest.data(4), (16u32 * 8).to_be_bytes());
}

#[test]
fn sub_channels_are_offered_and_answer_on_themselves() {
    let mut guest = Guest::with_ram_disk(&[("subchannels", "2")]);
    assert_eq!(guest.negotiated().sub_channels, 2);
    let mut subs = Vec::new();
    while let Some(message) = guest.bench.heard() {
        match message {
            vmbus_proto::msg::HostMessage::OfferChannel(offer) => subs.push(offer),
            other => panic!("{other:?}"),
        }
    }
    let indices: Vec<u16> = subs.iter().map(|o| o.subchannel_index).collect();
    assert_eq!(indices, [1, 2]);
    let mut sub = guest.bench.open_relid(subs[1].relid, 4);
    let request = ScsiRequest::command(
        address(0, 0),
        &[op::TEST_UNIT_READY, 0, 0, 0, 0, 0],
        Transfer::None,
        true,
    );
    let packet = ScsiPacket::execute(request.expect("a command"));
    guest
        .bench
        .transmit_request(&mut sub, 77, packet.as_bytes());
    let (id, payload) = guest
        .bench
        .receive(&mut sub)
        .expect("an answer on the sub-channel");
    assert_eq!(
        (id, completion(&payload).request.srb_status.code()),
        (77, SrbCode::SUCCESS)
    );
    assert!(guest.receive().is_none());
    // The handshake is not for sub-channels.
    guest.bench.transmit_request(
        &mut sub,
        78,
        VstorPacket::request(Operation::QUERY_PROPERTIES).as_bytes(),
    );
    let (_, payload) = guest.bench.receive(&mut sub).expect("a refusal");
    assert_eq!(
        completion(&payload).header.status,
        NtStatus::INVALID_DEVICE_STATE
    );
    assert_eq!(guest.violations(), 1);
    // One of them is taken away while the other goes on.
    guest
        .bench
        .control(Command::Rescind {
            device: "scsi0/2".into(),
        })
        .expect("rescinded");
    assert!(guest
        .bench
        .control(Command::Rescind {
            device: "scsi0/3".into()
        })
        .is_err());
    let tur = guest.run(&[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], Transfer::None);
    assert_eq!(tur.srb_status.code(), SrbCode::SUCCESS);
}

#[test]
fn more_sub_channels_than_there_are_get_refused() {
    let mut guest = Guest::with_ram_disk(&[("subchannels", "0")]);
    assert_eq!(guest.negotiated().sub_channels, 0);
    let packet = VstorPacket::request(Operation::CREATE_SUB_CHANNELS)
        .with_body(&SubChannelCount { count: 1 });
    guest
        .bench
        .transmit_request(&mut guest.primary, 9, packet.as_bytes());
    let (_, payload) = guest.wait();
    assert_eq!(
        completion(&payload).header.status,
        NtStatus::INVALID_PARAMETER
    );
    assert!(guest.bench.heard().is_none(), "no offer");
}

#[test]
fn an_older_host_speaks_the_older_version() {
    let guest = Guest::with_ram_disk(&[("max", "6.0")]);
    assert_eq!(guest.negotiated().version, StorVersion::V6_0);
}

#[test]
fn disks_come_and_go_and_the_guest_is_told() {
    let mut guest = Guest::with_ram_disk(&[]);
    let spec = DiskSpec {
        ram: true,
        size: Some(1 << 20),
        sector: 4096,
        discard: true,
        ..DiskSpec::default()
    };
    let add = |lun| Command::DiskAdd {
        device: "scsi0".into(),
        lun,
        target: 0,
        disk: spec.clone(),
        notify: true,
    };
    guest.bench.control(add(5)).expect("added");
    assert!(guest
        .bench
        .control(add(5))
        .expect_err("taken")
        .contains("lun 5 is taken"));
    let notice = |guest: &mut Guest| {
        let (id, payload) = guest.wait();
        assert_eq!(id, 0);
        completion(&payload).header.operation
    };
    assert_eq!(notice(&mut guest), Operation::ENUMERATE_BUS);
    let tur = [op::TEST_UNIT_READY, 0, 0, 0, 0, 0];
    assert_eq!(
        guest
            .run_at(address(0, 5), &tur, Transfer::None)
            .srb_status
            .code(),
        SrbCode::SUCCESS
    );
    let resize = Command::DiskResize {
        device: "scsi0".into(),
        lun: 5,
        target: 0,
        size: 2 << 20,
        notify: true,
    };
    guest.bench.control(resize).expect("resized");
    assert_eq!(notice(&mut guest), Operation::ENUMERATE_BUS);
    let told = guest.run_at(address(0, 5), &tur, Transfer::None);
    assert_eq!(told.srb_status.code(), SrbCode::ERROR);
    let sense = told.sense().expect("sense");
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x2a, 9));
    let remove = Command::DiskRemove {
        device: "scsi0".into(),
        lun: 5,
        target: 0,
        notify: true,
    };
    guest.bench.control(remove.clone()).expect("removed");
    assert_eq!(notice(&mut guest), Operation::REMOVE_DEVICE);
    assert_eq!(
        guest
            .run_at(address(0, 5), &tur, Transfer::None)
            .srb_status
            .code(),
        SrbCode::INVALID_LUN
    );
    assert!(guest.bench.control(remove).is_err());
    guest
        .bench
        .control(Command::DiskNotify {
            device: "scsi0".into(),
            what: DiskNotice::Enumerate,
        })
        .expect("told");
    assert_eq!(notice(&mut guest), Operation::ENUMERATE_BUS);
    let other = Command::DiskNotify {
        device: "scsi9".into(),
        what: DiskNotice::Enumerate,
    };
    assert!(guest
        .bench
        .control(other)
        .expect_err("unknown")
        .contains("no storage controller"));
}

#[test]
fn injected_errors_reach_the_commands_they_are_for() {
    let mut guest = Guest::with_ram_disk(&[]);
    guest.fault(
        Some(op::READ_10),
        1,
        DiskFault::Status {
            srb: 4,
            scsi: 2,
            sense: Some([3, 0x11, 0]),
        },
    );
    let write = guest.run(&rw(op::WRITE_10, 0, 1), Transfer::ToDevice(512));
    assert_eq!(write.srb_status.code(), SrbCode::SUCCESS);
    let read = guest.run(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    assert_eq!(read.srb_status.0, 0x84);
    let sense = read.sense().expect("sense");
    assert_eq!((sense[2], sense[12]), (3, 0x11));
    let read = guest.run(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    assert_eq!(read.srb_status.code(), SrbCode::SUCCESS, "once");
    let counters = guest.disks()[0].counters;
    assert_eq!((counters.injected, counters.errors), (1, 0));
}

#[test]
fn delays_stalls_and_lost_completions() {
    let mut guest = Guest::with_ram_disk(&[]);
    let read = |guest: &mut Guest| guest.send(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    guest.fault(None, 1, DiskFault::Delay { ms: 500 });
    let late = read(&mut guest);
    let soon = read(&mut guest);
    assert_eq!(guest.receive().expect("not delayed").0, soon);
    guest.bench.pass(400, false);
    assert!(guest.receive().is_none());
    guest.bench.pass(200, true);
    assert!(
        guest.receive().is_none(),
        "time stands still while the VM is stopped"
    );
    guest.bench.pass(200, false);
    assert_eq!(guest.receive().expect("late").0, late);

    guest.fault(None, 1, DiskFault::Stall { ms: 300_000 });
    let ids: Vec<u64> = (0..3).map(|_| read(&mut guest)).collect();
    guest.bench.pass(60_000, false);
    assert!(guest.receive().is_none());
    assert_eq!(
        guest.disks()[0].counters.in_flight,
        3,
        "not begun, but in flight"
    );
    guest.bench.pass(240_100, false);
    for id in ids {
        assert_eq!(guest.receive().expect("after the stall").0, id);
    }

    guest.fault(None, 2, DiskFault::Lose);
    let lost = [read(&mut guest), read(&mut guest)];
    guest.bench.pass(1_000, false);
    assert!(guest.receive().is_none());
    assert_eq!(guest.disks()[0].counters.in_flight, 2);
    let reset = ScsiPacket::reset(Operation::RESET_BUS, address(0, 0));
    guest
        .bench
        .transmit_request(&mut guest.primary, 5, reset.as_bytes());
    for id in lost {
        let (got, payload) = guest.wait();
        assert_eq!(
            (got, completion(&payload).request.srb_status.code()),
            (id, SrbCode::BUS_RESET)
        );
    }
    let (id, payload) = guest.wait();
    assert_eq!(
        (id, completion(&payload).header.status),
        (5, NtStatus::SUCCESS),
        "the reset comes last"
    );
    assert_eq!(guest.disks()[0].counters.in_flight, 0);
    assert_eq!(guest.violations(), 0);
}

#[test]
fn completions_are_reordered_on_request() {
    let mut guest = Guest::with_ram_disk(&[]);
    guest.fault(None, 1, DiskFault::Reorder { window: 3 });
    let read = |guest: &mut Guest| guest.send(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    let ids: Vec<u64> = (0..4).map(|_| read(&mut guest)).collect();
    let first: Vec<u64> = std::iter::from_fn(|| guest.receive())
        .map(|(id, _)| id)
        .collect();
    assert_eq!(first, [ids[2], ids[1], ids[0]]);
    guest.bench.pass(30, false);
    assert_eq!(guest.receive().expect("not held for ever").0, ids[3]);
    let held = read(&mut guest);
    guest.fault(None, 1, DiskFault::Clear);
    assert_eq!(guest.receive().expect("let go").0, held);
}

#[test]
fn malformed_completions_are_as_ordered() {
    let mut guest = Guest::with_ram_disk(&[]);
    for how in [
        MalformedCompletion::Short,
        MalformedCompletion::IdZero,
        MalformedCompletion::UnknownId,
        MalformedCompletion::Twice,
        MalformedCompletion::Sense,
        MalformedCompletion::Transfer,
        MalformedCompletion::Operation,
    ] {
        guest.fault(None, 1, DiskFault::Malformed { how });
        let id = guest.send(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
        let (first, wrong) = guest.wait();
        match how {
            MalformedCompletion::Short => assert_eq!((first, wrong.len()), (id, 16)),
            MalformedCompletion::IdZero => assert_eq!(first, 0),
            MalformedCompletion::UnknownId => assert!(first != id && first != 0),
            MalformedCompletion::Twice => assert_eq!(first, id),
            MalformedCompletion::Sense => {
                assert_eq!(completion(&wrong).request.sense_info_length, 255)
            }
            MalformedCompletion::Transfer => {
                assert_eq!(completion(&wrong).request.data_transfer_length, u32::MAX);
            }
            MalformedCompletion::Operation => {
                assert_eq!(completion(&wrong).header.operation, Operation::EXECUTE_SRB);
            }
        }
        if !matches!(
            how,
            MalformedCompletion::Sense | MalformedCompletion::Transfer
        ) {
            let (last, right) = guest.wait();
            assert_eq!(last, id, "{how:?}: the right one follows");
            assert_eq!(completion(&right).request.data_transfer_length, 512);
        }
        assert!(guest.receive().is_none(), "{how:?}");
    }
}

#[test]
fn after_a_close_nothing_is_written_to_the_guest() {
    let mut guest = Guest::with_ram_disk(&[("subchannels", "0")]);
    guest.fault(None, 2, DiskFault::Delay { ms: 100 });
    guest.fault(None, 1, DiskFault::Stall { ms: 50 });
    guest.set_data(&[0xaa; 512]);
    guest.send(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    guest.send(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    guest.bench.close(&guest.primary);
    guest.bench.pass(300, false);
    assert_eq!(guest.data(512), [0xaa; 512]);
    assert_eq!(guest.disks()[0].counters.in_flight, 0);
    // A new opening begins anew.
    guest.primary = guest.bench.open("scsi", 8);
    assert!(guest.receive().is_none());
    let request =
        ScsiRequest::command(address(0, 0), &[0; 6], Transfer::None, true).expect("a command");
    guest.bench.transmit_request(
        &mut guest.primary,
        6,
        ScsiPacket::execute(request).as_bytes(),
    );
    let (_, payload) = guest.wait();
    assert_eq!(
        completion(&payload).header.status,
        NtStatus::INVALID_DEVICE_STATE
    );
}

#[test]
fn a_full_ring_holds_completions_back_and_loses_none() {
    let mut guest = Guest::with_ram_disk(&[]);
    // The ring to the guest holds some 370 completions of 88 bytes.
    let ids: Vec<u64> = (0..600)
        .map(|_| guest.send(&[0; 6], Transfer::None))
        .collect();
    let mut got = Vec::new();
    for _ in 0..2000 {
        match guest.receive() {
            Some((id, _)) => got.push(id),
            None if got.len() == ids.len() => break,
            None => guest.bench.run(),
        }
    }
    assert_eq!(got, ids);
    assert_eq!(guest.violations(), 0);
}

#[test]
fn attack_packets_that_break_the_protocol() {
    let (mut bench, mut primary) = Guest::opened(&[config("scsi0", &[("lun0", "ram;size=1M")])]);
    let request =
        ScsiRequest::command(address(0, 0), &[0; 6], Transfer::None, true).expect("a command");
    bench.transmit_request(&mut primary, 3, ScsiPacket::execute(request).as_bytes());
    let (_, payload) = bench.receive(&mut primary).expect("a refusal");
    assert_eq!(
        completion(&payload).header.status,
        NtStatus::INVALID_DEVICE_STATE,
        "before the handshake"
    );
    assert_eq!(bench.violations().count, 1);

    let mut guest = Guest::with_ram_disk(&[]);
    let execute = |cdb_length: u8, data_in: DataIn, len: u32| {
        let mut request =
            ScsiRequest::command(address(0, 0), &rw(op::READ_10, 0, 1), Transfer::None, true)
                .expect("a command");
        request.cdb_length = cdb_length;
        request.data_in = data_in;
        request.data_transfer_length = len;
        ScsiPacket::execute(request)
    };
    // Range, and what the command says of it.
    type Range = (u32, u32, &'static [u64]);
    let table: [(&str, ScsiPacket, Range); 6] = [
        (
            "CDB of 17 bytes",
            execute(17, DataIn::READ, 512),
            (0, 512, &[DATA]),
        ),
        (
            "more data than the range has",
            execute(10, DataIn::READ, 513),
            (0, 512, &[DATA]),
        ),
        ("direction", execute(10, DataIn(7), 512), (0, 512, &[DATA])),
        (
            "not RAM",
            execute(10, DataIn::READ, 512),
            (0, 512, &[1 << 40]),
        ),
        (
            "not RAM at the end",
            execute(10, DataIn::READ, 8192),
            (0, 8192, &[DATA, 1024]),
        ),
        (
            "overflow",
            execute(10, DataIn::READ, 512),
            (4000, 512, &[u64::MAX, DATA]),
        ),
    ];
    for (n, (what, packet, range)) in (1..).zip(table) {
        guest
            .bench
            .transmit_gpa(&mut guest.primary, 7, packet.as_bytes(), range);
        let (id, payload) = guest.wait();
        let answer = completion(&payload);
        assert_eq!(id, 7, "{what}");
        assert_ne!(answer.header.status, NtStatus::SUCCESS, "{what}");
        assert_eq!(guest.violations(), n, "{what}");
    }
    // For the wrong direction: the disk cannot write where it may only read.
    let wrong = execute(10, DataIn::WRITE, 512);
    guest
        .bench
        .transmit_gpa(&mut guest.primary, 8, wrong.as_bytes(), (0, 512, &[DATA]));
    let (_, payload) = guest.wait();
    assert_eq!(
        completion(&payload).request.srb_status.code(),
        SrbCode::INVALID_REQUEST
    );
    for len in [0, 4, 8, 16, 40] {
        guest.bench.transmit_request(
            &mut guest.primary,
            9,
            &execute(10, DataIn::READ, 0).as_bytes()[..len],
        );
    }
    while guest.receive().is_some() {}
    let read = guest.run(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    assert_eq!(
        read.srb_status.code(),
        SrbCode::SUCCESS,
        "the channel goes on"
    );
}

#[test]
fn a_guest_that_reads_nothing_does_not_fill_the_hosts_memory() {
    let mut guest = Guest::with_ram_disk(&[]);
    guest.fault(None, 0, DiskFault::Lose);
    for _ in 0..8192 {
        guest.send(&[0; 6], Transfer::None);
    }
    assert_eq!(guest.violations(), 0);
    guest.send(&[0; 6], Transfer::None);
    assert_eq!(guest.violations(), 1);
    assert_eq!(guest.disks()[0].counters.in_flight, 8192);
}
