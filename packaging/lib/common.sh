# SPDX-License-Identifier: GPL-2.0-only OR MIT
# shellcheck shell=sh
# What the command, the hooks and the boot loaders' generators share. Sourced by POSIX shells.
#
# HYPERV_RS_ROOT is put before every path (for tests).

root=${HYPERV_RS_ROOT-}
# Keeps the built-in C driver of the VMBus down, so that the bus is free. Its presence is what "with the Rust drivers" means.
hv_parameter=initcall_blacklist=hv_acpi_init
hv_modules="hv_vmbus_rs hv_storvsc_rs hv_netvsc_rs hv_utils_rs"
hv_state=$root/var/lib/hyperv-rs

say() { printf 'hyperv-rs: %s\n' "$*" >&2; }

# built RELEASE: whether all modules are installed for this kernel.
built() {
	for hv_m in $hv_modules; do
		set -- "$1" "$root/lib/modules/$1/updates/dkms/$hv_m.ko"*
		[ -s "$2" ] || return 1
	done
}

# What tells one initramfs from another, without reading all of it, and also after a system was restored from a backup.
identity() { stat -L -c '%s %Y' "$1"; }

# image_of RELEASE: its initramfs.
image_of() {
	for hv_f in "$root/boot/initrd.img-$1" "$root/boot/initramfs-$1.img"; do
		if [ -s "$hv_f" ]; then
			printf '%s\n' "$hv_f"
			return
		fi
	done
	return 1
}

# in_image RELEASE: whether the initramfs that is in place now holds the modules. The note is made by initramfs-made,
# after the image was put in its place; one that is newer than its note counts as without.
in_image() {
	hv_image=$(image_of "$1") || return 1
	[ "$(cat "$hv_state/initramfs/$1" 2>/dev/null)" = "$(identity "$hv_image")" ]
}

# kernels: releases that are installed, newest first.
kernels() {
	for hv_k in "$root"/boot/vmlinuz-*; do
		[ ! -e "$hv_k" ] || printf '%s\n' "${hv_k##*/vmlinuz-}"
	done | sort -rV
}

# enabled: whether the administrator wants the Rust drivers.
enabled() { [ ! -e "$hv_state/disabled" ]; }

# ready RELEASE: whether this kernel may boot with the Rust drivers.
ready() { enabled && built "$1" && in_image "$1"; }

# rust_boot: whether the running kernel was started for the Rust drivers.
rust_boot() { grep -qwF "$hv_parameter" "$root/proc/cmdline"; }
