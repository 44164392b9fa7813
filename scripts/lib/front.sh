# SPDX-License-Identifier: GPL-2.0-only OR MIT
# shellcheck shell=bash
# The way into every front: root, a namespace of its own, the cache and its lock. Sourced.
set -euo pipefail

HV_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
HV_ROOT=${HV_SCRIPTS%/*}
export HV_SCRIPTS HV_ROOT
# shellcheck source=scripts/lib/common.sh
. "$HV_SCRIPTS/lib/common.sh"
# shellcheck source=scripts/lib/setup.sh
. "$HV_SCRIPTS/lib/setup.sh"
# shellcheck source=scripts/lib/build.sh
. "$HV_SCRIPTS/lib/build.sh"

# Re-runs the front as root in a pid and mount namespace. When any process of the chain dies,
# all of it dies: no QEMU and no mount outlives an interrupted run.
enter_namespace() {
	[[ -z ${HYPERV_RS_INSIDE-} ]] || { trap 'exit 130' INT; trap 'exit 143' TERM; return 0; }
	[[ $(uname -m) == x86_64 ]] || die "this needs an x86-64 machine, not $(uname -m)"
	local cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}
	[[ $cache == /* ]] || die "XDG_CACHE_HOME is '$cache', which is no absolute path"
	mkdir -p "$cache/hyperv-rs" 2>/dev/null || die "cannot write to $cache (XDG_CACHE_HOME moves the cache)"
	# The caller's mirrors for crates, which root may not have.
	local config=${CARGO_HOME:-$HOME/.cargo}/config.toml
	if [[ -r $config ]]; then export HYPERV_RS_CARGO_CONFIG=$config; fi
	local as_root=()
	if ((EUID != 0)); then
		command -v sudo >/dev/null || die "root is needed (for chroot and mount), and there is no sudo"
		sudo -v || die "root is needed (for chroot and mount), and sudo refused"
		local name
		as_root=(sudo -- env)
		for name in ${!HYPERV_RS_@} ${!CARGO_HTTP_@} ${!CARGO_NET_@} ${!CARGO_REGISTR@} ${!CARGO_SOURCE_@} TERM NO_COLOR \
			http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY; do
			[[ -z ${!name-} ]] || as_root+=("$name=${!name}")
		done
		# The cache stays the caller's.
		as_root+=("XDG_CACHE_HOME=$cache")
	elif ! unshare --mount --pid --fork true 2>/dev/null; then
		die "this machine lets not even root make mount and pid namespaces (a container without CAP_SYS_ADMIN?)"
	fi
	local rc=0
	${as_root[@]+"${as_root[@]}"} setpriv --pdeathsig KILL -- \
		unshare --mount --pid --fork --kill-child=KILL --mount-proc --propagation private -- \
		env HYPERV_RS_INSIDE=1 XDG_CACHE_HOME="$cache" bash "$0" "$@" || rc=$?
	exit "$rc"
}

open_cache() {
	export HV_CACHE=$XDG_CACHE_HOME/hyperv-rs
	mkdir -p "$HV_CACHE/logs"
	exec {HV_LOCK}>>"$HV_CACHE/lock"
}

# One set-up at a time; the lock goes when the last holder of the descriptor is gone.
lock_cache() {
	flock -n "$HV_LOCK" && return 0
	say "another run is setting up in $HV_CACHE; waiting for it"
	flock "$HV_LOCK"
}

unlock_cache() { flock -u "$HV_LOCK"; }

# usage: the comment at the head of the front.
usage() { sed -n '/^# Usage/,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# program_help PROGRAM: the head of the front, then the program's own help if it is built.
program_help() {
	local cache=${XDG_CACHE_HOME:-$HOME/.cache}/hyperv-rs
	usage
	local dir=$cache/checkouts/${HV_ROOT##*/}-$(short_hash <<<"$HV_ROOT")
	if [[ -x $dir/target/release/$1 ]]; then "$dir/target/release/$1" --help 2>/dev/null || true; fi
	exit 0
}

# run_program PROGRAM ARG…: sets up, then runs one of the programs of guest-tests in the tree.
# Takes --kernel for itself, as it decides what is set up.
run_program() {
	local program=$1 args=() all=("${@:2}") rc=0
	shift
	while (($#)); do
		case $1 in
		--kernel)
			(($# > 1)) || die "--kernel needs a version, for example 7.3"
			export HYPERV_RS_KERNEL=$2
			shift
			;;
		--kernel=*) export HYPERV_RS_KERNEL=${1#*=} ;;
		*) args+=("$1") ;;
		esac
		shift
	done
	enter_namespace ${all[@]+"${all[@]}"}
	open_cache
	checkout_dirs
	lock_cache
	setup --build || exit 1
	unlock_cache
	in_tree "$HV_BIN/$program" ${args[@]+"${args[@]}"} || rc=$?
	exit "$rc"
}
