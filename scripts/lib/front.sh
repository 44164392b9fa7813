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

# This checkout's directory in the cache.
CHECKOUT_NAME=$(short_hash <<<"$HV_ROOT")
CHECKOUT_NAME=${HV_ROOT##*/}-$CHECKOUT_NAME

# Everything else in the namespace ends with its first process, which is this one.
interrupted() {
	[[ -z ${SETTING_UP-} ]] || say "interrupted; the stages that are done are kept"
	exit "$1"
}

# Re-runs the front as root in a pid and mount namespace. When any process of the chain dies,
# all of it dies: no QEMU and no mount outlives an interrupted run.
enter_namespace() {
	[[ -z ${HYPERV_RS_INSIDE-} ]] || { trap 'interrupted 130' INT; trap 'interrupted 143' TERM; return 0; }
	[[ ! -e $HV_IN_KERNEL ]] || die "this runs on the machine, not in the tree of scripts/enter"
	[[ $(uname -m) == x86_64 ]] || die "this needs an x86-64 machine, not $(uname -m)"
	local cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}
	[[ $cache == /* ]] || die "XDG_CACHE_HOME is '$cache', which is no absolute path"
	mkdir -p "$cache/hyperv-rs" 2>/dev/null || die "cannot write to $cache (XDG_CACHE_HOME moves the cache)"
	# The caller's mirrors for crates, which root may not have.
	local config=${CARGO_HOME:-$HOME/.cargo}/config.toml
	if [[ -r $config ]]; then export HYPERV_RS_CARGO_CONFIG=$config; fi
	if ((EUID != 0)); then
		command -v sudo >/dev/null || die "root is needed (for chroot and mount), and there is no sudo"
		sudo -v || die "root is needed (for chroot and mount), and sudo refused"
		local name pass=()
		for name in ${!HYPERV_RS_@} ${!CARGO_HTTP_@} ${!CARGO_NET_@} ${!CARGO_REGISTR@} ${!CARGO_SOURCE_@} TERM NO_COLOR \
			http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY; do
			[[ -z ${!name-} ]] || pass+=("$name=${!name}")
		done
		# The cache stays the caller's.
		local rc=0
		sudo -- env ${pass[@]+"${pass[@]}"} XDG_CACHE_HOME="$cache" HYPERV_RS_PARENT=$$ \
			setpriv --pdeathsig KILL bash "$0" "$@" || rc=$?
		exit "$rc"
	fi
	unshare --mount --pid --fork true 2>/dev/null ||
		die "this machine lets not even root make mount and pid namespaces (a container without CAP_SYS_ADMIN?)"
	if [[ -n ${HYPERV_RS_PARENT-} ]]; then
		# sudo outlives the user's shell, and the user may not signal it: end with that shell.
		local watcher
		{
			tail --pid="$HYPERV_RS_PARENT" -s 0.5 -f /dev/null
			kill -TERM $$
		} </dev/null >/dev/null 2>&1 &
		watcher=$!
	fi
	rc=0
	setpriv --pdeathsig KILL -- \
		unshare --mount --pid --fork --kill-child=KILL --mount-proc --propagation private -- \
		env HYPERV_RS_INSIDE=1 XDG_CACHE_HOME="$cache" bash "$0" "$@" || rc=$?
	[[ -z ${watcher-} ]] || kill "$watcher" 2>/dev/null || true
	exit "$rc"
}

# The cache and its two locks: `lock` is held by the one run that makes stages, `use` is shared by all
# that use what is there, and taken alone to remove things. Locks go with the processes that hold them.
open_cache() {
	export HV_CACHE=$XDG_CACHE_HOME/hyperv-rs
	mkdir -p "$HV_CACHE/logs"
	exec {HV_LOCK}>>"$HV_CACHE/lock" {HV_USE_LOCK}>>"$HV_CACHE/use"
	flock -s "$HV_USE_LOCK"
}

lock_cache() {
	if ! flock -n "$HV_LOCK"; then
		say "another run is setting up in $HV_CACHE; waiting for it"
		flock "$HV_LOCK"
	fi
	if flock -n "$HV_USE_LOCK"; then
		prune
	fi
	flock -s "$HV_USE_LOCK"
	if [[ -d $HV_CACHE/.trash ]]; then
		# No job of this shell, which waits for its jobs.
		(nice find "$HV_CACHE/.trash" -mindepth 1 -maxdepth 1 -exec rm -rf --one-file-system {} + &) 2>/dev/null
	fi
}

unlock_cache() { flock -u "$HV_LOCK"; }

# One build at a time in a checkout; jobs of one run share the lock.
lock_checkout() {
	flock -n "$HV_BUILD_LOCK" && return 0
	say "another run is building this checkout; waiting for it"
	flock "$HV_BUILD_LOCK"
}

# Removes what an interrupted run left, stages but the two last used of a kind, what was not used for
# a month, and what belongs to checkouts that are gone.
prune() {
	local dir stage family
	discard "$HV_CACHE"/*/.tmp.*
	for stage in base tree kernel artifacts debug image debian postgres packager machine installed; do
		declare -A seen=()
		while IFS= read -r dir; do
			family=${dir##*/}
			family=${family%-*}
			[[ ! $stage =~ ^(base|tree|postgres|packager|machine|installed)$ ]] || family=$stage
			seen[$family]=$((${seen[$family]-0} + 1))
			if ((seen[$family] > 2)) || [[ -n $(find "$dir" -maxdepth 0 -mtime +30) ]]; then
				discard "$dir"
			fi
		done < <(find "$HV_CACHE/$stage" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %p\n' 2>/dev/null |
			sort -rn | cut -d' ' -f2-)
		unset seen
	done
	for dir in "$HV_CACHE"/checkouts/*/; do
		if [[ -s $dir/path && ! -d $(cat "$dir/path") ]]; then
			discard "${dir%/}"
		fi
	done
}

# What the cache holds, for scripts/setup --status.
status() {
	local stage dir
	printf 'cache: %s\n' "$HV_CACHE"
	for stage in base kernel tree artifacts debug image debian postgres packager machine installed checkouts; do
		for dir in "$HV_CACHE/$stage"/*/; do
			[[ -d $dir ]] || continue
			printf '%-10s %-45s %8s  used %s\n' "$stage" "$(basename "$dir")" \
				"$(du -sh "$dir" | cut -f1)" "$(date -r "$dir" '+%F %H:%M')"
		done
	done
	for dir in "$HV_CACHE"/kernels/*; do
		[[ -s $dir && $dir != */packages ]] || continue
		printf '%-10s %-45s %s\n' choice "--kernel ${dir##*/}" "$(sed -n 's/^KREL=//p' "$dir")"
	done
}

# Removes the cache, for scripts/setup --clean.
clean() {
	flock -n "$HV_USE_LOCK" || die "the cache is in use by another run"
	say "removing $HV_CACHE …"
	find "$HV_CACHE" -mindepth 1 -maxdepth 1 ! -name lock ! -name use -exec rm -rf --one-file-system {} +
	rm -f "$HV_CACHE/lock" "$HV_CACHE/use"
	rmdir "$HV_CACHE"
}

# usage: the comment at the head of the front.
usage() { sed -n '/^# Usage/,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# program_help PROGRAM: the head of the front, then the program's own help if it is built.
program_help() {
	local dir=${XDG_CACHE_HOME:-$HOME/.cache}/hyperv-rs/checkouts/$CHECKOUT_NAME
	usage
	if [[ -s $dir/help/$1 ]]; then
		echo
		cat "$dir/help/$1"
	fi
	exit 0
}

# take_kernel ARG…: the option --kernel is set-up's own, the rest is left in ARGS.
take_kernel() {
	ARGS=()
	while (($#)); do
		case $1 in
		--kernel)
			(($# > 1)) || die "--kernel needs a version, for example 7.3"
			export HYPERV_RS_KERNEL=$2
			shift
			;;
		--kernel=*) export HYPERV_RS_KERNEL=${1#*=} ;;
		*) ARGS+=("$1") ;;
		esac
		shift
	done
}

# wants_debian PROGRAM: whether it, called with ARGS, needs the Debian disk image.
wants_debian() {
	local arg previous='' suites=0
	case $1 in
	hv-demo)
		[[ " ${ARGS[*]-} " == *" --disk "* || " ${ARGS[*]-} " == *" --network "* ]]
		return
		;;
	hv-vm)
		for arg in ${ARGS[@]+"${ARGS[@]}"}; do
			[[ ! ( $previous == --disk && $arg =~ ^debian(,|$) || $arg =~ ^--disk=debian(,|$) ) ]] || return 0
			previous=$arg
		done
		return 1
		;;
	hv-test)
		# Needed by all suites but the native one.
		for arg in ${ARGS[@]+"${ARGS[@]}"}; do
			grep -q "^$arg " "$HV_SCRIPTS/suites" || continue
			[[ $arg == unit ]] || return 0
			suites=1
		done
		((suites == 0))
		;;
	*) return 1 ;;
	esac
}

