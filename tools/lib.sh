# Shared by the scripts in this folder: paths, messages, the clock, scratch directories.
# Sourced with `set -euo pipefail` already on; runs nothing by itself.
# shellcheck shell=bash disable=SC2034

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TOOLS=$ROOT/tools
PG=${PG:-18}
BUILD=$ROOT/build
# The server that is built for, and tested: a directory that can be copied anywhere as a whole, and
# in it the one that has bin and lib. That of the patched server; with PPB_STOCK, of Debian's own
# (tools/stock.sh). PPB_SERVER is another build of the same source (tools/server.sh): debug, with assertions and
# what valgrind is told of memory; unpatched, to compare with.
case ${PPB_SERVER:-} in
'' | debug | unpatched) ;;
*)
	printf 'error: PPB_SERVER=%s: there are debug and unpatched\n' "$PPB_SERVER" >&2
	exit 1
	;;
esac
TREE=$BUILD/pg$PG${PPB_SERVER:+-$PPB_SERVER}
INSTALL=$TREE
if [ -n "${PPB_STOCK:-}" ]; then
	TREE=$BUILD/stock$PG
	INSTALL=$TREE/usr/lib/postgresql/$PG
fi
LOGS=$BUILD/log

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
	printf 'error: %s\n' "$1" >&2
	shift
	for line in "$@"; do printf '       %s\n' "$line" >&2; done
	exit 1
}

# The version file is the list of what is supported: no other list to keep in step.
if [ ! -f "$TOOLS/versions/$PG" ]; then
	die "PG=$PG is not supported" "supported: $(cd "$TOOLS/versions" && echo *)"
fi
# shellcheck source=versions/18
. "$TOOLS/versions/$PG"

# Nothing of the caller's own clusters may leak in: PGPORT, PGDATA, PGSERVICE and their like
# would lead our programs to them. PG, PG_SOURCE and PG_CONFIG are ours and carry no such risk.
for name in $(compgen -e PG); do
	case $name in PG | PG_*) ;; *) unset "$name" ;; esac
done
unset name
# PostgreSQL's makefiles must not take our Makefile's settings for theirs.
unset MAKEFLAGS MFLAGS MAKELEVEL
export PG LC_ALL=C
# What root builds, another user runs.
umask 022

# Rust by rustup is often in place but not in the PATH of a root shell or of cron.
if ! command -v cargo >/dev/null && [ -x "${HOME:-/nonexistent}/.cargo/bin/cargo" ]; then
	PATH=$HOME/.cargo/bin:$PATH
fi

# Milliseconds of the clock, and a time between two of them for people to read.
now() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
duration() {
	local ms=$1
	if [ "$ms" -lt 10000 ]; then
		printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
	elif [ "$ms" -lt 60000 ]; then
		printf '%d s' $((ms / 1000))
	else
		printf '%d min %d s' $((ms / 60000)) $((ms % 60000 / 1000))
	fi
}

# step "What happens" command...: says it, runs it with its output in a log, says how long it
# took. The log's end is shown when the command fails.
step() {
	local what=$1 start log
	start=$(now)
	shift
	mkdir -p "$LOGS"
	log=$LOGS/$(printf '%s' "${what%% (*}" | tr -cs '[:alnum:].' '-').log
	say "$what"
	if ! "$@" >"$log" 2>&1 </dev/null; then
		tail -n 30 "$log" >&2
		die "this step failed: $what" "the whole log: $log"
	fi
	note "done in $(duration $(($(now) - start)))"
}

# Where finished builds are kept between checkouts: the caller's cache directory, or this
# checkout's build directory where there is no such place. A home that belongs to somebody
# else (sudo keeps HOME on some systems) must not get files of ours.
cache_dir() {
	local dir=${PPB_CACHE:-}
	if [ -z "$dir" ] && [ -n "${HOME:-}" ] && [ -O "$HOME" ]; then
		dir=${XDG_CACHE_HOME:-$HOME/.cache}/pg_parallel_backup
	fi
	if [ -z "$dir" ] || ! mkdir -p "$dir" 2>/dev/null || [ ! -w "$dir" ]; then
		dir=$BUILD/cache
		mkdir -p "$dir"
	fi
	(cd "$dir" && pwd -P)
}

