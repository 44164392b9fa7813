// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The packages: what they build from, what they make the boot loaders do, and a Debian guest in which they are installed.

mod boots;
mod failures;
mod native;

use crate::runner::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    [
        native::scenarios(),
        boots::scenarios(),
        failures::scenarios(),
    ]
    .concat()
}
