# SPDX-License-Identifier: GPL-2.0-only OR MIT
# shellcheck shell=bash
# The order of the stages and what each is made from. Sourced by the fronts.

HV_SUITE=trixie
# Where a kernel and its build directory appear inside the tree. Fixed, as a build directory
# records the path of its source.
export HV_IN_KERNEL=/hv/kernel HV_IN_KDIR=/hv/build

# A file that only a finished tree has.
HV_TREE_CHECK=usr/bin/qemu-system-x86_64

# The clang that builds debug kernels.
export HV_LLVM=19

# Flavour and config name of the guest's kernel.
HV_FLAVOUR=cloud-amd64
HV_KCONFIG=config.amd64_none_$HV_FLAVOUR

# Everything built or run here. libelf and libdw must be the suite's own.
HV_PACKAGES="gcc libc6-dev make flex bison bc kmod cpio xz-utils zstd rsync dwarves
	libelf-dev/$HV_SUITE libdw-dev/$HV_SUITE libssl-dev
	bindgen clang-19 lld-19 llvm-19 python3-minimal busybox-static
	acpica-tools shellcheck e2fsprogs qemu-system-x86 qemu-utils passt iperf3 libbpf-dev"

# Stock modules that guest tests may load: whole directories end in a slash.
HV_GUEST_MODULES="drivers/hv/ drivers/net/hyperv/ hv_storvsc drivers/uio/ drivers/ptp/ pci-hyperv
	pci-hyperv-intf hv_sock hyperv-keyboard hid-hyperv hyperv_drm hyperv_fb scsi_transport_fc sd_mod sr_mod sg
	virtio_blk virtio_net virtio_scsi ext4 loop dummy failover net_failover 8021q veth"

# The Debian system on a disk image: what boots from it, and the tools that tests of storage and network use
# (Python and its YAML for the kernel's own network tests), and Debian's daemons for the kernel's data exchange, of the
# kernel's own release.
HV_DEBIAN_PACKAGES="systemd systemd-sysv udev kmod e2fsprogs xfsprogs btrfs-progs fio sg3-utils lsscsi
	smartmontools util-linux
	iproute2 ethtool iperf3 tcpdump dhcpcd-base iputils-ping curl bpftool socat python3 python3-yaml
	hyperv-daemons/$HV_SUITE-backports sqlite3"
HV_DEBIAN_SIZE=3G
# What a test of backup lays over it.
HV_POSTGRES_PACKAGES=postgresql

# What makes packages and judges them; in a tree of its own, as nothing else needs it.
HV_PACKAGER_PACKAGES="debhelper lintian mandoc rpm makepkg pacman-package-manager fakeroot"

# The machine that packages are installed in: a small Debian with GRUB, and what hyperv-rs-dkms depends on. Versions of the
# compilers are the kernel's.
HV_MACHINE_PACKAGES="systemd systemd-sysv udev kmod e2fsprogs util-linux iproute2 ethtool iputils-ping
	initramfs-tools zstd busybox-static grub-pc-bin grub2-common linux-base/$HV_SUITE-backports dkms make gcc
	flex bison bc cpio xz-utils libelf-dev/$HV_SUITE libdw-dev/$HV_SUITE libssl-dev openssl bindgen pahole/$HV_SUITE python3"
# The series that is upgraded from.
HV_MACHINE_OLD=7.2

# mirror_of GLOB DEFAULT: where the machine's own apt gets a suite that matches GLOB.
mirror_of() {
	local uri release component
	if command -v apt-get >/dev/null; then
		# shellcheck disable=SC2016 # fields of apt, not of the shell
		while read -r uri release component; do
			# shellcheck disable=SC2053 # a glob
			if [[ $component == main && $release == $1 && $uri =~ ^(https?|file):/ ]]; then
				printf '%s\n' "${uri%/}"
				return
			fi
		done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' 2>/dev/null)
	fi
	printf '%s' "$2"
}

