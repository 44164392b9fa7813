// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The machine against scripted hosts and daemons.

use super::*;
use crate::ic::negotiate::propose;
use crate::ic::{fcopy, kvp, parse_response, vss, write_request, FRAMEWORK_VERSIONS};
use std::boxed::Box;
use std::vec;
use std::vec::Vec;
use zerocopy::{FromZeros, IntoBytes};

struct Bench<S: Service> {
    machine: Machine<S>,
    buf: Box<Buffers>,
    now: Millis,
}

const AGREED: Negotiated = Negotiated {
    framework: IcVersion::new(3, 0),
    message: IcVersion::new(0, 0),
};

impl<S: Service> Bench<S> {
    fn new(service: S) -> Self {
        Self {
            machine: Machine::new(service),
            buf: Box::new(Buffers::new_zeroed()),
            now: 1000,
        }
    }

    fn send(&mut self, packet: &[u8]) -> Step {
        assert!(self.machine.wants_packet());
        self.buf.packet[..packet.len()].copy_from_slice(packet);
        self.machine
            .on_packet(self.now, packet.len(), 7, &mut self.buf)
    }

    fn negotiate(&mut self) -> Step {
        let mut out = [0; 512];
        let len = propose(&mut out, 0, FRAMEWORK_VERSIONS, S::VERSIONS).unwrap();
        self.send(&out[..len])
    }

    fn ask(&mut self, body: &[u8]) -> Step {
        let mut out = vec![0; 28 + body.len()];
        write_request(&mut out, AGREED, S::TYPE, 9, body).unwrap();
        self.send(&out)
    }

