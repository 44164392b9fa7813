// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The KVP daemon as the driver sees it: messages through a socket, pools and system files in scratch directories.

mod common;

use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};

use common::{device, Driver};
use hv_daemons::device::End;
use hv_daemons::kvp::{Daemon, Pools, Service, System, KEYS};
use hv_daemons::net::{Hooks, Network};
use hv_daemons::program::Running;
use proptest::prelude::*;
use vmbus_proto::ic::kvp::{DeviceMessage, Operation, Pool, Registration};
use vmbus_proto::ic::Status;
use zerocopy::{FromBytes, IntoBytes};

fn start(root: &Path) -> (Driver, JoinHandle<End>) {
    let (end, mut driver) = device();
    let service = Service {
        pools: Pools::open(&root.join("pools")).unwrap(),
        system: System::new(root),
        network: Network {
            root: root.into(),
            hooks: Hooks::new(root.join("hooks"), root),
            dry_run: false,
        },
    };
    let handle = thread::spawn(move || {
        let mut running = Running::embedded().unwrap();
        Daemon(service)
            .exchange(end, &mut running)
            .unwrap_or_else(|error| End::Again(error.to_string()))
    });
    let registration = message(&driver.receive());
    assert_eq!(registration.operation(), Operation::REGISTER1);
    let mut answer = DeviceMessage::default();
    answer.registration(Registration::Current, "3.1").unwrap();
    driver.send(answer.as_bytes());
    (driver, handle)
}

fn message(bytes: &[u8]) -> Box<DeviceMessage> {
    assert_eq!(bytes.len(), DeviceMessage::SIZE);
    Box::new(DeviceMessage::read_from_bytes(bytes).unwrap())
}

/// A request with text at offsets of `struct hv_kvp_msg`.
fn request(operation: Operation, pool: u8, texts: &[(usize, &str)]) -> Vec<u8> {
    let mut message = DeviceMessage::default();
    message.reset(operation, Pool(pool));
    let mut bytes = message.as_bytes().to_vec();
    for (at, text) in texts {
        bytes[*at..*at + text.len()].copy_from_slice(text.as_bytes());
    }
    bytes
}

// Offsets: header 4; GET and SET: three words, key, value; DELETE: a word, key; ENUMERATE: a word more than GET.
const KEY: usize = 16;
const VALUE: usize = KEY + 512;
const DELETE_KEY: usize = 8;

fn text(bytes: &[u8], at: usize) -> String {
    let field = bytes[at..].split(|&b| b == 0).next().unwrap();
    String::from_utf8(field.to_vec()).unwrap()
}

fn pair(answer: &[u8]) -> (String, String) {
    assert_eq!(message(answer).status(), Status::OK);
    (text(answer, KEY + 4), text(answer, VALUE + 4))
}

fn enumerate(driver: &mut Driver, pool: u8, index: u32) -> Vec<u8> {
    let mut bytes = request(Operation::ENUMERATE, pool, &[]);
    bytes[4..8].copy_from_slice(&index.to_le_bytes());
    driver.ask(&bytes)
}

#[test]
fn every_operation_on_a_pool() {
    let root = tempfile::tempdir().unwrap();
    let (mut driver, daemon) = start(root.path());
    let set = request(Operation::SET, 0, &[(KEY, "name"), (VALUE, "värde")]);
    assert_eq!(message(&driver.ask(&set)).status(), Status::OK);
    let got = driver.ask(&request(Operation::GET, 0, &[(KEY, "name")]));
    // Where the driver looks.
    assert_eq!(pair(&got).1, "värde");
    assert_eq!(
        pair(&enumerate(&mut driver, 0, 0)),
        ("name".into(), "värde".into())
    );
    let none = message(&enumerate(&mut driver, 0, 1)).status();
    assert_eq!(none, Status::NO_MORE_ITEMS);
    let delete = request(Operation::DELETE, 0, &[(DELETE_KEY, "name")]);
    assert_eq!(message(&driver.ask(&delete)).status(), Status::OK);
    assert_eq!(
        message(&driver.ask(&delete)).status(),
        Status::NO_MORE_ITEMS
    );
    let missing = request(Operation::GET, 0, &[(KEY, "name")]);
    assert_eq!(
        message(&driver.ask(&missing)).status(),
        Status::NO_MORE_ITEMS
    );
    drop(driver);
    assert!(matches!(daemon.join().unwrap(), End::Again(_)));
}

