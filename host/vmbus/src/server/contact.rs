// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Making and ending the connection.

use hv_partition::VpIndex;
use hvctl::Event;
use vmbus_proto::msg::{
    AllOffersDelivered, ChannelMessage, ConnectionState, InitiateContact, MessageBuffer,
    ModifyConnection, ModifyConnectionResponse, TargetInfo, UnloadResponse, VersionResponse,
    VersionResponseFeatures, MESSAGE_CONNECTION_ID_4, VMBUS_SINT,
};
use vmbus_proto::{FeatureFlags, Guid, VmbusVersion};
use zerocopy::IntoBytes;

use super::{Action, ChannelState, Connection, MonitorPages, OfferId, Server};

/// Features this server grants when asked.
const FEATURES: FeatureFlags = FeatureFlags::MODIFY_CONNECTION.union(FeatureFlags::CLIENT_ID);

impl Server {
    pub(super) fn on_initiate_contact(
        &mut self,
        connection_id: u32,
        m: &InitiateContact,
        client_id: Option<Guid>,
    ) -> Result<(), String> {
        let version = m.version;
        let what = format!("INITIATE_CONTACT {version}");
        // SINT and VTL count on connection 4 only (OpenVMM: the "multiclient" port), the VTL from 5.1 on.
        let default_target = TargetInfo {
            sint: VMBUS_SINT,
            vtl: 0,
            reserved: [0; 2],
            features: FeatureFlags::empty(),
        };
        let mut target = match m.target_info() {
            Some(target) if connection_id == MESSAGE_CONNECTION_ID_4 => target,
            _ => default_target,
        };
        if version < VmbusVersion::V5_1 {
            target.vtl = 0;
        }
        if target.vtl != 0 {
            return Err(format!(
                "{what}: VTL {}, this partition has VTL 0 only",
                target.vtl
            ));
        }
        // Before 3.0 messages always went to VP 0.
        let vp = if version >= VmbusVersion::V3_0 {
            m.target_vp
        } else {
            0
        };
        if !self.valid_vp(vp) {
            return Err(format!(
                "{what}: target VP {vp}, there are {}",
                self.vp_count
            ));
        }
        if target.sint != VMBUS_SINT {
            return Err(format!(
                "{what}: SINT {}, expected {VMBUS_SINT}",
                target.sint
            ));
        }
        if m.features().contains(FeatureFlags::CLIENT_ID) && client_id.is_none() {
            return Err(format!(
                "{what}: too short for the client id that its features name"
            ));
        }
        // A guest that starts over (kexec, crash kernel) contacts again without unloading.
        self.disconnect();

        if !version.is_supported() || version > self.max_version {
            // Any guest tries its newest version first: no violation.
            self.send_to(VpIndex(vp), &VersionResponse::blank());
            self.event(Event::VersionRefused {
                version: version.to_string(),
            });
            return Ok(());
        }
        let features = m.features() & FEATURES;
        let monitor_pages = match self.check_monitor_pages(m.monitor_page1, m.monitor_page2) {
            Ok(pages) => pages,
            Err(text) => {
                self.send_version(
                    VpIndex(vp),
                    version,
                    features,
                    ConnectionState::FAILED_UNKNOWN,
                );
                return Err(format!("{what}: {text}"));
            }
        };
        // The interrupt page of guests before 5.0 is not looked at: all channels have dedicated
        // interrupts, by hypercall one way and by event flags the other.
        self.connection = Some(Connection {
            version,
            features,
            message_vp: VpIndex(vp),
            monitor_pages,
            offers_requested: false,
        });
        self.connects += 1;
        self.send_version(VpIndex(vp), version, features, ConnectionState::SUCCESSFUL);
        self.event(Event::Connected {
            version: version.to_string(),
        });
        Ok(())
    }

