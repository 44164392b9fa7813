# SPDX-License-Identifier: GPL-2.0-only OR MIT
# shellcheck shell=bash
# What every script here shares: messages, the cache, stages. Sourced, never run.

# Outcome of a set-up step that the user can do something about: one line, exit 2.
die() {
	printf '%s: %s\n' "${HV_FRONT:-scripts}" "$*" >&2
	exit 2
}

say() { printf '%s\n' "$*" >&2; }

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
	printf '%-10s %s …\n' "$name" "$what" >&2
	mkdir -p "${log%/*}"
	"$@" >"$log" 2>&1 </dev/null || rc=$?
	if ((rc == 0)); then
		printf '%-10s done in %s\n' "$name" "$(since "$t")" >&2
		return 0
	fi
	# A stage that knows the cause says it on a line of its own.
	local cause
	cause=$(sed -n 's/^CAUSE: //p' "$log" | tail -n 1)
	{
		printf '\n%-10s FAILED after %s%s\n' "$name" "$(since "$t")" "${cause:+: $cause}"
		tail -n 12 "$log" | grep -v '^CAUSE: ' | sed 's/^/    | /'
		printf '    log: %s\n' "$log"
	} >&2
	return "$rc"
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
		rm -rf --one-file-system "$STAGE_DIR"
	fi
	need_space
	tmp=$HV_CACHE/$name/.tmp.$key
	rm -rf --one-file-system "$tmp"
	mkdir -p "$tmp"
	run_logged "$name" "$what" "$HV_CACHE/logs/$name.log" \
		env OUT="$tmp" "$@" bash "$script" || rc=$?
	if ((rc != 0)); then
		rm -rf --one-file-system "$tmp"
		return "$rc"
	fi
	mv -T "$tmp" "$STAGE_DIR"
}

# Set-up needs about 7 GiB at its peak. Asked only when something has to be made.
need_space() {
	local avail
	avail=$(df --output=avail -k "$HV_CACHE" | tail -n 1)
	((avail >= 8 * 1024 * 1024)) ||
		die "no disk space: $HV_CACHE has $((avail / 1024)) MiB free, set-up needs 8192 MiB (XDG_CACHE_HOME moves it)"
}

# inside ROOT [--rw] [--bind SRC[:DST]]… [--cd DIR] CMD…: CMD in the tree ROOT, see lib/inside.
inside() { unshare --mount --propagation private -- bash "$HV_SCRIPTS/lib/inside" "$@"; }
