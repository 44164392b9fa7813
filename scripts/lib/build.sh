# SPDX-License-Identifier: GPL-2.0-only OR MIT
# shellcheck shell=bash
# What is built from the checkout, and the environment in which it runs. Sourced by front.sh.

# Directories of this checkout in the cache: two checkouts do not share objects.
checkout_dirs() {
	local dir=$HV_CACHE/checkouts/$CHECKOUT_NAME
	export HV_STATE=$dir HV_SOURCE=$HV_ROOT HV_LOGS=$dir/logs
	export CARGO_HOME=$HV_CACHE/cargo CARGO_TARGET_DIR=$dir/target
	mkdir -p "$HV_LOGS" "$CARGO_HOME" "$CARGO_TARGET_DIR"
	printf '%s\n' "$HV_ROOT" >"$dir/path"
	cargo_config
	exec {HV_BUILD_LOCK}>>"$dir/lock"
}

# The way to crates that the user has set for cargo (mirrors, proxies), without the parts of their
# configuration that choose compilers and linkers.
cargo_config() {
	local from=${HYPERV_RS_CARGO_CONFIG-}
	[[ -r $from ]] || { rm -f "$CARGO_HOME/config.toml"; return 0; }
	awk '/^[[:space:]]*\[/ { keep = ($0 ~ /^[[:space:]]*\[(http|net|source|registr)/) } keep' "$from" \
		>"$CARGO_HOME/config.toml"
}

# What the programs find where. Paths are the same inside and outside of the tree, but for the
# kernel, its build directory and the image.
export_environment() {
	export HV_KERNEL=$HV_IN_KERNEL/vmlinuz HV_KERNEL_RELEASE=$KREL HV_KDIR=$HV_IN_KDIR
	export HV_KSRC=$HV_IN_KERNEL/source HV_KMODULES=$HV_IN_KERNEL/usr/lib/modules/$KREL
	export HV_BASE_CPIO=$HV_IN_IMAGE/base.cpio HV_QEMU=/usr/bin/qemu-system-x86_64
	export HV_MODULES=$HV_STATE/modules-$KREL HV_SSDT=$HV_STATE/vmbus.aml
	export HV_BIN=$CARGO_TARGET_DIR/release HV_PLUGIN=$CARGO_TARGET_DIR/release/libhv_host_qemu.so
	export HV_AGENT=$CARGO_TARGET_DIR/$HV_TARGET/release/guest-agent
	export HV_KCC=x86_64-linux-gnu-gcc-$KGCC HV_KMAKE="CC=x86_64-linux-gnu-gcc-$KGCC LOCALVERSION=+${KREL#*+}"
	# Debug kernels of one release differ in their configuration, which objects do not tell.
	[[ -z ${DEBUG_KERNEL-} ]] || export HV_MODULES=$HV_STATE/modules-$KERNEL_KEY
	[[ -z ${DEBUG_KERNEL-} ]] || export HV_KCC=clang-$HV_LLVM HV_KMAKE="LLVM=-$HV_LLVM LOCALVERSION=" HV_CHECKED_KERNEL=1
	export HV_INSTALLED=$HV_IN_INSTALLED
	export HV_DEBIAN=$HV_IN_DEBIAN/root.img HV_POSTGRES=$HV_IN_POSTGRES/postgres.img
}
HV_IN_DEBIAN=/hv/debian
HV_IN_INSTALLED=/hv/installed
HV_IN_POSTGRES=/hv/postgres
HV_IN_IMAGE=/hv/image
HV_TARGET=x86_64-unknown-linux-gnu

# in_tree [--here] CMD…: CMD in the finished tree, with all of the above; in the checkout, or with
# --here in the caller's directory, so that file names given by the user mean what they say.
in_tree() {
	local args=() dir=$HV_ROOT
	if [[ ${1-} == --here ]]; then
		shift
		case $PWD/ in
		/ | /usr/* | /etc/* | /bin/* | /sbin/* | /lib*/* | /proc/* | /sys/* | /dev/* | /run/* | /hv/*) ;;
		*) args+=(--bind "$PWD") dir=$PWD ;;
		esac
	fi
	# Programs are built while the stages of the kernel's half are still being made.
	[[ ! -d $KDIR ]] || args+=(--bind "$KDIR:$HV_IN_KDIR")
	[[ ! -d $IMAGE ]] || args+=(--bind "$IMAGE:$HV_IN_IMAGE")
	[[ ! -d $DEBIAN ]] || args+=(--bind "$DEBIAN:$HV_IN_DEBIAN")
	[[ ! -d $POSTGRES ]] || args+=(--bind "$POSTGRES:$HV_IN_POSTGRES")
	[[ -z ${INSTALLED-} || ! -d $INSTALLED ]] || args+=(--bind "$INSTALLED:$HV_IN_INSTALLED")
	[[ ! -d $KERNEL ]] || args+=(--bind "$KERNEL:$HV_IN_KERNEL")
	[[ -z ${DEBUG_KERNEL-} || ! -d $KERNEL ]] || args+=(--bind "$STOCK_KERNEL/source:$HV_IN_KERNEL/source")
	inside "$TREE" ${args[@]+"${args[@]}"} --bind "$HV_CACHE" --bind "$HV_ROOT" --cd "$dir" "$@"
}

# Programs: the host plugin, tools and tests; then the agent, static, for the guest.
build_programs() {
	# shellcheck disable=SC2016 # expanded by the inner shell
	run_logged programs "building the host, the tools and the agent" "$HV_LOGS/cargo.log" in_tree sh -ec '
		cargo build --locked --release --workspace --exclude guest-agent
		CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
			cargo build --locked --release -p guest-agent --target "$1"
		mkdir -p "$HV_STATE/help"
		for program in hv-bench hv-demo hv-test hv-vm hvctl; do
			[ ! -x "$HV_BIN/$program" ] || "$HV_BIN/$program" --help >"$HV_STATE/help/$program"
		done
		[ "$2" -nt host/qemu/vmbus.asl ] || sh scripts/lib/aml host/qemu/vmbus.asl "$2"' sh "$HV_TARGET" "$HV_STATE/vmbus.aml"
}

# The kernel modules, by the Makefile that anyone may use by hand.
build_modules() {
	# shellcheck disable=SC2086 # a list
	run_logged modules "building the kernel modules for $KREL" "$HV_LOGS/modules.log" in_tree \
		make -j"$(nproc)" KDIR="$HV_KDIR" MO="$HV_MODULES" $HV_KMAKE modules
}

# build_packages PREBUILT: the packages and the source tarball in $HV_STATE/package, with daemons that are built already.
build_packages() {
	export HV_PACKAGE_WORK=$HV_STATE/package
	HV_PACKAGE_VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$HV_ROOT/Cargo.toml")
	export HV_PACKAGE_VERSION
	rm -rf "$HV_PACKAGE_WORK"
	mkdir -p "$HV_PACKAGE_WORK"
	run_logged source "sources of hyperv-rs $HV_PACKAGE_VERSION, with the daemons' crates" "$HV_LOGS/package-source.log" \
		in_tree bash scripts/lib/package-source || return
	run_logged packages "hyperv-rs $HV_PACKAGE_VERSION" "$HV_LOGS/package.log" inside "$PACKAGER" --bind "$HV_CACHE" \
		--bind "$HV_ROOT" --bind "$1:/mnt" --cd "$HV_PACKAGE_WORK" env HV_DAEMONS=/mnt bash "$HV_ROOT/scripts/lib/package-debian"
}
