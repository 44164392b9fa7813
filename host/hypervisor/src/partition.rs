// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The partition as the rest of the host sees it.

use hv_partition::{GuestRam, Partition, PostError, VpIndex};
use serde_json::{json, Value};

use crate::{Hypervisor, Shared};

impl Shared {
    pub(crate) fn post(
        &self,
        vp: VpIndex,
        sint: u8,
        kind: u32,
        payload: &[u8],
    ) -> Result<(), PostError> {
        let target = self.vps.get(vp.0 as usize).ok_or(PostError::InvalidVp)?;
        let vectors = target.post(sint, kind, payload, self.now(), &self.ram, &self.counters)?;
        self.raise(vp, vectors);
        Ok(())
    }

    pub(crate) fn signal(&self, vp: VpIndex, sint: u8, flag: u16) -> Result<bool, PostError> {
        let target = self.vps.get(vp.0 as usize).ok_or(PostError::InvalidVp)?;
        let (newly, vectors) = target.signal(sint, flag, &self.ram, &self.counters)?;
        self.raise(vp, vectors);
        Ok(newly)
    }
}

impl Partition for Hypervisor {
    fn vp_count(&self) -> u32 {
        self.shared.vps.len() as u32
    }

    fn post_message(
        &self,
        vp: VpIndex,
        sint: u8,
        msg_type: u32,
        payload: &[u8],
    ) -> Result<(), PostError> {
        self.shared.post(vp, sint, msg_type, payload)
    }

    fn signal_event(&self, vp: VpIndex, sint: u8, flag: u16) -> Result<bool, PostError> {
        self.shared.signal(vp, sint, flag)
    }

    fn ram(&self) -> &GuestRam {
        &self.shared.ram
    }

    fn reference_time(&self) -> u64 {
        self.shared.now()
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let mut list = self.shared.counters.list();
        for vp in &self.shared.vps {
            let n = vp.index.0;
            list.push((format!("vp{n}_interrupts"), vp.counters.interrupts.get()));
            list.push((format!("vp{n}_messages"), vp.counters.messages.get()));
            list.push((format!("vp{n}_eom"), vp.counters.eom.get()));
            list.push((format!("vp{n}_hypercalls"), vp.counters.hypercalls.get()));
        }
        list
    }

    fn status(&self) -> Value {
        let shared = &self.shared;
        let reference_time = shared.now();
        let registers = shared.registers.lock();
        let crashes: Vec<Value> = registers
            .crashes
            .iter()
            .map(|crash| {
                json!({
                    "vp": crash.vp,
                    "parameters": crash.parameters,
                    "control": crash.control,
                    "text": crash.text,
                    "reference_time": crash.reference_time,
                })
            })
            .collect();
        json!({
            "vp_count": shared.vps.len(),
            "guest_os_id": registers.guest_os_id,
            "hypercall_page": registers.hypercall,
            "reference_time": reference_time,
            "tsc_frequency": shared.machine.tsc_frequency(),
            "crashes": crashes,
        })
    }

    fn profile_mark(&self) -> Result<(), String> {
        self.profiler()?.mark();
        Ok(())
    }

    fn profile_read(&self) -> Result<Value, String> {
        Ok(self.profiler()?.read())
    }
}

impl Hypervisor {
    fn profiler(&self) -> Result<&dyn crate::Profiler, String> {
        self.shared
            .profiler
            .as_deref()
            .ok_or_else(|| "the VM was started without profile=on".to_owned())
    }
}
