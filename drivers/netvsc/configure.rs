// SPDX-License-Identifier: GPL-2.0

//! Attaching the device, detaching it, and settings that need both.
//!
//! MTU, number of queues and sizes of the buffers are agreed on with the host when the channel is opened: to change one, the device is
//! detached and attached anew with the other settings as they were; if that fails, with the old ones. All under RTNL.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc};
use vmbus_proto::net::{
    nvsp::{NvspVersion, SendTable},
    offload::{OffloadParameters, Setting},
    packet::ETHERNET_HEADER_SIZE,
    rndis::{network_address_parameter, PacketFilter},
    setup, Oid,
};

use crate::{
    net::{device::Address, packet::XdpPage, xdp::SetProgram, Feature, Features, Rtnl},
    nic::{Interface, Nic, State},
    session::{Session, Wanted},
};

/// Frames that are received before the user has said anything else.
const OPEN_FILTER: PacketFilter = PacketFilter::DIRECTED
    .union(PacketFilter::ALL_MULTICAST)
    .union(PacketFilter::BROADCAST);

/// Sections at least (C: `NETVSC_MIN_TX_SECTIONS`).
const MIN_SECTIONS: u32 = 10;

/// Attaches the device by `state.channel`.
///
/// # Errors
/// The device stays detached.
pub(crate) fn attach(
    interface: &Arc<Interface>,
    rtnl: &Rtnl,
    state: &mut State,
) -> Result<Arc<Session>> {
    let nic = interface.nic();
    let dev = &nic.shared.dev;
    let channel = state.channel.take().ok_or(ENODEV)?;
    let wanted = Wanted {
        queues: state.config.queues,
        receive_bytes: state.config.receive_bytes,
        send_bytes: state.config.send_bytes,
        lro: dev.features().has(Feature::Lro),
    };
    let session = Session::new(rtnl, interface, channel, &wanted).map_err(|(e, channel)| {
        state.channel = channel;
        e
    })?;
    let result = attach_rest(nic, rtnl, state, &session);
    if let Err(e) = result {
        *nic.expecting.lock() = None;
        let _ = nic.session.replace(None);
        state.channel = session.close(rtnl);
        return Err(e);
    }
    Ok(session)
}

fn attach_rest(nic: &Nic, rtnl: &Rtnl, state: &mut State, session: &Arc<Session>) -> Result {
    let shared = &nic.shared;
    let dev = &shared.dev;
    let device = &session.device;
    if let Some(max) = device.max_mtu.filter(|max| *max < dev.mtu()) {
        dev.set_mtu(rtnl, max);
    }
    set_offloads(nic, rtnl, session);
    if let Some(speed) = device.speed {
        shared.speed.store(speed / 10_000, Ordering::Relaxed);
    }
    state.link_up = device.link_up;
    state.max_queues = session.max_queues;
    set_table_size(dev.is_rss_configured(), state, session)?;

    shared.set_send_table(&SendTable::round_robin(session.queues.len() as u32));
    nic.session.replace(Some(session.clone()))?;
    if session.queues.len() > 1 {
        *nic.expecting.lock() = Some(session.clone());
        let opened = session.open_subchannels();
        *nic.expecting.lock() = None;
        // With the primary channel alone if there is no other way.
        if let Err(e) = opened {
            if e == ENODEV {
                return Err(e);
            }
        }
    }
    let queues = session.usable_queues().max(1);
    if (queues as usize) < session.queues.len() {
        shared.set_send_table(&SendTable::round_robin(queues));
        fill_table(state, queues);
    }
    session.link.queues.store(queues, Ordering::Relaxed);
    if queues > 1 {
        // The channels can be used without.
        let _ = session.set_rss(&state.config.table, &state.config.key);
    }
    dev.set_queues(rtnl, queues)?;
    set_programs(rtnl, state, session);
    Ok(())
}

/// Entries of the receive table, as many as the host has.
fn set_table_size(configured: bool, state: &mut State, session: &Session) -> Result {
    let size = session.device.rss.map_or(0, |rss| rss.usable_table_size());
    let table = &mut state.config.table;
    if table.len() != size {
        table.clear();
        table.resize(size, 0, GFP_KERNEL)?;
    } else if configured {
        return Ok(());
    }
    fill_table(state, session.queues.len() as u32);
    Ok(())
}

/// Lets packets go to all queues in turn.
fn fill_table(state: &mut State, queues: u32) {
    for (entry, index) in state.config.table.iter_mut().zip(0u32..) {
        *entry = index % queues.max(1);
    }
}