# wants_postgres PROGRAM: whether tests will be run that want the database server: those of --full, of the suite exchange.
wants_postgres() {
	local arg full=0 suites=0 exchange=0
	[[ $1 == hv-test ]] || return 1
	for arg in ${ARGS[@]+"${ARGS[@]}"}; do
		[[ $arg != --full ]] || full=1
		[[ $arg != exchange ]] || exchange=1
		! grep -q "^$arg " "$HV_SCRIPTS/suites" || suites=1
	done
	((full && (exchange || !suites)))
}

# wants_installed PROGRAM: whether tests will be run that want a machine with our packages: those of --full, of the suite package.
wants_installed() {
	local arg full=0 suites=0 package=0
	[[ $1 == hv-test && ${HYPERV_RS_KERNEL-} != debug* ]] || return 1
	for arg in ${ARGS[@]+"${ARGS[@]}"}; do
		[[ $arg != --full ]] || full=1
		[[ $arg != package ]] || package=1
		! grep -q "^$arg " "$HV_SCRIPTS/suites" || suites=1
	done
	((full && (package || !suites)))
}

# run_program PROGRAM ARG…: sets up, builds, and runs one of the programs of guest-tests in the tree.
run_program() {
	local program=$1 rc=0
	shift
	take_kernel "$@"
	if wants_debian "$program"; then
		export HV_WANT_DEBIAN=1
	fi
	if wants_postgres "$program"; then
		export HV_WANT_POSTGRES=1
	fi
	if wants_installed "$program"; then
		export HV_WANT_INSTALLED=1
	fi
	enter_namespace "$@"
	open_cache
	checkout_dirs
	# The first of two parts: what an earlier run has left is not added to the second.
	[[ " ${ARGS[*]-} " != *" --part 1 "* ]] || rm -f "$HV_LOGS/totals.json"
	ticker_start
	setup --build || { ticker_stop; exit 1; }
	ticker_stop
	in_tree --here "$HV_BIN/$program" ${ARGS[@]+"${ARGS[@]}"} || rc=$?
	exit "$rc"
}
