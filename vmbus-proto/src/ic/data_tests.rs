// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Formats of KVP, VSS and file copy: what one side writes the other reads, and every field out of range is refused.

use super::field::FieldError;
use super::text::{self, TextError, Utf16};
use super::{fcopy, kvp, vss, Status};
use kvp::{
    wire, AddressFamily, DeviceMessage, IpConfig, Operation, Pool, Registration, Request, Value,
};
use proptest::prelude::*;
use std::boxed::Box;
use std::string::{String, ToString};
use std::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

fn device() -> Box<DeviceMessage> {
    Box::default()
}

fn string(text: Utf16<'_>) -> String {
    text.chars().collect::<Result<_, _>>().unwrap()
}

fn wire_of(request: &Request<'_>) -> Vec<u8> {
    let mut out = Box::new([0; wire::MAX_BODY]);
    let len = wire::write(request, &mut out).unwrap();
    out[..len].to_vec()
}

/// Host to daemon.
fn deliver(body: &[u8]) -> Result<Box<DeviceMessage>, FieldError> {
    let mut out = device();
    wire::to_device(kvp::VERSION_4_0, body, &mut out).map(|_| out)
}

const IP: IpConfig<'_> = IpConfig {
    adapter: "{61111111-2222-3333-4444-555555555555}",
    family: AddressFamily::IPV4,
    dhcp: false,
    addresses: "10.0.0.2;10.0.0.3",
    subnets: "255.255.255.0;255.255.0.0",
    gateways: "10.0.0.1",
    dns: "10.0.0.53",
};

#[test]
fn requests_reach_the_daemon() {
    let pool = Pool::EXTERNAL;
    for request in [
        Request::Get {
            pool: Pool::GUEST,
            key: "Grüße 🐧",
        },
        Request::Set {
            pool,
            key: "k",
            value: Value::Text("wert, mit ü"),
        },
        Request::Delete { pool, key: "k" },
        Request::Enumerate {
            pool: Pool::AUTO,
            index: 7,
        },
        Request::GetIp {
            adapter: "02:15:5D:00:00:01",
            family: AddressFamily::BOTH,
        },
        Request::SetIp(IP),
    ] {
        let message = deliver(&wire_of(&request)).unwrap();
        assert_eq!(message.parse().unwrap(), request);
    }
}

#[test]
fn numbers_reach_the_daemon_as_text() {
    for (value, text) in [
        (Value::U32(0), "0"),
        (Value::U32(u32::MAX), "4294967295"),
        (Value::U64(u64::MAX), "18446744073709551615"),
    ] {
        let request = Request::Set {
            pool: Pool::EXTERNAL,
            key: "n",
            value,
        };
        let message = deliver(&wire_of(&request)).unwrap();
        let Request::Set { value, .. } = message.parse().unwrap() else {
            panic!("not a SET");
        };
        assert_eq!(value, Value::Text(text));
    }
}

#[test]
fn answers_reach_the_host() {
    let mut body = wire_of(&Request::Enumerate {
        pool: Pool::AUTO,
        index: 0,
    });
    let mut message = deliver(&body).unwrap();
    message.answer_pair("Schlüssel", "Wert").unwrap();
    assert_eq!(message.status(), Status::OK);
    wire::from_device(Operation::ENUMERATE, &mut body, &message).unwrap();
    let Ok(wire::Answer::Pair {
        key: Some(key),
        value,
    }) = wire::parse_answer(Operation::ENUMERATE, &body)
    else {
        panic!("no pair");
    };
    assert_eq!(
        (string(key), string(value)),
        ("Schlüssel".into(), "Wert".into())
    );

    let mut body = wire_of(&Request::GetIp {
        adapter: "02:15:5D:00:00:01",
        family: AddressFamily::NONE,
    });
    let mut message = deliver(&body).unwrap();
    message.answer_ip(&IpConfig { dhcp: true, ..IP }).unwrap();
    wire::from_device(Operation::GET_IP_INFO, &mut body, &message).unwrap();
    let Ok(wire::Answer::Ip {
        adapter,
        dhcp: true,
        addresses,
        dns,
        ..
    }) = wire::parse_answer(Operation::GET_IP_INFO, &body)
    else {
        panic!("no settings");
    };
    assert_eq!(string(adapter), IP.adapter);
    assert_eq!(string(addresses), IP.addresses);
    assert_eq!(string(dns), IP.dns);
}