# Finds the mirrors: HYPERV_RS_MIRROR, else the machine's own if it runs Debian, else Debian's.
find_mirrors() {
	local codename=none
	MIRROR=${HYPERV_RS_MIRROR-} SECURITY_MIRROR=
	[[ -z $MIRROR ]] || return 0
	if [[ -r /etc/os-release ]] && grep -qx 'ID=debian' /etc/os-release; then
		codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
		SECURITY_MIRROR=$(mirror_of "*-security" '')
	fi
	MIRROR=$(mirror_of "${codename:-sid}" http://deb.debian.org/debian)
}

# One line when the mirror cannot be reached, instead of debootstrap's many.
need_network() {
	[[ $MIRROR != file:* ]] || return 0
	local probe=$HV_CACHE/logs/network.log
	if [[ -x /usr/lib/apt/apt-helper ]]; then
		/usr/lib/apt/apt-helper -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 \
			download-file "$MIRROR/dists/$HV_SUITE/InRelease" "$HV_CACHE/logs/InRelease" >"$probe" 2>&1 ||
			die "no network: $(sed -n 's/^E: //p' "$probe" | head -n 1)"
		rm -f "$HV_CACHE/logs/InRelease"
	fi
}

need_debootstrap() {
	command -v debootstrap >/dev/null && return 0
	command -v apt-get >/dev/null || die "debootstrap is missing and this machine has no apt-get to install it"
	run_logged machine "installing debootstrap" "$HV_CACHE/logs/machine.log" bash -c '
		export DEBIAN_FRONTEND=noninteractive
		install() { apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends debootstrap; }
		install || { apt-get update && install; }' || die "debootstrap could not be installed"
}

# The stage base, and its package lists brought up to date once a run.
setup_base() {
	local key
	[[ -z ${BASE-} ]] || return 0
	find_mirrors
	key=$({ script_text "$HV_SCRIPTS/stages/base"; echo "$HV_SUITE $MIRROR $SECURITY_MIRROR"; } | short_hash)
	if [[ -e $HV_CACHE/base/$key/var/lib/apt/lists/lock ]]; then
		BASE=$HV_CACHE/base/$key
		need_network
		run_logged base "refreshing the package lists of $MIRROR" "$HV_CACHE/logs/base-update.log" \
			inside "$BASE" --rw apt-get update -qq || return
	else
		need_space
		need_network
		need_debootstrap
		stage base "$key" "Debian $HV_SUITE from $MIRROR" var/lib/apt/lists/lock "$HV_SCRIPTS/stages/base" \
			SUITE="$HV_SUITE" MIRROR="$MIRROR" SECURITY_MIRROR="$SECURITY_MIRROR" || return
		BASE=$STAGE_DIR
	fi
}

# discover WANTED: the newest kernel of the flavour whose version begins with WANTED ("" for any)
# and of which image, headers, config and source exist in one Debian version, and whose
# compilers are on offer. Prints what the file kernels/NAME holds.
discover() {
	local wanted=$1 krel kdeb series rustc gcc config pin
	while read -r kdeb krel; do
		[[ $krel == "$wanted" || $krel == "$wanted"[.+]* || -z $wanted ]] || continue
		series=$(cut -d. -f1,2 <<<"${krel%%[+-]*}")
		grep -qx "linux-headers-$krel $kdeb" "$PACKAGE_LIST" || continue
		grep -qx "linux-source-$series $kdeb" "$PACKAGE_LIST" || continue
		grep -qx "linux-config-$series $kdeb" "$PACKAGE_LIST" || continue
		# The compilers that built it, from its configuration.
		rm -rf "$HV_CACHE/kernels/.config"
		mkdir -p "$HV_CACHE/kernels/.config"
		inside "$BASE" --bind "$HV_CACHE/kernels/.config:/mnt" --cd /mnt sh -ec "
			apt-get download -qq linux-config-$series=$kdeb
			dpkg-deb -x linux-config-*.deb ." >&2 || return
		config=$(xz -dc "$HV_CACHE/kernels/.config/usr/src/linux-config-$series/$HV_KCONFIG.xz")
		rm -rf "$HV_CACHE/kernels/.config"
		grep -qx 'CONFIG_RUST=y' <<<"$config" || { echo "$krel: built without Rust" >&2; continue; }
		rustc=$(sed -n 's/^CONFIG_RUSTC_VERSION=//p' <<<"$config")
		rustc=$((rustc / 100000)).$((rustc / 100 % 1000)).$((rustc % 100))
		gcc=$(sed -n 's/^CONFIG_GCC_VERSION=//p' <<<"$config")
		gcc=$((gcc / 10000))
		pin=$(awk -v want="$rustc" '$1 == "rustc" && index($2, want) == 1 && substr($2, length(want) + 1) ~ /^[^0-9.]/ { print $2; exit }' "$PACKAGE_LIST")
		if [[ -z $pin ]]; then
			echo "$krel: built by rustc $rustc, which the mirror does not have" >&2
			continue
		fi
		printf 'KREL=%s\nKDEB=%s\nKSERIES=%s\nKRUSTC=%s\nKGCC=%s\n' "$krel" "$kdeb" "$series" "$pin" "$gcc"
		return 0
	done < <(sed -n "s/^linux-image-\([0-9][^ ]*-$HV_FLAVOUR\) \(.*\)$/\2 \1/p" "$PACKAGE_LIST" | sort -rV)
	echo "CAUSE: no Debian $HV_FLAVOUR kernel${wanted:+ $wanted} for which image, headers, config, source and compiler are all on $MIRROR; it has: $(sed -n 's/^linux-source-\([0-9.]*\) .*/\1/p' "$PACKAGE_LIST" | sort -uV | tr '\n' ' ')" >&2
	return 1
}

# What the user asked for without "debug": the version whose source a debug kernel is made from.
wanted_version() {
	local wanted=${HYPERV_RS_KERNEL-}
	if is_debug; then
		wanted=${wanted#debug}
		wanted=${wanted#-}
	fi
	printf '%s' "$wanted"
}

# Whether the kernel is to be built here with the kernel's own checkers: --kernel debug, debug-7.2.
is_debug() { [[ ${HYPERV_RS_KERNEL-} == debug || ${HYPERV_RS_KERNEL-} == debug-* ]]; }

# The file that holds the choice of a kernel for what the user asked for.
kernel_choice() {
	local wanted
	wanted=$(wanted_version)
	[[ $wanted =~ ^[0-9A-Za-z.+~-]*$ ]] || die "'$wanted' is no kernel version; --kernel takes for example 7.3 or 7.3.4"
	printf '%s' "$HV_CACHE/kernels/${wanted:-newest}"
}

# Chooses the kernel: a choice made before holds as long as its files are there, so that a warm
# cache needs no network. Sets KREL KDEB KSERIES KRUSTC KGCC.
choose_kernel() {
	local wanted file
	wanted=$(wanted_version)
	file=$(kernel_choice) || exit
	if [[ -s $file && -z ${HV_UPDATE-} ]]; then
		# shellcheck disable=SC1090
		. "$file"
		kernel_key
		[[ ! -s $HV_CACHE/kernel/$KERNEL_KEY/vmlinuz ]] || return 0
	fi
	setup_base || return
	mkdir -p "$HV_CACHE/kernels"
	PACKAGE_LIST=$HV_CACHE/kernels/packages
	inside "$BASE" apt-cache dumpavail |
		awk '$1 == "Package:" { name = $2 } $1 == "Version:" { print name, $2 }' >"$PACKAGE_LIST"
	export -f discover inside
	export BASE HV_CACHE HV_SCRIPTS HV_FLAVOUR HV_KCONFIG PACKAGE_LIST MIRROR
	# shellcheck disable=SC2016 # expanded by the inner shell
	run_logged kernel "looking for the newest ${wanted:+$wanted }kernel" "$HV_CACHE/logs/discover.log" \
		bash -c 'set -o pipefail; discover "$1" >"$2.new" && mv "$2.new" "$2"' bash "$wanted" "$file" || {
		rm -f "$file.new"
		return 1
	}
	# shellcheck disable=SC1090
	. "$file"
	say "kernel     $KREL ($KDEB), built by rustc ${KRUSTC%%+*} and gcc $KGCC"
	kernel_key
}

kernel_key() {
	KERNEL_KEY=$KREL-$({ script_text "$HV_SCRIPTS/stages/kernel"; echo "$KREL $KDEB $HV_KCONFIG"; } | short_hash)
}

setup_kernel() {
	stage kernel "${STOCK_KERNEL##*/}" "Linux $KREL: image, modules, source" vmlinuz "$HV_SCRIPTS/stages/kernel" \
		BASE="${BASE-}" KREL="$STOCK_KREL" KDEB="$KDEB" KSERIES="$KSERIES" KCONFIG="$HV_KCONFIG"
}

setup_tree() {
	stage tree "$TREE_KEY" "toolchain and QEMU" "$HV_TREE_CHECK" "$HV_SCRIPTS/stages/tree" \
		BASE="${BASE-}" PACKAGES="$TREE_PACKAGES"
}

# all_of N: waits for N background jobs, or for the first that fails: then its status is returned
# at once, and what still runs ends with the front. (The ticker, a job too, never ends by itself.)
all_of() {
	local -i n
	for ((n = 0; n < $1; n++)); do
		wait -n || return
	done
}

# Where the stages of the chosen kernel lie. Sets TREE KERNEL KDIR IMAGE DEBIAN POSTGRES (directories outside the
# tree), and TREE_KEY and TREE_PACKAGES.
name_stages() {
	local name key
	TREE_PACKAGES="$HV_PACKAGES gcc-$KGCC"
	for name in rustc rust-src libstd-rust-dev cargo rustfmt rust-clippy; do
		# Debian builds them all from one source package of one version.
		TREE_PACKAGES+=" $name=$KRUSTC"
	done
	TREE_KEY=$({ script_text "$HV_SCRIPTS/stages/tree" "$HV_SCRIPTS/stages/base"; echo "$TREE_PACKAGES"; } | short_hash)
	TREE=$HV_CACHE/tree/$TREE_KEY
	KERNEL=$HV_CACHE/kernel/$KERNEL_KEY
	STOCK_KREL=$KREL
	STOCK_KERNEL=$KERNEL
	# The compilers are not in it: it stays when only the tree changes. A debug kernel's guests take programs from it, and
	# nothing of its kernel.
	key=$({ script_text "$HV_SCRIPTS/stages/debian" "$HV_SCRIPTS/stages/base"; echo "$KERNEL_KEY $HV_DEBIAN_PACKAGES $HV_DEBIAN_SIZE"; } | short_hash)
	DEBIAN=$HV_CACHE/debian/$KREL-$key
	key=$({ script_text "$HV_SCRIPTS/stages/postgres" "$HV_SCRIPTS/stages/base"; echo "$HV_POSTGRES_PACKAGES"; } | short_hash)
	POSTGRES=$HV_CACHE/postgres/$key
	key=$({ script_text "$HV_SCRIPTS/stages/packager" "$HV_SCRIPTS/stages/base"; echo "$HV_PACKAGER_PACKAGES"; } | short_hash)
	PACKAGER=$HV_CACHE/packager/$key
	! is_debug || name_debug_kernel
	key=$({ script_text "$HV_SCRIPTS/stages/artifacts"; echo "$KERNEL_KEY $TREE_KEY"; } | short_hash)
	KDIR=${DEBUG_KERNEL:+$DEBUG_KERNEL/build}
	KDIR=${KDIR:-$HV_CACHE/artifacts/$KREL-$key}
	key=$({ script_text "$HV_SCRIPTS/stages/image"; echo "$KERNEL_KEY $TREE_KEY $HV_GUEST_MODULES"; } | short_hash)
	IMAGE=$HV_CACHE/image/$KREL-$key
	export_environment
}

# A kernel built here takes the place of the stock one, with a release name of its own. Sets DEBUG_KERNEL, and KREL,
# KERNEL_KEY and KERNEL anew.
name_debug_kernel() {
	local key
	key=$({ script_text "$HV_SCRIPTS/stages/debug"; cat "$HV_ROOT/kunit/debug.config"; echo "$KERNEL_KEY $TREE_KEY"; } | short_hash)
	KREL=${KREL%%[+-]*}-hvdebug
	KERNEL_KEY=$KREL-$key
	DEBUG_KERNEL=$HV_CACHE/debug/$KERNEL_KEY
	KERNEL=$DEBUG_KERNEL/kernel
}

# Whether there is nothing to make: then no lock is needed, and no run waits for another.
is_ready() {
	local file
	[[ -z ${HV_UPDATE-} ]] || return 1
	file=$(kernel_choice) || exit
	[[ -s $file ]] || return 1
	# shellcheck disable=SC1090
	. "$file"
	kernel_key
	name_stages
	[[ -e $TREE/$HV_TREE_CHECK && -e $KERNEL/vmlinuz && -e $KDIR/Module.symvers && -e $IMAGE/base.cpio ]] || return 1
	[[ -z ${HV_WANT_DEBIAN-} || -e $DEBIAN/root.img ]] || return 1
	[[ -z ${HV_WANT_POSTGRES-} || -e $POSTGRES/postgres.img ]] || return 1
	# What is in use is not pruned.
	touch -c "$TREE" "$STOCK_KERNEL" "${DEBUG_KERNEL:-$KDIR}" "$IMAGE"
	[[ -z ${HV_WANT_DEBIAN-} ]] || touch -c "$DEBIAN"
	[[ -z ${HV_WANT_POSTGRES-} ]] || touch -c "$POSTGRES"
}

# setup [--build]: everything up to a bootable base, and with --build the checkout's programs and
# modules.
setup() {
	local SETTING_UP=1
	if ! is_ready; then
		lock_cache
		choose_kernel || return
		name_stages
		if [[ ! -e $TREE/$HV_TREE_CHECK || ! -e $STOCK_KERNEL/vmlinuz ]]; then
			setup_base || return
			# Two halves that wait for the network and for one CPU each.
			setup_kernel &
			setup_tree &
			all_of 2 || return
		fi
	fi
	if [[ ${1-} == --build ]]; then
		# The two halves share the lock of this checkout; that of the cache is given back as soon as
		# no stage is left to make.
		{ lock_checkout && build_programs; } &
		{ setup_artifacts && setup_image && setup_debian && setup_postgres && unlock_cache && lock_checkout && build_modules; } &
		all_of 2 || return
		if [[ -n ${HV_WANT_INSTALLED-} ]]; then
			# Other suites do without.
			setup_installed || say "no machine with our packages: the tests that want it fail"
		fi
		flock -u "$HV_BUILD_LOCK"
	else
		setup_artifacts && setup_image && setup_debian && setup_postgres && unlock_cache
	fi
}

# What modules are built against: a debug kernel, or the stock one's metadata.
setup_artifacts() {
	if [[ -n ${DEBUG_KERNEL-} ]]; then
		stage debug "$KERNEL_KEY" "Linux $KREL with the kernel's checkers: half an hour of one CPU" kernel/vmlinuz \
			"$HV_SCRIPTS/stages/debug" TREE="$TREE" STOCK="$STOCK_KERNEL" KREL="$KREL" CONFIG="$HV_ROOT/kunit/debug.config"
		return
	fi
	stage artifacts "${KDIR##*/}" "Rust metadata of Linux $KREL" Module.symvers "$HV_SCRIPTS/stages/artifacts" \
		TREE="$TREE" KERNEL="$KERNEL" KREL="$KREL" KCC="$HV_KCC"
}

setup_image() {
	stage image "${IMAGE##*/}" "guest image" base.cpio "$HV_SCRIPTS/stages/image" \
		TREE="$TREE" KERNEL="$KERNEL" KREL="$KREL" MODULES="$HV_GUEST_MODULES"
}

# Only for those that asked for it (HV_WANT_DEBIAN): it is large, and most tests do without.
setup_debian() {
	[[ -n ${HV_WANT_DEBIAN-} && ! -e $DEBIAN/root.img ]] || return 0
	setup_base || return
	stage debian "${DEBIAN##*/}" "Debian $HV_SUITE on a disk image" root.img "$HV_SCRIPTS/stages/debian" \
		BASE="$BASE" TREE="$TREE" KERNEL="$STOCK_KERNEL" KREL="$STOCK_KREL" PACKAGES="$HV_DEBIAN_PACKAGES" SIZE="$HV_DEBIAN_SIZE"
}

setup_packager() {
	[[ ! -e $PACKAGER/usr/bin/lintian ]] || { touch -c "$PACKAGER"; return 0; }
	setup_base || return
	stage packager "${PACKAGER##*/}" "tools that make packages" usr/bin/lintian "$HV_SCRIPTS/stages/packager" \
		BASE="$BASE" PACKAGES="$HV_PACKAGER_PACKAGES"
}

# Only for the full run of the suite package (HV_WANT_INSTALLED): this checkout's packages, installed on a machine with the chosen
# kernel and an older one.
setup_installed() {
	local key kernels packages name old=() seed machine agent
	setup_packager || return
	build_packages "$CARGO_TARGET_DIR/release" || return
	agent=$CARGO_TARGET_DIR/$HV_TARGET/release/guest-agent
	# The older kernel's metadata: what `--kernel 7.2` builds against.
	mapfile -t old < <(HYPERV_RS_KERNEL=$HV_MACHINE_OLD bash -c '
		. "$HV_SCRIPTS/lib/common.sh"; . "$HV_SCRIPTS/lib/setup.sh"; . "$HV_SCRIPTS/lib/build.sh"
		choose_kernel && name_stages && setup_base && setup_kernel && setup_artifacts && printf "%s\n" "$KREL" "$KDEB" "$KDIR" "$KERNEL"')
	((${#old[@]} == 4)) || { say "installed: no kernel $HV_MACHINE_OLD to upgrade from"; return 1; }
	kernels="${old[0]}=${old[1]} $KREL=$KDEB"
	packages=$HV_MACHINE_PACKAGES" gcc-$KGCC gcc-$KGCC-for-host"
	for name in rustc rust-src libstd-rust-dev; do packages+=" $name=$KRUSTC"; done
	setup_base || return
	key=$({ script_text "$HV_SCRIPTS/stages/machine" "$HV_SCRIPTS/stages/base"; echo "$packages $kernels"; } | short_hash)
	stage machine "$key" "Debian with compilers, GRUB and the packages of two kernels" root/usr/sbin/dkms "$HV_SCRIPTS/stages/machine" \
		BASE="$BASE" PACKAGES="$packages" RELEASES="$kernels" || return
	machine=$STAGE_DIR
	seed="${old[0]}=${old[2]}=${old[3]} $KREL=$KDIR=$STOCK_KERNEL"
	key=$({ cat "$HV_PACKAGE_WORK"/*.deb "$agent"; script_text "$HV_SCRIPTS/stages/installed" "$HV_SCRIPTS/lib/machine-install"; echo "$machine $seed"; } | short_hash)
	stage installed "$key" "our packages installed on it, and a newer kernel" root.img "$HV_SCRIPTS/stages/installed" \
		MACHINE="$machine" PACKAGES="$HV_PACKAGE_WORK" AGENT="$agent" SEED="$seed" || return
	INSTALLED=$STAGE_DIR
}

# Only for the full run of the suite exchange (HV_WANT_POSTGRES).
setup_postgres() {
	[[ -n ${HV_WANT_POSTGRES-} && ! -e $POSTGRES/postgres.img ]] || return 0
	setup_base || return
	stage postgres "${POSTGRES##*/}" "PostgreSQL on a disk image" postgres.img "$HV_SCRIPTS/stages/postgres" \
		BASE="$BASE" TREE="$TREE" PACKAGES="$HV_POSTGRES_PACKAGES"
}
