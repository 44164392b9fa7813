// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A neighbour that answers: ARP, neighbour solicitations, and pings, at any address it is asked for but the asker's own.

use std::collections::VecDeque;

use crate::{Backend, BackendInfo, Sent, Waker};

/// Answers that wait for the guest; more are dropped.
const MAX_ANSWERS: usize = 4096;
/// The neighbour's address on the link: locally administered.
const MAC: [u8; 6] = [0x02, 0x15, 0x5d, 0x00, 0x00, 0x01];
const ETH: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// See the module.
#[derive(Default)]
pub struct Echo {
    answers: VecDeque<Vec<u8>>,
    waker: Option<Waker>,
    received: u64,
    answered: u64,
    dropped: u64,
}

/// Ones' complement sum of big-endian 16-bit words, added to `sum`, not folded.
fn sum(data: &[u8], sum: u32) -> u32 {
    data.chunks(2).fold(sum, |sum, pair| {
        sum + u32::from(pair[0]) * 256 + u32::from(pair.get(1).copied().unwrap_or(0))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sum of an IPv6 pseudo header (RFC 8200, 8.1) for ICMPv6.
fn pseudo6(ip: &[u8], len: usize) -> u32 {
    sum(&ip[8..40], len as u32 + u32::from(ICMPV6))
}

fn eth(frame: &[u8], kind: [u8; 2]) -> Vec<u8> {
    let mut out = Vec::with_capacity(frame.len());
    out.extend_from_slice(&frame[6..12]);
    out.extend_from_slice(&MAC);
    out.extend_from_slice(&kind);
    out
}

/// Answer to an ARP request (RFC 826).
fn arp(frame: &[u8]) -> Option<Vec<u8>> {
    let arp = frame.get(ETH..ETH + 28)?;
    // Ethernet, IPv4, lengths 6 and 4, request.
    if arp[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    let (sender, target) = (&arp[14..18], &arp[24..28]);
    // A probe for, or an announcement of, the guest's own address (RFC 5227).
    if sender == target || sender == [0; 4] {
        return None;
    }
    let mut out = eth(frame, ARP);
    out.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    out.extend_from_slice(&MAC);
    out.extend_from_slice(target);
    out.extend_from_slice(&arp[8..18]);
    Some(out)
}

/// Answer to an ICMP echo request (RFC 792).
fn ping4(frame: &[u8]) -> Option<Vec<u8>> {
    let ip = frame.get(ETH..)?;
    let first = *ip.first()?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    let ip = ip.get(..total)?;
    // Version 4, a whole datagram, ICMP, echo request, wholly right.
    if first >> 4 != 4
        || header < 20
        || total < header + 8
        || u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0
        || ip[9] != ICMP
        || ip[header] != 8
        || fold(sum(&ip[..header], 0)) != 0
        || fold(sum(&ip[header..], 0)) != 0
    {
        return None;
    }
    let mut out = eth(frame, IPV4);
    out.extend_from_slice(ip);
    let reply = &mut out[ETH..];
    reply[12..16].copy_from_slice(&ip[16..20]);
    reply[16..20].copy_from_slice(&ip[12..16]);
    reply[header] = 0;
    reply[header + 2..header + 4].fill(0);
    let check = fold(sum(&reply[header..], 0));
    reply[header + 2..header + 4].copy_from_slice(&check.to_be_bytes());
    Some(out)
}

/// Answer to an ICMPv6 echo request (RFC 4443) or a neighbour solicitation (RFC 4861).
fn icmp6(frame: &[u8]) -> Option<Vec<u8>> {
    let ip = frame.get(ETH..)?;
    if ip.len() < 48 || ip[0] >> 4 != 6 || ip[6] != ICMPV6 {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let message = ip.get(40..40 + len)?;
    if len < 8 || fold(sum(message, pseudo6(ip, len))) != 0 {
        return None;
    }
    let mut out = eth(frame, IPV6);
    match message[0] {
        128 => {
            // A multicast group answers with an address of its own, which there is not.
            if ip[24] == 0xff {
                return None;
            }
            out.extend_from_slice(&ip[..8]);
            out.extend_from_slice(&ip[24..40]);
            out.extend_from_slice(&ip[8..24]);
            out.extend_from_slice(message);
            out[ETH + 40] = 129;
        }
        135 if len >= 24 => {
            // Duplicate address detection of the guest's own address comes from the unspecified one.
            if ip[8..24] == [0; 16] {
                return None;
            }
            let target = &message[8..24];
            out.extend_from_slice(&[0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
            out.extend_from_slice(target);
            out.extend_from_slice(&ip[8..24]);
            // Advertisement: solicited, override.
            out.extend_from_slice(&[136, 0, 0, 0, 0x60, 0, 0, 0]);
            out.extend_from_slice(target);
            out.extend_from_slice(&[2, 1]);
            out.extend_from_slice(&MAC);
        }
        _ => return None,
    }
    let ip = &mut out[ETH..];
    ip[42..44].fill(0);
    let check = fold(sum(&ip[40..], pseudo6(ip, ip.len() - 40)));
    ip[42..44].copy_from_slice(&check.to_be_bytes());
    Some(out)
}

impl Backend for Echo {
    fn start(&mut self, waker: Waker) -> Result<(), String> {
        self.waker = Some(waker);
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        self.received += 1;
        let answer = match frame.get(12..14) {
            Some(kind) if kind == ARP => arp(frame),
            Some(kind) if kind == IPV4 => ping4(frame),
            Some(kind) if kind == IPV6 => icmp6(frame),
            _ => None,
        };
        let Some(answer) = answer else {
            return Sent::Taken;
        };
        if self.answers.len() >= MAX_ANSWERS {
            self.dropped += 1;
            return Sent::Taken;
        }
        self.answered += 1;
        self.answers.push_back(answer);
        if self.answers.len() == 1 {
            if let Some(waker) = &self.waker {
                waker();
            }
        }
        Sent::Taken
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        let Some(answer) = self.answers.pop_front() else {
            return false;
        };
        *frame = answer;
        true
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: "echo".into(),
            counters: vec![
                ("received", self.received),
                ("answered", self.answered),
                ("dropped", self.dropped),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(kind: [u8; 2]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([0, 0x15, 0x5d, 1, 2, 3]);
        frame.extend(kind);
        frame
    }

    fn ask(frame: &[u8]) -> Option<Vec<u8>> {
        let mut echo = Echo::default();
        echo.start(std::sync::Arc::new(|| {})).expect("starts");
        assert_eq!(echo.send(frame), Sent::Taken);
        let mut answer = Vec::new();
        echo.receive(&mut answer).then_some(answer)
    }

    #[test]
    fn arp_is_answered_but_not_for_the_guests_own_address() {
        let mut frame = guest(ARP);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 0, 0x15, 0x5d, 1, 2, 3, 10, 0, 0, 2]);
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        let answer = ask(&frame).expect("answer");
        assert_eq!(answer[..6], frame[6..12]);
        assert_eq!(answer[20..22], [0, 2]);
        assert_eq!(answer[28..32], [10, 0, 0, 1], "sender: what was asked for");
        assert_eq!(answer[38..42], [10, 0, 0, 2]);
        frame[41] = 2;
        assert_eq!(ask(&frame), None);
        frame.truncate(30);
        assert_eq!(ask(&frame), None);
    }

    #[test]
    fn pings_are_answered_if_their_checksums_are_right() {
        let mut frame = guest(IPV4);
        let mut ip = vec![
            0x45, 0, 0, 29, 0, 0, 0, 0, 64, ICMP, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1,
        ];
        let check = fold(sum(&ip, 0));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1, 0xab];
        let check = fold(sum(&icmp, 0));
        icmp[2..4].copy_from_slice(&check.to_be_bytes());
        frame.extend(ip);
        frame.extend(icmp);
        // Padding of short frames is not part of the datagram.
        frame.resize(60, 0xee);
        let answer = ask(&frame).expect("answer");
        assert_eq!(answer.len(), ETH + 29);
        assert_eq!(answer[ETH + 12..ETH + 20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(answer[ETH + 20], 0);
        assert_eq!(fold(sum(&answer[ETH + 20..], 0)), 0);
        assert_eq!(fold(sum(&answer[ETH..ETH + 20], 0)), 0);
        frame[ETH + 28] ^= 1;
        assert_eq!(ask(&frame), None, "a wrong checksum");
    }

    #[test]
    fn neighbours_and_pings_of_ipv6_are_answered() {
        let me = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        let you = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let packet = |message: &[u8]| {
            let mut frame = guest(IPV6);
            let mut ip = vec![0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255];
            ip.extend(me);
            ip.extend(you);
            ip.extend(message);
            let check = fold(sum(&ip[40..], pseudo6(&ip, message.len())));
            ip[42..44].copy_from_slice(&check.to_be_bytes());
            frame.extend(ip);
            frame
        };
        let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
        solicitation.extend(you);
        for (message, kind) in [(solicitation, 136), (vec![128, 0, 0, 0, 0, 7, 0, 1], 129)] {
            let answer = ask(&packet(&message)).expect("answer");
            let ip = &answer[ETH..];
            assert_eq!(ip[40], kind);
            assert_eq!((&ip[8..24], &ip[24..40]), (&you[..], &me[..]));
            assert_eq!(fold(sum(&ip[40..], pseudo6(ip, ip.len() - 40))), 0);
        }
    }

    #[test]
    fn attack_frames_of_every_length() {
        for kind in [ARP, IPV4, IPV6] {
            for len in 0..80 {
                let mut frame = guest(kind);
                frame.resize(len, 0x45);
                ask(&frame);
            }
        }
    }
}
