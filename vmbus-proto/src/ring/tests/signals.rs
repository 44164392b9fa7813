// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! When a side must signal, and when it must not.

use super::*;

#[test]
fn signal_only_when_the_ring_was_empty_and_unmasked() {
    let (_ring, mut tx, mut rx) = pair(4096);
    let send = |tx: &mut Tx| {
        tx.send_in_band(&[0; 8], 0, false).unwrap();
        tx.commit()
    };
    assert!(!tx.commit(), "nothing written");
    assert!(send(&mut tx), "empty before");
    assert!(!send(&mut tx), "not empty");
    read(&mut rx).unwrap();
    read(&mut rx).unwrap();
    assert!(!send(&mut tx), "read, but the index does not say so yet");
    assert!(!rx.commit());
    read(&mut rx).unwrap();
    let drained = rx.finish();
    assert!(!drained.more);
    rx.mask();
    assert!(rx.is_masked());
    assert!(!send(&mut tx), "masked");
    assert_eq!(
        rx.finish(),
        Drained {
            signal: false,
            more: true
        },
        "written while masked"
    );
    assert!(!send(&mut tx), "unmasked, but not empty");
    read(&mut rx).unwrap();
    read(&mut rx).unwrap();
    assert!(!rx.finish().more);
    assert!(send(&mut tx), "empty and unmasked");
}

#[test]
fn signal_for_space_only_when_it_crosses_the_mark() {
    let (ring, mut tx, mut rx) = pair(4096);
    // Four packets of 1000: 96 bytes free, of which 88 usable.
    for i in 0..4 {
        tx.send_in_band(&payload(1000, 0), i, false).unwrap();
    }
    let _ = tx.commit();
    let Err(WriteError::Full { needed }) = tx.send_in_band(&payload(2000, 0), 4, false) else {
        panic!()
    };
    assert_eq!(needed, 2000);
    assert_eq!(tx.request_space(needed), Ok(false));
    assert_eq!(ring.peek(ControlWord::PendingSendSize), 2000);
    let mut step = || {
        read(&mut rx).unwrap();
        rx.commit()
    };
    assert!(!step(), "1096 free");
    assert!(step(), "2096 free: crosses 2000");
    assert!(!step(), "3096 free: had enough before");
    tx.send_in_band(&payload(2000, 0), 4, false).unwrap();
    assert_eq!(
        ring.peek(ControlWord::PendingSendSize),
        0,
        "request over with the write"
    );
}

/// The signal comes exactly when the write that waits can succeed.
#[test]
fn signal_for_space_at_the_boundary() {
    for (free_after, enough) in [(1992, false), (2000, true), (2008, true)] {
        let (_ring, mut tx, mut rx) = pair(4096);
        tx.send_in_band(&payload(free_after, 0), 0, false).unwrap();
        tx.send_in_band(&payload(4096 - free_after - 8, 0), 1, false)
            .unwrap();
        let _ = tx.commit();
        assert_eq!(tx.free(), Ok(0));
        assert_eq!(tx.request_space(2000), Ok(false));
        read(&mut rx).unwrap();
        assert_eq!(rx.commit(), enough, "{free_after}");
        let again = tx.send_in_band(&payload(2000, 0), 2, false);
        assert_eq!(again.is_ok(), enough, "{free_after}");
    }
}

#[test]
fn space_there_already_needs_no_signal() {
    let (ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&payload(4000, 0), 0, false).unwrap();
    let _ = tx.commit();
    assert!(matches!(
        tx.send_in_band(&payload(1000, 0), 0, false),
        Err(WriteError::Full { .. })
    ));
    // The consumer reads between the failure and the request.
    read(&mut rx).unwrap();
    assert!(!rx.commit());
    assert_eq!(tx.request_space(1000), Ok(true));
    assert_eq!(ring.peek(ControlWord::PendingSendSize), 0);
    assert_eq!(tx.request_space(4096), Err(WriteError::TooLarge));
}

#[test]
fn writers_without_the_feature_are_not_signalled() {
    let (ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&payload(4000, 0), 0, false).unwrap();
    let _ = tx.commit();
    assert_eq!(tx.request_space(1000), Ok(false));
    ring.poke(ControlWord::FeatureBits, 0);
    read(&mut rx).unwrap();
    assert!(!rx.commit());
}

/// Some writers ask for the ring's size minus one, meaning "when it is empty".
#[test]
fn pending_size_of_the_whole_ring() {
    let (ring, mut tx, mut rx) = pair(4096);
    for i in 0..2 {
        tx.send_in_band(&payload(1000, 0), i, false).unwrap();
    }
    let _ = tx.commit();
    ring.poke(ControlWord::PendingSendSize, 4095);
    read(&mut rx).unwrap();
    assert!(!rx.commit());
    read(&mut rx).unwrap();
    assert!(rx.commit());
    ring.poke(ControlWord::PendingSendSize, u32::MAX);
    tx.send_in_band(&[], 0, false).unwrap();
    let _ = tx.commit();
    read(&mut rx).unwrap();
    assert!(!rx.commit(), "more than the ring has: never");
}
