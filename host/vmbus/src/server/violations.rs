// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the guest did against the protocol.

use std::collections::VecDeque;

/// How many texts are kept.
const KEPT: usize = 64;

/// Count of violations and the newest texts.
#[derive(Debug, Default)]
pub struct ViolationLog {
    count: u64,
    texts: VecDeque<String>,
}

impl ViolationLog {
    pub(super) fn add(&mut self, text: String) {
        self.count += 1;
        if self.texts.len() == KEPT {
            self.texts.pop_front();
        }
        self.texts.push_back(text);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The newest 64, oldest first.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }
}