/// Shows what the host can do for the stack.
fn set_offloads(nic: &Nic, rtnl: &Rtnl, session: &Session) {
    const LEGACY_MAX: u32 = 65536;
    let mut can = Features::of(&[Feature::RxChecksum, Feature::ScatterGather, Feature::RxHash]);
    for (has, feature) in [
        (setup::Features::TX_TCP4, Feature::Ipv4Checksum),
        (setup::Features::TX_TCP6, Feature::Ipv6Checksum),
        (setup::Features::LSO4, Feature::Tso),
        (setup::Features::LSO6, Feature::Tso6),
        (setup::Features::RSC, Feature::Lro),
    ] {
        if session.has(has) {
            can = can.with(feature);
        }
    }
    session
        .link
        .checksums
        .store(session.checksums(), Ordering::Relaxed);
    nic.set_offloads(rtnl, can);
    let dev = &nic.shared.dev;
    dev.set_tso_max(rtnl, session.device.lso_max_size.min(LEGACY_MAX));
}

/// Puts the XDP program into all queues, or takes it out.
fn set_programs(rtnl: &Rtnl, state: &State, session: &Session) {
    let program = &state.config.program;
    for (queue, napi) in session.queues.iter().zip(&session.napis) {
        napi.set_program(rtnl, program.clone());
        queue.xdp.store(program.is_some(), Ordering::Relaxed);
    }
}

/// After [`attach`]: lets packets through, if the interface is up.
///
/// # Errors
/// `EIO`, `ENODEV`.
pub(crate) fn go_on(nic: &Nic, rtnl: &Rtnl, state: &State, session: &Session) -> Result {
    let dev = &nic.shared.dev;
    dev.set_carrier(rtnl, false);
    if dev.is_running() {
        session.set_filter(OPEN_FILTER, || true)?;
        nic.filtering.store(true, Ordering::Release);
        // What the user has said.
        nic.filter_changed.store(true, Ordering::Release);
        session.link.interface.do_chores();
    }
    session.link.tx_off.store(!state.link_up, Ordering::SeqCst);
    dev.set_present(rtnl, true);
    if dev.is_running() {
        if state.link_up {
            dev.set_carrier(rtnl, true);
        } else {
            dev.disable_transmit();
        }
    }
    Ok(())
}

/// Stops sending.
pub(crate) fn transmit_off(nic: &Nic, session: &Session) {
    session.link.tx_off.store(true, Ordering::SeqCst);
    nic.shared.dev.disable_transmit();
}

/// Allows sending.
pub(crate) fn transmit_on(nic: &Nic, session: &Session) {
    session.link.tx_off.store(false, Ordering::SeqCst);
    nic.shared.dev.wake_queues();
}

/// Detaches the device: `state.channel` holds its channel then.
pub(crate) fn detach(nic: &Nic, rtnl: &Rtnl, state: &mut State, session: &Arc<Session>) {
    let dev = &nic.shared.dev;
    nic.filtering.store(false, Ordering::Release);
    transmit_off(nic, session);
    if dev.is_running() && !session.link.control.is_gone() {
        if session.set_filter(PacketFilter::empty(), || true).is_ok() && session.drain().is_err() {
            pr_err!("Ring buffer not empty after closing rndis\n");
        }
    }
    dev.set_present(rtnl, false);
    // No packet is on its way into the session after this.
    let _ = nic.session.replace(None);
    state.channel = session.close(rtnl);
}

/// Detaches the device, has `change` change settings, and attaches it; if that fails, with `undo` the old ones.
fn attach_anew(
    nic: &Nic,
    rtnl: &Rtnl,
    change: impl FnOnce(&mut State),
    undo: impl FnOnce(&mut State),
) -> Result {
    let session = nic.current().ok_or(ENODEV)?;
    if session.link.control.is_gone() {
        return Err(ENODEV);
    }
    let interface = session.link.interface.clone();
    let mut state = nic.state.lock();
    let state = &mut *state;
    detach(nic, rtnl, state, &session);
    // Its buffers go before new ones are made.
    drop(session);
    change(state);
    let attached =
        attach(&interface, rtnl, state).and_then(|session| go_on(nic, rtnl, state, &session));
    let Err(e) = attached else {
        return Ok(());
    };
    undo(state);
    if let Some(session) = nic.current() {
        detach(nic, rtnl, state, &session);
    }
    let restored =
        attach(&interface, rtnl, state).and_then(|session| go_on(nic, rtnl, state, &session));
    if restored.is_err() {
        pr_err!("restoring the settings failed\n");
    }
    Err(e)
}

/// The interface goes up.
pub(crate) fn open(nic: &Nic, rtnl: &Rtnl) -> Result {
    let dev = &nic.shared.dev;
    dev.set_carrier(rtnl, false);
    let session = nic.current().ok_or(ENODEV)?;
    session.set_filter(OPEN_FILTER, || true)?;
    nic.filtering.store(true, Ordering::Release);
    if nic.state.lock().link_up {
        dev.set_carrier(rtnl, true);
        transmit_on(nic, &session);
    }
    Ok(())
}

