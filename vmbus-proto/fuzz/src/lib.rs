// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Fuzz targets: every parser and every state machine of `vmbus-proto`, fed with what the other side may send.
//!
//! A target takes any bytes and panics where a rule of its own is broken, besides the panics of the code itself: the
//! builds for fuzzing and for tests check every addition and index. What a fuzzer has found is kept in `seeds/TARGET/` and
//! replayed by the tests of this crate, together with random bytes.
#![forbid(unsafe_code)]

pub mod targets;

/// A target: its name, what it is fed with, and the function.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As for `scripts/fuzz`, and the directory of its seeds.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "host_messages",
        about: "VMBus control messages of the host: parser, connection, channels",
        run: targets::bus::host_messages,
    },
    Target {
        name: "guest_messages",
        about: "VMBus control messages of the guest: parser",
        run: targets::bus::guest_messages,
    },
    Target {
        name: "ring",
        about: "a ring whose other side writes anything anywhere at any time",
        run: targets::ring::hostile_peer,
    },
    Target {
        name: "packets",
        about: "packets of a ring: descriptors, GPA ranges, transfer ranges",
        run: targets::ring::packets,
    },
    Target {
        name: "services",
        about: "integration services: heartbeat, shutdown, time synchronisation",
        run: targets::ic::services,
    },
    Target {
        name: "exchange",
        about: "key-value pairs, backup and file copy between a hostile host and a hostile daemon",
        run: targets::ic::exchange,
    },
    Target {
        name: "exchange_bodies",
        about: "bodies of key-value pairs, backup and file copy, each way",
        run: targets::ic::bodies,
    },
    Target {
        name: "storvsc_client",
        about: "the SCSI controller's answers: handshake, completions",
        run: targets::storage::client,
    },
    Target {
        name: "storvsc_server",
        about: "the SCSI driver's packets, as the host gets them",
        run: targets::storage::server,
    },
    Target {
        name: "netvsc_client",
        about: "the network card's NVSP messages: handshake, notices, completions, tables",
        run: targets::net::client,
    },
    Target {
        name: "netvsc_server",
        about: "the network driver's NVSP messages, as the host gets them",
        run: targets::net::server,
    },
    Target {
        name: "rndis_host",
        about: "the host's RNDIS messages: set-up, objects, link events, packets",
        run: targets::net::rndis_host,
    },
    Target {
        name: "rndis_guest",
        about: "the guest's RNDIS messages, as the host gets them: requests, parameters, packets",
        run: targets::net::rndis_guest,
    },
];

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::path::Path;

    /// What a fuzzer has found, and a few inputs of every target to begin with.
    #[test]
    fn seeds_pass() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        for target in TARGETS {
            let dir = seeds.join(target.name);
            let files =
                std::fs::read_dir(&dir).unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
            let mut count = 0;
            for file in files {
                let path = file.expect("an entry").path();
                println!("{}", path.display());
                (target.run)(&std::fs::read(path).expect("a seed"));
                count += 1;
            }
            assert!(count > 0, "{} has no seed", target.name);
        }
    }

    /// Every directory of seeds is a target's.
    #[test]
    fn no_seeds_are_forgotten() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        for dir in std::fs::read_dir(seeds).expect("seeds") {
            let name = dir.expect("an entry").file_name();
            assert!(
                TARGETS.iter().any(|target| *target.name == *name),
                "{name:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn random_bytes_pass(data in vec(any::<u8>(), 0..2048)) {
            for target in TARGETS {
                (target.run)(&data);
            }
        }
    }
}