# lock FILE WHAT: held until this script ends. Not inherited by a server that is started later:
# those are always started with descriptor 9 closed.
lock() {
	exec 9>"$1"
	if ! flock --nonblock 9; then
		note "waiting for another $2 to finish ($1)"
		flock 9
	fi
}

require_free() {
	local dir=$1 megabytes=$2 free
	free=$(df -Pm "$dir" | awk 'NR == 2 { print $4 }')
	if [ "$free" -lt "$megabytes" ]; then
		die "not enough disk space in $dir" "needed: $megabytes MB, free: $free MB"
	fi
}

# --- scratch directories and what runs in them -------------------------------------------

SCRATCH=
JOB=

# A directory of our own for servers and tests, owned by the user who runs them; their temporary
# files go there too. In /tmp for root, whose TMPDIR the other user might not be allowed into, and
# where TMPDIR is long: the name of a socket has room for 107 bytes.
make_scratch() {
	local base=${TMPDIR:-/tmp} user
	if [ "$(id -u)" -eq 0 ] || [ ${#base} -gt 40 ]; then base=/tmp; fi
	SCRATCH=$(mktemp -d "$base/ppb.XXXXXX")
	trap scratch_exit EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	mkdir "$SCRATCH/home"
	user=$("$TOOLS/as-user.sh" --name)
	if [ "$(id -u)" -eq 0 ]; then chown -R "$user:" "$SCRATCH"; fi
	export PPB_HOME=$SCRATCH/home TMPDIR=$SCRATCH/home
}

as_user() { "$TOOLS/as-user.sh" "$@" 9>&-; }

# Runs a command in a process group of its own, so that all of it can be ended with us.
run_job() {
	local status=0
	set -m
	"$@" </dev/null 9>&- &
	JOB=$!
	set +m
	wait "$JOB" || status=$?
	JOB=
	return "$status"
}

# Stops every server whose data directory is somewhere below a directory of ours.
stop_servers_below() {
	local pidfile
	find "$1" -name postmaster.pid -type f 2>/dev/null | while IFS= read -r pidfile; do
		as_user "$RUN_INSTALL/bin/pg_ctl" -D "${pidfile%/postmaster.pid}" -m immediate -s stop \
			</dev/null >/dev/null 2>&1 || true
	done
}

scratch_exit() {
	local status=$?
	trap - EXIT
	trap '' INT TERM HUP
	if [ -n "$JOB" ]; then
		kill -TERM -- "-$JOB" 2>/dev/null || true
		wait "$JOB" 2>/dev/null || true
	fi
	if declare -F before_scratch_goes >/dev/null; then before_scratch_goes "$status" || true; fi
	if [ -n "$SCRATCH" ]; then
		stop_servers_below "$SCRATCH"
		rm -rf "$SCRATCH"
	fi
	exit "$status"
}

# Where the ordinary user reads the programs and tests from: the checkout, or a copy in the
# scratch directory if the checkout is somewhere that only root may enter. Sets RUN_ROOT and
# RUN_INSTALL.
RUN_ROOT=$ROOT
RUN_INSTALL=$INSTALL
make_readable() {
	if as_user test -r "$INSTALL/bin/postgres" -a -r "$ROOT/Makefile" 2>/dev/null; then return; fi
	RUN_ROOT=$SCRATCH/checkout
	RUN_INSTALL=$RUN_ROOT${INSTALL#"$ROOT"}
	note "$("$TOOLS/as-user.sh" --name) cannot read $ROOT: running from a copy in $RUN_ROOT"
	mkdir -p "$RUN_ROOT/build"
	cp -a --reflink=auto "$TREE" "$RUN_ROOT/build/"
	(cd "$ROOT" && tar -cf - --exclude=./build --exclude=./target --exclude=./.git .) |
		tar -xf - --no-same-owner -C "$RUN_ROOT"
	chmod -R a+rX "$RUN_ROOT"
}
