// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Machines of up to 64 CPUs that no test boots: devices and sub-channels come, CPUs go and come back. Beside it Linux' rule as
//! its source tells it.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// A CPU of the machine.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    node: u32,
    online: bool,
    isolated: bool,
}

impl Cpu {
    fn usable(self) -> bool {
        self.online && !self.isolated
    }
}

/// A machine with channels: each is the number of its device and its CPU.
#[derive(Clone, Debug)]
struct Machine {
    cpus: Vec<Cpu>,
    channels: Vec<(u32, u32)>,
}

impl Machine {
    fn new(nodes: &[u32]) -> Self {
        let cpus = nodes.iter().zip(0..).flat_map(|(count, node)| {
            (0..*count).map(move |_| Cpu {
                node,
                online: true,
                isolated: false,
            })
        });
        Self {
            cpus: cpus.collect(),
            channels: Vec::new(),
        }
    }

    fn isolate(mut self, isolated: impl Fn(u32) -> bool) -> Self {
        for (cpu, number) in self.cpus.iter_mut().zip(0..) {
            cpu.isolated = isolated(number);
        }
        self
    }

    /// The best CPU for a channel of `device`, as the driver asks for it: `except` is a channel that moves.
    fn best(&self, device: u32, except: Option<usize>, leaving: Option<u32>) -> Option<u32> {
        let mut cpus: Vec<CpuLoad> = self
            .cpus
            .iter()
            .map(|cpu| CpuLoad {
                usable: cpu.usable(),
                node: cpu.node,
                ..CpuLoad::default()
            })
            .collect();
        let mut nodes =
            std::vec![0; self.cpus.iter().map(|c| c.node as usize + 1).max().unwrap_or(0)];
        let mut loads = Loads::new(&mut cpus, &mut nodes);
        for (index, (of, cpu)) in self.channels.iter().enumerate() {
            if except != Some(index) {
                loads.add(*cpu, *of == device);
            }
        }
        if let Some(cpu) = leaving {
            loads.rule_out(cpu);
        }
        loads.best()
    }

    fn offer(&mut self, device: u32) -> u32 {
        let cpu = self.best(device, None, None).unwrap_or(0);
        self.channels.push((device, cpu));
        cpu
    }

    /// A device with a primary channel and `subs` sub-channels.
    fn device(&mut self, device: u32, subs: u32) {
        for _ in 0..=subs {
            self.offer(device);
        }
    }

    fn offline(&mut self, cpu: u32) {
        for index in 0..self.channels.len() {
            let (device, at) = self.channels[index];
            if at == cpu {
                self.channels[index].1 = self.best(device, Some(index), Some(cpu)).unwrap_or(0);
            }
        }
        self.cpus[cpu as usize].online = false;
    }

    fn online(&mut self, cpu: u32) {
        self.cpus[cpu as usize].online = true;
    }

    fn usable(&self) -> Vec<u32> {
        (0..)
            .zip(&self.cpus)
            .filter(|(_, cpu)| cpu.usable())
            .map(|(n, _)| n)
            .collect()
    }

    fn spread(&self) -> Spread {
        spread(&self.channels, &self.usable())
    }

    /// Channels of each node.
    fn by_node(&self) -> BTreeMap<u32, u32> {
        let mut all: BTreeMap<u32, u32> = self
            .usable()
            .iter()
            .map(|cpu| (self.cpus[*cpu as usize].node, 0))
            .collect();
        for (_, cpu) in &self.channels {
            *all.entry(self.cpus[*cpu as usize].node).or_default() += 1;
        }
        all
    }
}

/// How well channels are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    /// Channels on the CPU with the most.
    most: u32,
    /// Channels on the usable CPU with the fewest.
    fewest: u32,
    /// Channels that share a CPU with an earlier one of the same device.
    crowded: u32,
}

fn spread(channels: &[(u32, u32)], usable: &[u32]) -> Spread {
    let on = |cpu: u32| channels.iter().filter(|(_, at)| *at == cpu).count() as u32;
    let crowded = channels
        .iter()
        .enumerate()
        .filter(|(index, channel)| channels[..*index].contains(channel))
        .count();
    Spread {
        most: channels.iter().map(|(_, cpu)| on(*cpu)).max().unwrap_or(0),
        fewest: usable.iter().map(|cpu| on(*cpu)).min().unwrap_or(0),
        crowded: crowded as u32,
    }
}

/// Linux' rule (`init_vp_index`), for machines whose CPUs are all online: the next node that has a usable CPU, and of that node the first CPU
/// whose turn it is; again, up to a limit, when the device has that CPU already.
struct Turns {
    next_node: u32,
    had: Vec<bool>,
}