/// The interface goes down.
pub(crate) fn stop(nic: &Nic, _rtnl: &Rtnl) -> Result {
    nic.filtering.store(false, Ordering::Release);
    let Some(session) = nic.current() else {
        nic.shared.dev.disable_transmit();
        return Ok(());
    };
    transmit_off(nic, &session);
    match session.set_filter(PacketFilter::empty(), || true) {
        Err(e) if e == ENODEV => return Ok(()),
        result => result?,
    }
    session.drain().inspect_err(|_| {
        pr_err!("Ring buffer not empty after closing rndis\n");
    })
}

pub(crate) fn change_mtu(nic: &Nic, rtnl: &Rtnl, mtu: u32) -> Result {
    let dev = &nic.shared.dev;
    let old = dev.mtu();
    attach_anew(
        nic,
        rtnl,
        |_| dev.set_mtu(rtnl, mtu),
        |_| dev.set_mtu(rtnl, old),
    )
}

pub(crate) fn set_address(nic: &Nic, address: &Address) -> Result {
    let session = nic.current().ok_or(ENODEV)?;
    session.set(
        Oid::GEN_RNDIS_CONFIG_PARAMETER,
        &network_address_parameter(*address),
    )
}

/// Sets how many queues there are.
pub(crate) fn set_queues(nic: &Nic, rtnl: &Rtnl, count: u32) -> Result {
    let session = nic.current().ok_or(ENODEV)?;
    if session.agreed.version < NvspVersion::V5 || count == 0 || count > session.max_queues {
        return Err(EINVAL);
    }
    let old = nic.state.lock().config.queues;
    drop(session);
    attach_anew(
        nic,
        rtnl,
        |state| state.config.queues = count,
        |state| state.config.queues = old,
    )
}

/// Sets how many sections the buffers have.
pub(crate) fn set_rings(nic: &Nic, rtnl: &Rtnl, rx: u32, tx: u32) -> Result {
    let session = nic.current().ok_or(ENODEV)?;
    let rings = crate::show::rings(&session);
    let rx = rx.clamp(MIN_SECTIONS, rings.rx_max.max(MIN_SECTIONS));
    let tx = tx.clamp(MIN_SECTIONS, rings.tx_max.max(MIN_SECTIONS));
    if rx == rings.rx && tx == rings.tx {
        return Ok(());
    }
    let (receive, send) = (session.agreed.receive.size, session.agreed.send.size);
    drop(session);
    let old = {
        let state = nic.state.lock();
        (state.config.receive_bytes, state.config.send_bytes)
    };
    attach_anew(
        nic,
        rtnl,
        |state| {
            state.config.receive_bytes = rx.saturating_mul(receive);
            state.config.send_bytes = tx.saturating_mul(send);
        },
        |state| (state.config.receive_bytes, state.config.send_bytes) = old,
    )
}

pub(crate) fn set_features(nic: &Nic, rtnl: &Rtnl, features: Features) -> Result {
    let session = nic.current().ok_or(ENODEV)?;
    let dev = &nic.shared.dev;
    let lro = features.has(Feature::Lro);
    if lro != dev.features().has(Feature::Lro) {
        let setting = Setting::from_bool(lro);
        let parameters = OffloadParameters {
            rsc_ipv4: setting,
            rsc_ipv6: setting,
            ..OffloadParameters::default()
        }
        .for_version(session.agreed.version);
        if let Err(e) = session.set_offloads(&parameters) {
            // The others are on and off as wanted.
            let kept = if lro {
                features.without(Feature::Lro)
            } else {
                features.with(Feature::Lro)
            };
            dev.set_features(rtnl, kept);
            nic.shared.note_features(kept);
            return Err(e);
        }
    }
    nic.shared.note_features(features);
    Ok(())
}

pub(crate) fn set_xdp(nic: &Nic, rtnl: &Rtnl, request: SetProgram<'_>) -> Result {
    let session = nic.current().ok_or(ENODEV)?;
    let dev = &nic.shared.dev;
    if request.program().is_some() {
        if dev.mtu() + ETHERNET_HEADER_SIZE > XdpPage::max_frame() {
            return Err(request.mtu_too_large());
        }
        if dev.features().has(Feature::Lro) {
            return Err(request.lro_is_on());
        }
    }
    let mut state = nic.state.lock();
    state.config.program = request.program().cloned();
    set_programs(rtnl, &state, &session);
    Ok(())
}

/// The limits of the MTU, by the version spoken.
pub(crate) fn mtu_limits(version: NvspVersion) -> (u32, u32) {
    const MIN: u32 = 68;
    let max = if version.has_ndis_config() {
        65535 - ETHERNET_HEADER_SIZE
    } else {
        1500
    };
    (MIN, max)
}