#[test]
fn facts_about_the_system() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(
        root.path().join("etc/os-release"),
        "NAME=Test\nVERSION_ID=13\n",
    )
    .unwrap();
    let (mut driver, _daemon) = start(root.path());
    for (index, key) in (0..).zip(KEYS) {
        let (name, value) = pair(&enumerate(&mut driver, 2, index));
        assert_eq!(name, key);
        match key {
            "OSName" => assert_eq!(value, "Test"),
            "OSMajorVersion" => assert_eq!(value, "13"),
            "IntegrationServicesVersion" => assert_eq!(value, "3.1"),
            _ => {}
        }
    }
    let end = message(&enumerate(&mut driver, 2, 10)).status();
    assert_eq!(end, Status::NO_MORE_ITEMS);
}

/// Offsets of the lists in `struct hv_kvp_ipaddr_value`.
const ADAPTER: usize = 4;
const ADDRESS: usize = 4 + 258;
const SUBNET: usize = ADDRESS + 2048;
const GATEWAY: usize = SUBNET + 2048;
const DNS: usize = GATEWAY + 1024;

#[test]
fn addresses_are_set_through_a_file() {
    let root = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("sys/class/net/eth0/ifindex", "2\n");
    write("sys/class/net/eth0/address", "00:15:5d:00:00:0a\n");
    write(
        "sys/class/net/eth0/device/device_id",
        "{f8615163-0001-1000-2000-00155d00000a}\n",
    );
    write("run/systemd/netif/links/2", "ADMIN_STATE=configured\n");
    let (mut driver, _daemon) = start(root.path());
    let ask = |driver: &mut Driver, adapter: &str, address: &str, subnet: &str| {
        let texts = [
            (ADAPTER, adapter),
            (ADDRESS, address),
            (SUBNET, subnet),
            (GATEWAY, "192.0.2.1"),
            (DNS, "192.0.2.53"),
        ];
        message(&driver.ask(&request(Operation::SET_IP_INFO, 0, &texts))).status()
    };
    let guid = "{F8615163-0001-1000-2000-00155D00000A}";
    assert_eq!(
        ask(
            &mut driver,
            "{00000000-0000-0000-0000-000000000000}",
            "192.0.2.5",
            "/24"
        ),
        Status::GUID_NOT_FOUND
    );
    assert_eq!(
        ask(&mut driver, guid, "192.0.2.5\n[Run]", "/24"),
        Status::INVALID_ARGUMENT
    );
    // No networkd answers here, so that the change is undone.
    assert_eq!(
        ask(&mut driver, guid, "192.0.2.5", "255.255.255.0"),
        Status::FAIL
    );
    let file = root
        .path()
        .join("etc/systemd/network/05-hyperv-eth0.network");
    assert!(!file.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the driver hands on, the daemon answers, and goes on answering.
    #[test]
    fn nonsense_is_answered(
        head in any::<[u8; 4]>(),
        words in any::<[u32; 4]>(),
        fill in prop_oneof![Just(0u8), Just(0xff), Just(b'/'), Just(0xc3), any::<u8>()],
    ) {
        let root = tempfile::tempdir().unwrap();
        let (mut driver, _daemon) = start(root.path());
        let mut bytes = vec![fill; DeviceMessage::SIZE];
        bytes[..4].copy_from_slice(&head);
        for (i, word) in words.iter().enumerate() {
            bytes[4 + 4 * i..8 + 4 * i].copy_from_slice(&word.to_le_bytes());
        }
        for operation in 0..7 {
            bytes[0] = operation;
            driver.ask(&bytes);
        }
        bytes[0] = head[0];
        driver.ask(&bytes);
        pair(&enumerate(&mut driver, 2, 0));
        let stray = fs::read_dir(root.path()).unwrap().count();
        prop_assert_eq!(stray, 1);
    }
}

#[test]
fn a_message_of_another_length_resets_the_connection() {
    for length in [1, 4, DeviceMessage::SIZE - 1, DeviceMessage::SIZE + 5] {
        let root = tempfile::tempdir().unwrap();
        let (mut driver, daemon) = start(root.path());
        driver.send(&vec![3; length]);
        assert!(matches!(daemon.join().unwrap(), End::Again(_)), "{length}");
    }
}