impl Turns {
    fn offer(&mut self, machine: &Machine, channels: &[(u32, u32)], device: u32) -> u32 {
        let count = machine.cpus.len() as u32;
        let nodes = machine.cpus.iter().map(|cpu| cpu.node).max().unwrap_or(0) + 1;
        let own = channels.iter().filter(|(of, _)| *of == device).count() as u32;
        let mut target = 0;
        for attempt in 1..=count + 1 {
            let mine = loop {
                let node = self.next_node % nodes;
                self.next_node = node + 1;
                let mine: Vec<u32> = machine
                    .usable()
                    .into_iter()
                    .filter(|cpu| machine.cpus[*cpu as usize].node == node)
                    .collect();
                if !mine.is_empty() {
                    break mine;
                }
            };
            if mine.iter().all(|cpu| self.had[*cpu as usize]) {
                mine.iter().for_each(|cpu| self.had[*cpu as usize] = false);
            }
            target = *mine.iter().find(|cpu| !self.had[**cpu as usize]).unwrap();
            self.had[target as usize] = true;
            let used = channels.contains(&(device, target));
            if own >= count || attempt > count || !used {
                break;
            }
        }
        target
    }
}

/// The same devices by Linux' rule. `order`: the device of each channel, in the order of the offers.
fn by_turns(machine: &Machine, order: &[u32]) -> Spread {
    let mut turns = Turns {
        next_node: 0,
        had: std::vec![false; machine.cpus.len()],
    };
    let mut channels = Vec::new();
    for device in order {
        let cpu = turns.offer(machine, &channels, *device);
        channels.push((*device, cpu));
    }
    spread(&channels, &machine.usable())
}

/// 64 CPUs in 1 to 8 nodes: devices without sub-channels are spread evenly over nodes and CPUs, and the nodes take turns.
#[test]
fn sixty_four_cpus() {
    for nodes in [1u32, 2, 4, 8] {
        let mut machine = Machine::new(&std::vec![64 / nodes; nodes as usize]);
        for device in 0..200 {
            machine.offer(device);
            let by_node = machine.by_node();
            let (least, most) = (
                by_node.values().min().unwrap(),
                by_node.values().max().unwrap(),
            );
            assert!(
                most - least <= 1,
                "{nodes} nodes, {device} devices: {by_node:?}"
            );
            let spread = machine.spread();
            assert!(
                spread.most - spread.fewest <= 1,
                "{nodes} nodes: {spread:?}"
            );
        }
    }
}

/// A device with as many channels as there are CPUs has one on each; a second one, too.
#[test]
fn channels_of_a_device_keep_apart() {
    for cpus in 1..=64 {
        let mut machine = Machine::new(&[cpus]);
        machine.device(0, cpus - 1);
        machine.device(1, cpus - 1);
        assert_eq!(
            machine.spread(),
            Spread {
                most: 2,
                fewest: 2,
                crowded: 0
            },
            "{cpus} CPUs"
        );
    }
}

#[test]
fn a_lopsided_machine() {
    // Twelve CPUs near the memory and four far away: no CPU has more than its share because its node is small.
    let mut machine = Machine::new(&[12, 4]);
    for device in 0..32 {
        machine.offer(device);
    }
    assert_eq!(
        machine.spread(),
        Spread {
            most: 2,
            fewest: 2,
            crowded: 0
        }
    );
    assert_eq!(machine.by_node(), [(0, 24), (1, 8)].into());
    // Turns give the small node as many as the large one.
    let order: Vec<u32> = (0..32).collect();
    assert_eq!(by_turns(&Machine::new(&[12, 4]), &order).most, 4);
}

#[test]
fn isolated_cpus_get_none() {
    let mut machine = Machine::new(&[32, 32]).isolate(|cpu| cpu % 4 != 0);
    for device in 0..4 {
        machine.device(device, 15);
    }
    assert!(machine.channels.iter().all(|(_, cpu)| cpu % 4 == 0));
    assert_eq!(
        machine.spread(),
        Spread {
            most: 4,
            fewest: 4,
            crowded: 0
        }
    );
    // Where all are, the channel goes to the CPU that messages go to.
    let mut machine = Machine::new(&[8]).isolate(|_| true);
    assert_eq!(machine.best(0, None, None), None);
    assert_eq!(machine.offer(0), 0);
}