    /// Says that the version is supported, and whether the connection was made.
    fn send_version(
        &mut self,
        vp: VpIndex,
        version: VmbusVersion,
        features: FeatureFlags,
        state: ConnectionState,
    ) {
        let connection_id = if version.has_message_connection_id() {
            MESSAGE_CONNECTION_ID_4
        } else {
            version.0
        };
        let response = VersionResponse {
            version_supported: 1,
            connection_state: state,
            connection_id,
            ..VersionResponse::blank()
        };
        let mut message = MessageBuffer::from_message(&response);
        if version.has_feature_flags() {
            // 20 bytes in all: it fits.
            let _ = message.append(VersionResponseFeatures { features }.as_bytes());
        }
        tracing::trace!(?response, ?features, vp = vp.0, "message to guest");
        self.actions.push_back(Action::Post { vp, message });
    }

    /// Both pages or none, each a page of RAM.
    fn check_monitor_pages(
        &self,
        parent_to_child: u64,
        child_to_parent: u64,
    ) -> Result<Option<MonitorPages>, String> {
        match (parent_to_child, child_to_parent) {
            (0, 0) => Ok(None),
            (0, _) | (_, 0) => Err("one monitor page without the other".into()),
            _ => {
                for gpa in [parent_to_child, child_to_parent] {
                    if !self.is_ram_page(gpa) {
                        return Err(format!("monitor page {gpa:#x} is not a page of RAM"));
                    }
                }
                Ok(Some(MonitorPages {
                    parent_to_child,
                    child_to_parent,
                }))
            }
        }
    }

    pub(super) fn on_modify_connection(&mut self, m: &ModifyConnection) -> Result<(), String> {
        let checked = self.check_monitor_pages(m.monitor_page1, m.monitor_page2);
        if let (Some(connection), Ok(pages)) = (&mut self.connection, &checked) {
            connection.monitor_pages = *pages;
        }
        let connection_state = if checked.is_ok() {
            ConnectionState::SUCCESSFUL
        } else {
            ConnectionState::FAILED_UNKNOWN
        };
        self.send(&ModifyConnectionResponse {
            connection_state,
            ..ModifyConnectionResponse::blank()
        });
        checked
            .map(|_| ())
            .map_err(|text| format!("MODIFY_CONNECTION: {text}"))
    }

    pub(super) fn on_unload(&mut self) -> Result<(), String> {
        let Some(vp) = self.connection.as_ref().map(|c| c.message_vp) else {
            return Err("UNLOAD: not connected".into());
        };
        self.disconnect();
        self.unloads += 1;
        self.send_to(vp, &UnloadResponse::blank());
        self.event(Event::Unloaded);
        Ok(())
    }

    pub(super) fn on_request_offers(&mut self) -> Result<(), String> {
        let Some(connection) = &mut self.connection else {
            return Err("REQUEST_OFFERS: not connected".into());
        };
        if connection.offers_requested {
            return Err("REQUEST_OFFERS: offers were delivered before on this connection".into());
        }
        connection.offers_requested = true;
        // By class, then instance, then sub-channel, so that relids are the same at each connection
        // (OpenVMM: guests expect them to be so across hibernation).
        let mut order: Vec<OfferId> = (0..self.offers.len()).map(OfferId).collect();
        order.sort_by_key(|id| {
            let spec = &self.offers[id.0].spec;
            (spec.class, spec.instance, spec.subchannel)
        });
        for id in order {
            if self.offers[id.0].wanted {
                self.send_offer(id);
            }
        }
        self.send(&AllOffersDelivered::blank());
        self.event(Event::OffersDelivered);
        Ok(())
    }

    /// Takes everything back that the guest had.
    pub(super) fn disconnect(&mut self) {
        for i in 0..self.offers.len() {
            let offer = &mut self.offers[i];
            let old = std::mem::replace(&mut offer.state, ChannelState::Idle);
            offer.monitor_id = None;
            // Sub-channels exist because the guest asked its device for them.
            if offer.spec.subchannel != 0 {
                offer.wanted = false;
            }
            if matches!(
                old,
                ChannelState::Open { .. } | ChannelState::Opening { .. }
            ) {
                self.actions.push_back(Action::Close { offer: OfferId(i) });
            }
        }
        for (id, gpadl) in self.gpadls.drain() {
            if gpadl.is_live() {
                self.actions.push_back(Action::GpadlGone {
                    offer: gpadl.offer,
                    id,
                });
            }
        }
        self.gpadl_pages = 0;
        self.relids.clear();
        self.connection = None;
    }
}
