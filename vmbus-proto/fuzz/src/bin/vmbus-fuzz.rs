// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! libFuzzer around one target, named by `HV_FUZZ_TARGET`; `scripts/fuzz` starts it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use vmbus_fuzz::{Target, TARGETS};

static TARGET: OnceLock<Target> = OnceLock::new();

fn choose() -> Target {
    let name = std::env::var("HV_FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => *target,
        None => {
            eprintln!("HV_FUZZ_TARGET is '{name}'; start this through scripts/fuzz");
            std::process::exit(2);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    (TARGET.get_or_init(choose).run)(data);
});