/// Each CPU but the first goes offline in turn, all its channels move, and it comes back: nothing piles up anywhere.
#[test]
fn cpus_that_come_and_go() {
    let mut machine = Machine::new(&[16, 16, 16, 16]);
    for device in 0..8 {
        machine.device(device, 7);
    }
    assert_eq!(
        machine.spread(),
        Spread {
            most: 1,
            fewest: 1,
            crowded: 0
        }
    );
    for round in 0..3 {
        for cpu in 1..64 {
            machine.offline(cpu);
            assert!(machine.channels.iter().all(|(_, at)| *at != cpu));
            let spread = machine.spread();
            assert!(
                spread.most <= 2 && spread.crowded == 0,
                "round {round}, CPU {cpu}: {spread:?}"
            );
            machine.online(cpu);
        }
    }
    // One after the other, none comes back: the last has all, and until then they are shared evenly.
    for cpu in (1..64).rev() {
        machine.offline(cpu);
        let spread = machine.spread();
        assert!(
            spread.most <= 64u32.div_ceil(cpu) + 1,
            "{cpu} CPUs left: {spread:?}"
        );
    }
    assert_eq!(machine.spread().most, 64);
}

#[test]
fn what_is_not_there_is_ignored() {
    let mut cpus = [CpuLoad {
        usable: true,
        node: 9,
        ..CpuLoad::default()
    }; 2];
    let mut loads = Loads::new(&mut cpus, &mut []);
    loads.add(7, true);
    loads.add(0, true);
    loads.rule_out(7);
    assert_eq!(loads.best(), Some(1));
    loads.rule_out(1);
    assert_eq!(loads.best(), Some(0));
    loads.rule_out(0);
    assert_eq!(loads.best(), None);
    assert_eq!(Loads::new(&mut [], &mut []).best(), None);
}

/// A machine of at most 64 CPUs, some of them isolated (not the first of its node), and devices with their sub-channels.
fn machines() -> impl Strategy<Value = (Machine, Vec<u32>)> {
    let nodes = proptest::collection::vec(1u32..=16, 1..=4);
    let isolated = any::<u64>();
    let devices = proptest::collection::vec(0u32..=16, 1..=12);
    (nodes, isolated, any::<bool>(), devices).prop_map(|(nodes, isolated, some, devices)| {
        let machine = Machine::new(&nodes);
        let first: Vec<bool> = (0..machine.cpus.len())
            .map(|n| n == 0 || machine.cpus[n].node != machine.cpus[n - 1].node)
            .collect();
        let machine =
            machine.isolate(|cpu| some && !first[cpu as usize] && (isolated >> cpu) & 1 != 0);
        (machine, devices)
    })
}

proptest! {
    /// Never worse than turns: not on the CPU with the most channels, not in channels of a device that share a CPU. And as good as can
    /// be: no device has two channels on a CPU while it has none on another.
    #[test]
    fn at_least_as_good_as_turns((mut machine, devices) in machines()) {
        let mut order = Vec::new();
        for (subs, device) in devices.iter().zip(0u32..) {
            order.extend(std::iter::repeat_n(device, *subs as usize + 1));
        }
        let theirs = by_turns(&machine, &order);
        order.iter().for_each(|device| { machine.offer(*device); });
        let ours = machine.spread();
        prop_assert!(ours.most <= theirs.most, "{:?}, turns: {:?}", ours, theirs);
        prop_assert!(ours.crowded <= theirs.crowded, "{:?}, turns: {:?}", ours, theirs);
        let usable = machine.usable();
        let total = machine.channels.len() as u32;
        prop_assert!(ours.most <= total.div_ceil(usable.len() as u32) + 1, "{:?}", ours);
        for device in 0..devices.len() as u32 {
            let on = |cpu: &u32| machine.channels.iter().filter(|c| **c == (device, *cpu)).count();
            let (least, most) = (usable.iter().map(on).min().unwrap(), usable.iter().map(on).max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }

    /// Whatever comes and goes, no channel is on a CPU that is offline, and after each move the device's channels share no CPU
    /// unless they must.
    #[test]
    fn nothing_on_a_cpu_that_is_gone((mut machine, devices) in machines(), steps in proptest::collection::vec((any::<bool>(), any::<u32>()), 0..80)) {
        let count = machine.cpus.len() as u32;
        for (subs, device) in devices.iter().zip(0u32..) {
            machine.device(device, *subs);
        }
        for (up, cpu) in steps {
            let cpu = cpu % count;
            if cpu == 0 || machine.cpus[cpu as usize].online == up {
                continue;
            }
            if up { machine.online(cpu) } else { machine.offline(cpu) }
            let usable = machine.usable();
            prop_assert!(machine.channels.iter().all(|(_, at)| usable.contains(at) || usable.is_empty()));
        }
    }
}
