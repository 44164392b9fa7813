#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only OR MIT
# In dracut's initramfs: loads the Rust drivers when the kernel was started for them.
if grep -qw initcall_blacklist=hv_acpi_init /proc/cmdline; then
	for module in hv_vmbus_rs hv_storvsc_rs hv_netvsc_rs hv_utils_rs; do
		modprobe "$module" || echo "hyperv-rs: $module was not loaded" >/dev/kmsg
	done
fi
