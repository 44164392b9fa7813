# SPDX-License-Identifier: GPL-2.0-only OR MIT
# shellcheck shell=bash
# What every script here shares: messages, the cache, stages. Sourced, never run.

# Outcome of a set-up step that the user can do something about: one line, exit 2.
die() {
	printf '%s: %s\n' "${HV_FRONT:-scripts}" "$*" >&2
	exit 2
}

say() { line '%s' "$*"; }

# Seconds since the epoch with a tenth, without a process.
now() { local t=$EPOCHREALTIME; printf '%s' "${t%?????}"; }

# since START: "12.3 s"
since() {
	local -i d=$(( 10#${EPOCHREALTIME/[.,]/} - 10#${1/[.,]/}00000 ))
	printf '%d.%d s' $((d / 1000000)) $((d / 100000 % 10))
}

# hash of standard input, short enough to read in a path
short_hash() { sha256sum | cut -c1-12; }

# The text of a script without comments and blank lines: what a stage's key is made from, so
# that rewording a comment rebuilds nothing.
script_text() { sed -e '/^[[:space:]]*#/d' -e '/^[[:space:]]*$/d' "$@"; }

# run_logged NAME WHAT LOG CMD…: one line before, one after, the output in LOG. On failure the
# stage, its log and the log's last lines are shown and the status of CMD is returned.
run_logged() {
	local name=$1 what=$2 log=$3 t rc=0
	shift 3
	t=$(now)
	mkdir -p "${log%/*}"
	: >"$log"
	line '%-10s %s …' "$name" "$what"
	running_begin "$name" "$log"
	"$@" >"$log" 2>&1 </dev/null || rc=$?
	running_end "$name"
	if ((rc == 0)); then
		line '%-10s done in %s' "$name" "$(since "$t")"
		return 0
	fi
	# A stage that knows the cause says it on a line of its own.
	local cause
	cause=$(sed -n 's/^CAUSE: //p' "$log" | tail -n 1)
	[[ -n $cause ]] || ! grep -q 'No space left on device' "$log" || cause="no disk space"
	line '\n%-10s FAILED after %s%s' "$name" "$(since "$t")" "${cause:+: $cause}"
	tail -n 15 "$log" | grep -v '^CAUSE: ' | sed 's/^/    | /' >&2 || true
	line '    log: %s' "$log"
	return "$rc"
}

# A line of progress; on a terminal it first wipes the ticker's.
line() {
	local format=$1
	shift
	# shellcheck disable=SC2059 # the caller's format
	printf "${HV_TICKER:+\r\e[K}$format\n" "$@" >&2
}

# On a terminal, a last line tells what is running, for how long, and the end of its log.
running_begin() {
	[[ -n ${HV_TICKER-} ]] || return 0
	ln -sfn "$2" "$HV_TICKER/$1"
}
running_end() {
	[[ -n ${HV_TICKER-} ]] || return 0
	rm -f "$HV_TICKER/$1"
}
ticker_start() {
	[[ -t 2 ]] || return 0
	HV_TICKER=$HV_CACHE/logs/.running
	rm -rf "$HV_TICKER"
	mkdir -p "$HV_TICKER"
	(
		trap - INT TERM
		while sleep 1; do
			text=
			for link in "$HV_TICKER"/*; do
				[[ -L $link ]] || continue
				last=$(tail -c 400 "$link" 2>/dev/null | tr -c '[:print:]\n' ' ' | grep . | tail -n 1) || last=
				text+="${text:+ | }${link##*/} $((EPOCHSECONDS - $(stat -c %Y "$link"))) s: ${last:0:50}"
			done
			[[ -z $text ]] || printf '\r\e[K%s' "${text:0:$(($(tput cols 2>/dev/null || echo 80) - 1))}" >&2
		done
	) &
	HV_TICKER_PID=$!
}
ticker_stop() {
	[[ -n ${HV_TICKER-} ]] || return 0
	kill "$HV_TICKER_PID" 2>/dev/null || true
	wait "$HV_TICKER_PID" 2>/dev/null || true
	rm -rf "$HV_TICKER"
	printf '\r\e[K' >&2
	HV_TICKER=
}

# discard DIR…: out of the way at once, deleted in the background: a tree has 100,000 files, and some
# disks take minutes for that. What a run does not get done, the next one does (open_cache).
discard() {
	local dir
	mkdir -p "$HV_CACHE/.trash"
	for dir; do
		[[ ! -e $dir ]] || mv -T "$dir" "$HV_CACHE/.trash/${dir##*/}.$$.$RANDOM"
	done
}

# stage NAME KEY WHAT CHECK SCRIPT [VAR=VALUE…]
# Makes $HV_CACHE/NAME/KEY by running SCRIPT with OUT set to a temporary directory, which takes
# its final name only when SCRIPT has succeeded; so a directory of that name is always whole.
# CHECK is a path below it that must exist, or the stage is made anew. Sets STAGE_DIR.
stage() {
	local name=$1 key=$2 what=$3 check=$4 script=$5 tmp rc=0
	shift 5
	STAGE_DIR=$HV_CACHE/$name/$key
	if [[ -e $STAGE_DIR/$check || -L $STAGE_DIR/$check ]]; then
		touch -c "$STAGE_DIR"
		return 0
	fi
	if [[ -e $STAGE_DIR ]]; then
		say "$name: $STAGE_DIR lacks $check, making it again"
		discard "$STAGE_DIR"
	fi
	need_space
	tmp=$HV_CACHE/$name/.tmp.$key
	discard "$tmp"
	mkdir -p "$tmp"
	run_logged "$name" "$what" "$HV_CACHE/logs/$name.log" \
		env OUT="$tmp" "$@" bash "$script" || rc=$?
	if ((rc != 0)); then
		discard "$tmp"
		return "$rc"
	fi
	mv -T "$tmp" "$STAGE_DIR"
}

# Set-up needs about 7 GiB at its peak. Asked only when something has to be made.
need_space() {
	local avail
	avail=$(df --output=avail -k "$HV_CACHE" | tail -n 1)
	if ((avail < 8 * 1024 * 1024)) && [[ -d $HV_CACHE/.trash ]]; then
		say "little disk space: removing old stages first"
		rm -rf --one-file-system "$HV_CACHE"/.trash/*
		avail=$(df --output=avail -k "$HV_CACHE" | tail -n 1)
	fi
	((avail >= 8 * 1024 * 1024)) ||
		die "no disk space: $HV_CACHE has $((avail / 1024)) MiB free, set-up needs 8192 MiB (XDG_CACHE_HOME moves it)"
}

# inside ROOT [--rw] [--bind SRC[:DST]]… [--cd DIR] CMD…: CMD in the tree ROOT, see lib/inside.
inside() { unshare --mount --propagation private -- bash "$HV_SCRIPTS/lib/inside" "$@"; }