/// The C daemon answers GET four bytes before the place where the C driver looks for it.
#[test]
fn get_understands_both_daemons() {
    let request = Request::Get {
        pool: Pool::GUEST,
        key: &"k".repeat(255),
    };
    for value in ["", "w", &"x".repeat(1023)] {
        let mut body = wire_of(&request);
        let mut message = deliver(&body).unwrap();
        message.answer_value(value).unwrap();
        wire::from_device(Operation::GET, &mut body, &message).unwrap();
        assert_eq!(got(&body), value);

        let mut body = wire_of(&request);
        let mut bytes = deliver(&body).unwrap().as_bytes().to_vec();
        bytes[..4].fill(0);
        // memcpy(hv_msg->body.kvp_set.data.value, record.value, value_size)
        let size = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        assert_eq!(size, kvp::VALUE_SIZE);
        bytes[528..528 + value.len()].copy_from_slice(value.as_bytes());
        let message = DeviceMessage::read_from_bytes(&bytes).unwrap();
        wire::from_device(Operation::GET, &mut body, &message).unwrap();
        assert_eq!(got(&body), value);
    }
}

fn got(body: &[u8]) -> String {
    match wire::parse_answer(Operation::GET, body).unwrap() {
        wire::Answer::Pair { value, .. } => string(value),
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_too_long_for_the_host_are_cut_at_a_character() {
    let mut body = wire_of(&Request::Enumerate {
        pool: Pool::GUEST,
        index: 0,
    });
    let mut message = deliver(&body).unwrap();
    // 1022 units and a surrogate pair: the pair does not fit beside the NUL.
    let long = "a".repeat(1022) + "🐧";
    message.answer_pair("k", &long).unwrap();
    wire::from_device(Operation::ENUMERATE, &mut body, &message).unwrap();
    let Ok(wire::Answer::Pair { value, .. }) = wire::parse_answer(Operation::ENUMERATE, &body)
    else {
        panic!("no pair");
    };
    assert_eq!(string(value), "a".repeat(1022));
}

#[test]
fn answers_of_a_broken_daemon_are_refused() {
    let mut body = wire_of(&Request::Enumerate {
        pool: Pool::GUEST,
        index: 0,
    });
    let len = body.len();
    for fill in [0x41, 0xff] {
        let message = DeviceMessage::read_from_bytes(&[fill; DeviceMessage::SIZE]).unwrap();
        for operation in [Operation::GET, Operation::ENUMERATE, Operation::GET_IP_INFO] {
            assert!(wire::from_device(operation, &mut body, &message).is_err());
        }
    }
    assert_eq!(body.len(), len);
}

#[test]
fn registrations() {
    let mut message = device();
    for kind in [Registration::Current, Registration::Old] {
        message.registration(kind, "3.1").unwrap();
        assert_eq!(message.registers(), Ok(kind));
        assert_eq!(message.driver_version(), Ok("3.1"));
    }
    assert_eq!(message.as_bytes()[..4], [4, 0, 0, 0]);
    message.reset(Operation::SET, Pool::GUEST);
    assert_eq!(message.registers(), Err(FieldError::Operation(1)));
    assert!(vss::DeviceMessage::REGISTER
        .as_bytes()
        .starts_with(&[129, 0]));
}

/// Offsets in a body of what the host must not write there.
#[test]
fn kvp_fields_out_of_range_are_refused() {
    let pool = Pool::EXTERNAL;
    let get = wire_of(&Request::Get { pool, key: "k" });
    let set = wire_of(&Request::Set {
        pool,
        key: "k",
        value: Value::Text("v"),
    });
    let number = wire_of(&Request::Set {
        pool,
        key: "k",
        value: Value::U64(1),
    });
    let delete = wire_of(&Request::Delete { pool, key: "k" });
    let ip = wire_of(&Request::SetIp(IP));
    let name = |field, e| FieldError::Text(field, e);
    let le = |v: u32| v.to_le_bytes().to_vec();
    let lone = 0xd800u16.to_le_bytes().to_vec();
    let table: Vec<(&[u8], usize, Vec<u8>, FieldError)> = std::vec![
        (&get, 0, std::vec![6], FieldError::Operation(6)),
        (&get, 0, std::vec![255], FieldError::Operation(255)),
        (&get, 1, std::vec![5], FieldError::Pool(5)),
        (&delete, 1, std::vec![255], FieldError::Pool(255)),
        (&get, 8, le(514), FieldError::KeySize(514)),
        (&get, 8, le(u32::MAX), FieldError::KeySize(u32::MAX)),
        (&get, 8, le(3), FieldError::KeySize(3)),
        (&get, 8, le(0), name("key", TextError::Empty)),
        (&set, 8, le(0x8000_0000), FieldError::KeySize(0x8000_0000)),
        (&delete, 4, le(513), FieldError::KeySize(513)),
        (&get, 16, lone.clone(), name("key", TextError::Encoding)),
        (&set, 4, le(0), FieldError::ValueType(0)),
        (&set, 4, le(u32::MAX), FieldError::ValueType(u32::MAX)),
        (&set, 12, le(2049), FieldError::ValueSize(2049)),
        (&set, 12, le(1), FieldError::ValueSize(1)),
        (&set, 528, lone.clone(), name("value", TextError::Encoding)),
        (&number, 12, le(7), FieldError::ValueSize(7)),
        (&ip, 2, std::vec![0, 0], name("adapter", TextError::Empty)),
        (&ip, 2 + 256, std::vec![4], FieldError::AddressFamily(4)),
        (
            &ip,
            2 + 258,
            lone.clone(),
            name("addresses", TextError::Encoding)
        ),
        (
            &ip,
            2 + 2306,
            lone.clone(),
            name("subnets", TextError::Encoding)
        ),
        (
            &ip,
            2 + 4354,
            lone.clone(),
            name("gateways", TextError::Encoding)
        ),
        (&ip, 2 + 5378, lone, name("dns", TextError::Encoding)),
        // 1024 characters of three bytes each are more than the daemon's field.
        (
            &ip,
            2 + 258,
            "☃"
                .encode_utf16()
                .next()
                .unwrap()
                .to_le_bytes()
                .repeat(1024),
            name("addresses", TextError::TooLong)
        ),
        (
            &ip,
            2 + 4354,
            "☃".encode_utf16().next().unwrap().to_le_bytes().repeat(512),
            name("gateways", TextError::TooLong)
        ),
    ];
    for (good, at, bytes, error) in table {
        assert!(deliver(good).is_ok());
        let mut bad = good.to_vec();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(deliver(&bad).err(), Some(error), "at {at}");
    }
    // Network settings came with 4.0.
    assert_eq!(
        wire::to_device(kvp::VERSION_3_0, &ip, &mut device()).err(),
        Some(FieldError::Operation(5))
    );
    for good in [&get, &set, &delete, &ip] {
        for len in [0, 1, 3, 4, 519, 2575] {
            if len < good.len() && !(len >= 520 && good.as_slice() == delete.as_slice()) {
                assert!(matches!(
                    deliver(&good[..len]).err(),
                    Some(FieldError::TooShort { .. })
                ));
            }
        }
    }
}

#[test]
fn backup_requests() {
    let request = |op| vss::parse(vss::Body::new(op).as_bytes());
    use vss::Operation as Op;
    for op in [Op::FREEZE, Op::THAW, Op::HOT_BACKUP] {
        assert_eq!(request(op), Ok(vss::Request::Daemon(op)));
    }
    assert_eq!(request(Op::GET_DM_INFO), Ok(vss::Request::GetDmInfo));
    for op in [Op::CREATE, Op::DELETE, Op::BACKUP_COMPLETE] {
        assert_eq!(request(op), Ok(vss::Request::Nothing));
    }
    for op in [7, 8, 128, 129, 255] {
        assert_eq!(
            request(vss::Operation(op)),
            Err(FieldError::Operation(op.into()))
        );
    }
    assert_eq!(
        vss::parse(&[5; 11]),
        Err(FieldError::TooShort { need: 12, have: 11 })
    );
    let mut body = vss::Body::new(Op::HOT_BACKUP).as_bytes().to_vec();
    vss::write_flags(&mut body, vss::NO_AUTO_RECOVERY);
    assert_eq!(vss::answer_flags(&body), Ok(5));
    let message = vss::DeviceMessage::request(Op::FREEZE);
    assert_eq!(message.operation(), Op::FREEZE);
    for status in [Status::OK, Status::FAIL, Status::NO_MORE_ITEMS] {
        let answer = message.answer(status);
        assert_eq!(answer.status(), status);
        // The C driver would take these for a registration.
        assert!(![128, 129].contains(&answer.as_bytes()[0]));
    }
}

#[test]
fn files_reach_the_daemon() {
    let mut out = Box::new([0; fcopy::MAX_BODY]);
    let mut to = Box::new([0; fcopy::MAX_BODY]);
    let requests = [
        fcopy::Request::Start {
            file: "Datei ü.txt",
            directory: "/var/tmp/neu",
            flags: fcopy::CopyFlags::KNOWN,
            size: 1 << 40,
        },
        fcopy::Request::Write {
            offset: 6144,
            data: &[0x5a; 6144],
        },
        fcopy::Request::Complete,
        fcopy::Request::Cancel,
    ];
    let sizes = [1088, 6196, 36, 36];
    for (request, size) in requests.iter().zip(sizes) {
        let len = fcopy::write(request, &mut out).unwrap();
        assert_eq!(len, size);
        assert_eq!(fcopy::to_device(&out[..len], &mut to), Ok(size));
        assert_eq!(fcopy::parse_device(&to[..size]), Ok(*request));
    }
    assert!(fcopy::write(
        &fcopy::Request::Write {
            offset: 0,
            data: &[0; 6145]
        },
        &mut out
    )
    .is_err());
}

#[test]
fn file_copy_fields_out_of_range_are_refused() {
    let mut buf = Box::new([0; fcopy::MAX_BODY]);
    let mut body = |request: &fcopy::Request<'_>| {
        let len = fcopy::write(request, &mut buf).unwrap();
        buf[..len].to_vec()
    };
    let start = body(&fcopy::Request::Start {
        file: "f",
        directory: "/d",
        flags: fcopy::CopyFlags::empty(),
        size: 1,
    });
    let write = body(&fcopy::Request::Write {
        offset: 0,
        data: b"x",
    });
    let name = |field, e| FieldError::Text(field, e);
    let lone = 0xdfffu16.to_le_bytes().to_vec();
    let snow = "☃".encode_utf16().next().unwrap().to_le_bytes().repeat(260);
    let table: Vec<(&[u8], usize, Vec<u8>, FieldError)> = std::vec![
        (
            &start,
            0,
            4u32.to_le_bytes().to_vec(),
            FieldError::Operation(4)
        ),
        (
            &start,
            36,
            std::vec![0, 0],
            name("file name", TextError::Empty)
        ),
        (
            &start,
            36,
            lone.clone(),
            name("file name", TextError::Encoding)
        ),
        (
            &start,
            36,
            snow.clone(),
            name("file name", TextError::TooLong)
        ),
        (
            &start,
            556,
            std::vec![0, 0],
            name("directory", TextError::Empty)
        ),
        (&start, 556, lone, name("directory", TextError::Encoding)),
        (&start, 556, snow, name("directory", TextError::TooLong)),
        (
            &start,
            1076,
            4u32.to_le_bytes().to_vec(),
            FieldError::CopyFlags(4)
        ),
        (
            &write,
            48,
            6145u32.to_le_bytes().to_vec(),
            FieldError::DataSize(6145)
        ),
        (
            &write,
            48,
            u32::MAX.to_le_bytes().to_vec(),
            FieldError::DataSize(u32::MAX)
        ),
        (
            &write,
            40,
            u64::MAX.to_le_bytes().to_vec(),
            FieldError::Offset(u64::MAX)
        ),
        (
            &write,
            40,
            (i64::MAX as u64).to_le_bytes().to_vec(),
            FieldError::Offset(i64::MAX as u64)
        ),
    ];
    let mut out = Box::new([0; fcopy::MAX_BODY]);
    for (good, at, bytes, error) in table {
        assert!(fcopy::to_device(good, &mut out).is_ok());
        let mut bad = good.to_vec();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(fcopy::to_device(&bad, &mut out), Err(error), "at {at}");
        assert!(fcopy::to_device(&good[..good.len() - 1], &mut out).is_err());
    }
}

#[test]
fn text_fields() {
    let mut field = [0xaa; 8];
    assert_eq!(text::write_utf16("abc", &mut field), Ok(8));
    assert_eq!(field, [97, 0, 98, 0, 99, 0, 0, 0]);
    assert_eq!(
        text::write_utf16("abcd", &mut field),
        Err(TextError::TooLong)
    );
    assert_eq!(field, [0; 8]);
    assert_eq!(text::write_utf8("1234567", &mut field), Ok(8));
    assert_eq!(text::read_utf8(&field), Ok("1234567"));
    assert_eq!(text::read_utf8(b"abc"), Err(TextError::NotTerminated));
    assert_eq!(text::read_utf8(b"\xff\0"), Err(TextError::Encoding));
    assert_eq!(
        text::write_utf8("a\0b", &mut field),
        Err(TextError::Encoding)
    );
    assert_eq!(text::write_utf8_cut("aaaaaaü", &mut field), Ok(7));
    assert_eq!(Utf16::new(&[1]), Err(TextError::OddSize));
}

proptest! {
    /// Whatever the host sends, the daemon gets a message that it can read, or none.
    #[test]
    fn any_kvp_request_is_refused_or_readable(
        op in 0u8..8, pool in 0u8..7, mut body in prop::collection::vec(any::<u8>(), 0..7500),
        sizes in prop::collection::vec(0u32..2100, 3), small in any::<bool>(),
    ) {
        if body.len() > 16 {
            body[0] = op;
            body[1] = pool;
            if small {
                for (at, size) in [4usize, 8, 12].into_iter().zip(sizes) {
                    body[at..at + 4].copy_from_slice(&size.to_le_bytes());
                }
            }
        }
        if let Ok(message) = deliver(&body) {
            prop_assert!(message.parse().is_ok(), "{:?}", message.parse());
        }
    }

    #[test]
    fn any_file_copy_request_is_refused_or_readable(body in prop::collection::vec(any::<u8>(), 0..6300), op in 0u32..5) {
        let mut body = body;
        if let Some(head) = body.get_mut(..4) {
            head.copy_from_slice(&op.to_le_bytes());
        }
        let mut out = Box::new([0; fcopy::MAX_BODY]);
        if let Ok(len) = fcopy::to_device(&body, &mut out) {
            prop_assert!(fcopy::parse_device(&out[..len]).is_ok());
        }
    }

    #[test]
    fn text_survives_both_ways(s in "\\PC{0,200}") {
        let s: String = s.chars().filter(|c| *c != '\0').collect();
        let mut wide = [0; 2048];
        let len = text::write_utf16(&s, &mut wide).unwrap();
        let mut narrow = [0; 2048];
        let n = Utf16::new(&wide[..len]).unwrap().to_utf8(&mut narrow).unwrap();
        prop_assert_eq!(core::str::from_utf8(&narrow[..n]).unwrap().to_string(), s);
    }
}
