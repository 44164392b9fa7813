#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR MIT
# dracut: as the hook for initramfs-tools.

check() {
	# shellcheck disable=SC2154 # set by dracut
	[[ -r $dracutsysrootdir/usr/lib/hyperv-rs/common.sh ]]
}

depends() { :; }

installkernel() {
	# What a boot falls back to.
	hostonly='' instmods hv_storvsc hv_netvsc hv_utils
	# shellcheck source=packaging/lib/common.sh
	. /usr/lib/hyperv-rs/common.sh
	# shellcheck disable=SC2154 # set by dracut
	if built "$kernel"; then
		# shellcheck disable=SC2086 # a list
		hostonly='' instmods $hv_modules sd_mod
	fi
}

install() {
	inst_multiple grep modprobe
	# shellcheck disable=SC2154 # set by dracut
	inst_hook pre-udev 30 "$moddir/load.sh"
}