    fn read(&mut self) -> Option<(Vec<u8>, Step)> {
        let message = self.machine.message(&self.buf)?.to_vec();
        Some((message, self.machine.on_read(self.now, &mut self.buf)))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Step, WriteError> {
        self.machine.on_write(self.now, bytes, &mut self.buf)
    }

    fn pass(&mut self, ms: Millis) -> Step {
        self.now += ms;
        self.machine.on_time(self.now, &mut self.buf)
    }

    /// The status of the answer that a step sends.
    fn status(&self, step: Step) -> Status {
        let (len, id) = step.reply.expect("a reply");
        assert_eq!(id, 7);
        parse_response(&self.buf.packet[..len]).unwrap().0.status
    }

    fn register(&mut self, message: &[u8]) -> Step {
        self.machine.on_open().unwrap();
        assert_eq!(self.write(message), Ok(Step::NONE));
        self.read().expect("a greeting").1
    }
}

fn vss_request(op: vss::Operation) -> Vec<u8> {
    vss::Body::new(op).as_bytes().to_vec()
}

fn vss_bench() -> Bench<Vss> {
    let mut bench = Bench::new(Vss::new());
    let step = bench.negotiate();
    assert_eq!(bench.status(step), Status::OK);
    let step = bench.register(vss::DeviceMessage::REGISTER.as_bytes());
    assert_eq!(step.event, Some(Ok(Event::Registered)));
    bench
}

fn kvp_registration() -> Vec<u8> {
    let mut m = Box::<kvp::DeviceMessage>::default();
    m.registration(kvp::Registration::Current, "").unwrap();
    m.as_bytes().to_vec()
}

fn kvp_enumerate() -> Vec<u8> {
    let mut out = Box::new([0; kvp::wire::MAX_BODY]);
    let request = kvp::Request::Enumerate {
        pool: kvp::Pool::AUTO,
        index: 0,
    };
    let len = kvp::wire::write(&request, &mut out).unwrap();
    out[..len].to_vec()
}

#[test]
fn freeze_and_thaw() {
    let mut b = vss_bench();
    for op in [vss::Operation::FREEZE, vss::Operation::THAW] {
        let step = b.ask(&vss_request(op));
        assert_eq!((step.reply, step.event), (None, Some(Ok(Event::Asked))));
        assert!(!b.machine.wants_packet());
        // An answer to a message that was not read is none.
        let answer = vss::DeviceMessage::request(op).answer(Status::OK);
        assert_eq!(b.write(answer.as_bytes()), Err(WriteError::Unexpected));
        let (message, step) = b.read().unwrap();
        assert_eq!(step, Step::NONE);
        assert_eq!(message, vss::DeviceMessage::request(op).as_bytes());
        let step = b.write(answer.as_bytes()).unwrap();
        assert_eq!(b.status(step), Status::OK);
        assert!(b.machine.wants_packet());
        assert_eq!(b.machine.deadline(), None);
    }
    let step = b.ask(&vss_request(vss::Operation::HOT_BACKUP));
    assert_eq!(step.reply, None);
    b.read().unwrap().1.reply.ok_or(()).unwrap_err();
    let step = b
        .write(
            vss::DeviceMessage::request(vss::Operation::HOT_BACKUP)
                .answer(Status::OK)
                .as_bytes(),
        )
        .unwrap();
    assert_eq!(b.status(step), Status::OK);
    assert_eq!(vss::answer_flags(&b.buf.packet[28..40]), Ok(5));
    for op in [vss::Operation::GET_DM_INFO, vss::Operation::BACKUP_COMPLETE] {
        let step = b.ask(&vss_request(op));
        assert_eq!(b.status(step), Status::OK);
    }
}

#[test]
fn without_a_daemon_backup_is_refused_at_once() {
    let mut b = Bench::new(Vss::new());
    let _ = b.negotiate();
    let step = b.ask(&vss_request(vss::Operation::FREEZE));
    assert_eq!(step.event, Some(Ok(Event::NoDaemon)));
    assert_eq!(b.status(step), Status::FAIL);
}

#[test]
fn one_process_at_a_time() {
    let mut b = vss_bench();
    assert_eq!(b.machine.on_open(), Err(Busy));
    assert_eq!(b.machine.on_close(&mut b.buf), Step::NONE);
    assert_eq!(b.machine.on_open(), Ok(()));
}

#[test]
fn a_slow_daemon_is_not_waited_for() {
    for read in [false, true] {
        let mut b = vss_bench();
        let _ = b.ask(&vss_request(vss::Operation::THAW));
        assert_eq!(b.machine.deadline(), Some(1000 + TIME_LIMIT));
        if read {
            let _ = b.read().unwrap();
        }
        assert_eq!(b.pass(TIME_LIMIT - 1), Step::NONE);
        let step = b.pass(1);
        assert_eq!(step.event, Some(Ok(Event::TimedOut)));
        assert_eq!(b.status(step), Status::FAIL);
        assert!(b.machine.wants_packet());
        // Too late.
        assert!(b.read().is_none());
        let answer = vss::DeviceMessage::request(vss::Operation::THAW).answer(Status::OK);
        assert_eq!(b.write(answer.as_bytes()), Err(WriteError::Unexpected));
    }
    let mut b = vss_bench();
    let _ = b.ask(&vss_request(vss::Operation::FREEZE));
    assert_eq!(b.machine.deadline(), Some(1000 + FREEZE_LIMIT));
}

#[test]
fn a_daemon_that_dies_fails_the_request() {
    let mut b = vss_bench();
    let _ = b.ask(&vss_request(vss::Operation::FREEZE));
    let _ = b.read().unwrap();
    let step = b.machine.on_close(&mut b.buf);
    assert_eq!(b.status(step), Status::FAIL);
    let step = b.ask(&vss_request(vss::Operation::THAW));
    assert_eq!(b.status(step), Status::FAIL);
}

#[test]
fn hibernation_thaws_and_then_refuses_the_answer() {
    let mut b = vss_bench();
    let _ = b.ask(&vss_request(vss::Operation::FREEZE));
    let _ = b.read().unwrap();
    b.machine.on_channel_closed(&mut b.buf);
    let (message, _) = b.read().unwrap();
    assert_eq!(
        message,
        vss::DeviceMessage::request(vss::Operation::THAW).as_bytes()
    );
    let answer = vss::DeviceMessage::request(vss::Operation::THAW).answer(Status::OK);
    assert_eq!(b.write(answer.as_bytes()), Err(WriteError::Unexpected));
    // The channel is open again: versions first, then the same daemon goes on.
    let step = b.ask(&vss_request(vss::Operation::FREEZE));
    assert_eq!(step.event, Some(Err(IcError::NotNegotiated)));
    let step = b.negotiate();
    assert_eq!(b.status(step), Status::OK);
    assert_eq!(
        b.ask(&vss_request(vss::Operation::FREEZE)).event,
        Some(Ok(Event::Asked))
    );
}

#[test]
fn old_daemons_get_no_greeting() {
    let mut b = Bench::new(Vss::new());
    let _ = b.negotiate();
    b.machine.on_open().unwrap();
    let old = vss::DeviceMessage::request(vss::Operation::REGISTER_OLD);
    let step = b.write(old.as_bytes()).unwrap();
    assert_eq!(step.event, Some(Ok(Event::Registered)));
    assert!(b.read().is_none());
    // A ready daemon may register anew, as long as nothing is asked.
    assert_eq!(
        b.write(vss::DeviceMessage::REGISTER.as_bytes()),
        Ok(Step::NONE)
    );
    assert_eq!(b.read().unwrap().0, 129u32.to_le_bytes());
}

#[test]
fn key_value_pairs_wait_for_the_daemon() {
    let mut b = Bench::new(Kvp::new());
    assert_eq!(b.negotiate(), Step::NONE);
    assert!(!b.machine.wants_packet());
    assert_eq!(b.pass(NEGOTIATION_PATIENCE - 1), Step::NONE);
    // In the last moment.
    let step = b.register(&kvp_registration());
    assert!(matches!(step.event, Some(Ok(Event::Negotiated(_)))));
    assert_eq!(b.status(step), Status::OK);
    let _ = b.machine.on_close(&mut b.buf);

    // The daemon is started anew while a request waits.
    assert_eq!(b.ask(&kvp_enumerate()), Step::NONE);
    let step = b.register(&kvp_registration());
    assert_eq!(step.event, Some(Ok(Event::Asked)));
    let (message, _) = b.read().unwrap();
    let mut answer = Box::<kvp::DeviceMessage>::default();
    answer.as_mut_bytes().copy_from_slice(&message);
    answer.answer_pair("OSName", "Debian").unwrap();
    let step = b.write(answer.as_bytes()).unwrap();
    assert_eq!(b.status(step), Status::OK);
}

#[test]
fn patience_ends() {
    let mut b = Bench::new(Kvp::new());
    assert_eq!(b.negotiate(), Step::NONE);
    let step = b.pass(NEGOTIATION_PATIENCE);
    assert_eq!(b.status(step), Status::OK);
    assert_eq!(b.ask(&kvp_enumerate()), Step::NONE);
    let step = b.pass(TIME_LIMIT);
    assert_eq!(step.event, Some(Ok(Event::NoDaemon)));
    assert_eq!(b.status(step), Status::FAIL);
}

#[test]
fn requests_with_a_field_out_of_range_are_refused() {
    let mut b = Bench::new(Kvp::new());
    let _ = b.register(&kvp_registration());
    let _ = b.negotiate();
    let mut body = kvp_enumerate();
    body[1] = 9;
    let step = b.ask(&body);
    assert_eq!(step.event, Some(Err(IcError::Field(FieldError::Pool(9)))));
    assert_eq!(b.status(step), Status::FAIL);
    assert!(b.read().is_none());
    assert_eq!(b.ask(&kvp_enumerate()).event, Some(Ok(Event::Asked)));
}

#[test]
fn broken_daemons_are_refused() {
    let mut b = Bench::new(Kvp::new());
    b.machine.on_open().unwrap();
    assert_eq!(b.write(&[100; 100]), Err(WriteError::Length(100)));
    assert_eq!(
        b.write(&[7; kvp::DeviceMessage::SIZE]),
        Err(WriteError::Registration(FieldError::Operation(7)))
    );
    assert_eq!(b.write(&kvp_registration()), Ok(Step::NONE));
    // The greeting was not read.
    assert_eq!(b.write(&kvp_registration()), Err(WriteError::Unexpected));
    let _ = b.read().unwrap();
    let _ = b.negotiate();
    let _ = b.ask(&kvp_enumerate());
    let _ = b.read().unwrap();
    let mut garbage = vec![0xff; kvp::DeviceMessage::SIZE];
    garbage[..4].fill(0);
    let step = b.write(&garbage).unwrap();
    assert!(matches!(step.event, Some(Err(IcError::Field(_)))));
    assert_eq!(b.status(step), Status::FAIL);
}

#[test]
fn files() {
    let mut b = Bench::new(Fcopy);
    let _ = b.negotiate();
    let step = b.register(&1u32.to_le_bytes());
    assert_eq!(step.event, Some(Ok(Event::Registered)));
    let mut out = Box::new([0; fcopy::MAX_BODY]);
    let len = fcopy::write(&fcopy::Request::Complete, &mut out).unwrap();
    let _ = b.ask(&out[..len]);
    assert_eq!(
        fcopy::parse_device(&b.read().unwrap().0),
        Ok(fcopy::Request::Complete)
    );
    let step = b.write(&Status::DISK_FULL.get().to_le_bytes()).unwrap();
    assert_eq!(b.status(step), Status::DISK_FULL);
}
