// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Which CPU takes the interrupts of a channel.
//!
//! Linux' rule (`channel_mgmt.c`, `init_vp_index`): channels that carry load go to the NUMA nodes in turn, within a node to its
//! CPUs in turn, a device's own channels to different CPUs while there are some; all others to the CPU that messages go to. It
//! takes turns, so what it gives depends on who came and went before. Here the loads at the moment decide, with the same aims: the
//! CPU on which the device has the fewest channels, of those one with the fewest channels, of those one of the node with the
//! fewest, of those the first.

#[cfg(test)]
mod tests;

/// What is known of a CPU when a channel looks for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuLoad {
    /// It is online, and not isolated from managed interrupts.
    pub usable: bool,
    /// Its NUMA node.
    pub node: u32,
    /// Channels that it has: those that carry load.
    pub channels: u32,
    /// Of these, channels of the device that the new one is of.
    pub own: u32,
}

/// The loads of all CPUs, from the channels that there are.
#[derive(Debug)]
pub struct Loads<'a> {
    cpus: &'a mut [CpuLoad],
    nodes: &'a mut [u32],
}

impl<'a> Loads<'a> {
    /// Without channels. `cpus`: by number, with `usable` and `node` set. `nodes`: for sums, one for each node that a CPU may
    /// be of; a CPU of a node beyond its end is like one whose node has no channels.
    pub fn new(cpus: &'a mut [CpuLoad], nodes: &'a mut [u32]) -> Self {
        for cpu in cpus.iter_mut() {
            cpu.channels = 0;
            cpu.own = 0;
        }
        nodes.fill(0);
        Self { cpus, nodes }
    }

    /// Takes in a channel that carries load. `own`: it is of the same device as the one to place. A CPU that is not there is
    /// ignored.
    pub fn add(&mut self, cpu: u32, own: bool) {
        let Some(cpu) = self.cpus.get_mut(cpu as usize) else {
            return;
        };
        cpu.channels = cpu.channels.saturating_add(1);
        cpu.own = cpu.own.saturating_add(own.into());
        if let Some(node) = self.nodes.get_mut(cpu.node as usize) {
            *node = node.saturating_add(1);
        }
    }

    /// Does not offer a CPU any more: it goes offline, or the host refuses it.
    pub fn rule_out(&mut self, cpu: u32) {
        if let Some(cpu) = self.cpus.get_mut(cpu as usize) {
            cpu.usable = false;
        }
    }

    /// The best CPU for one more channel; `None` when none is usable.
    #[must_use]
    pub fn best(&self) -> Option<u32> {
        let on_node = |cpu: &CpuLoad| self.nodes.get(cpu.node as usize).copied().unwrap_or(0);
        self.cpus
            .iter()
            .zip(0u32..)
            .filter(|(cpu, _)| cpu.usable)
            // The first of equals.
            .min_by_key(|(cpu, _)| (cpu.own, cpu.channels, on_node(cpu)))
            .map(|(_, number)| number)
    }
}
