#!/usr/bin/env bash
# Measures pg_parallel_basebackup against pg_basebackup, cp, and pgBackRest where that is installed (bench/run.py), as an ordinary user.
# Results: build/bench/results.{txt,json,svg}. The data sets are kept in build/bench/data, 5.4 GB by
# default, and used again by the next run.
#
#   bench.sh [--quick] [run.py's options]
#   bench.sh --scale [scale.py's options]     how time and memory grow (bench/scale.py): build/bench/scale.txt
#
#   PPB_BENCH_SIZE      MB of the pgbench cluster (default 4500; quick: 600)
#   PPB_BENCH_FILES     files of one page in the other cluster (default 100000; quick: 50000)
#   PPB_BENCH_EMPTY     files of nothing in a third (default 500000; quick: 50000)
#   PPB_BENCH_ROUNDS    beside the one that warms up (default 5; quick: 3)
#   PPB_BENCH_DIR       where the data sets are kept, and the target on disk
#   PPB_BENCH_INSTALL   server, extension and client; default build/pg$PG, which is built first
#   PPB_BENCH_TMPFS     a file system in memory (default /dev/shm)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

size=4500 files=100000 empty=500000 rounds=5
script=run.py
if [ "${1:-}" = --quick ]; then size=600 files=50000 empty=50000 rounds=3; fi
if [ "${1:-}" = --scale ]; then
	script=scale.py rounds=3
	shift
fi
size=${PPB_BENCH_SIZE:-$size}
files=${PPB_BENCH_FILES:-$files}
empty=${PPB_BENCH_EMPTY:-$empty}
rounds=${PPB_BENCH_ROUNDS:-$rounds}
memory=${PPB_BENCH_TMPFS:-/dev/shm}

for number in "$size" "$files" "$empty" "$rounds"; do
	if ! [[ $number =~ ^[1-9][0-9]{0,8}$ ]]; then die "$number is not a number of MB, files or rounds"; fi
done
if [ "$(stat -f -c %T "$memory" 2>/dev/null)" != tmpfs ]; then
	die "$memory is not a file system in memory" 'name a tmpfs with PPB_BENCH_TMPFS=path'
fi
if [ -n "${PPB_BENCH_INSTALL:-}" ]; then
	INSTALL=$(cd "$PPB_BENCH_INSTALL" && pwd -P)
	RUN_INSTALL=$INSTALL
else
	"$TOOLS/build.sh"
fi
if [ ! -x "$INSTALL/bin/pg_parallel_basebackup" ]; then die "there is no pg_parallel_basebackup in $INSTALL/bin"; fi

make_scratch
user=$("$TOOLS/as-user.sh" --name)
make_readable

# root's own python3 is often one that nobody else may run.
python=
for program in python3 /usr/bin/python3 /usr/local/bin/python3; do
	if as_user "$program" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
		python=$program
		break
	fi
done
if [ -z "$python" ]; then die "$user has no python3, 3.9 or newer" 'on Debian: apt-get install python3'; fi

data=${PPB_BENCH_DIR:-$BUILD/bench/data}
results=$BUILD/bench
mkdir -p "$results"
if [ -z "${PPB_BENCH_DIR:-}" ] && ! as_user test -r "$BUILD"; then
	data=/var/tmp/pg_parallel_backup-bench
	note "$user may not read $ROOT: the data sets go to $data"
fi
# Only directories that are the user's, or can be made so without taking anybody else's.
if [ ! -e "$data" ]; then
	mkdir -p "$data"
	if [ "$(id -u)" -eq 0 ]; then chown "$user:" "$data"; fi
	chmod 700 "$data"
fi
data=$(cd "$data" && pwd -P)
if ! as_user test -O "$data"; then die "$data is not $user's" 'name another directory with PPB_BENCH_DIR=path'; fi
as_user touch "$data/.lock" 2>/dev/null || true # else root would own it
exec 8>"$data/.lock"
if ! flock --nonblock 8; then die "another bench is running in $data"; fi

target=$(mktemp -d "$memory/ppb-bench.XXXXXX")
before_scratch_goes() {
	# Both do nothing, but when run.py was killed and could not do it.
	stop_servers_below "$data"
	rm -rf "$target" "$data/target"
}
mkdir "$SCRATCH/output" "$SCRATCH/s"
if [ "$(id -u)" -eq 0 ]; then chown "$user:" "$target" "$SCRATCH/output" "$SCRATCH/s"; fi
chmod 700 "$SCRATCH/s" # the server wants its key and sockets to itself
commit=$(git -C "$ROOT" describe --always --dirty 2>/dev/null || echo unknown)
# What an install given by name was built from, nobody knows.
if [ -n "${PPB_BENCH_INSTALL:-}" ]; then commit="an unknown commit, bench of $commit"; fi

cd "$SCRATCH"
status=0
run_job "$TOOLS/as-user.sh" "$python" -B "$RUN_ROOT/bench/$script" --install "$RUN_INSTALL" \
	--user "$user" --data "$data" --tmpfs "$target" --scratch "$SCRATCH/s" --output "$SCRATCH/output" \
	--size "$size" --files "$files" --empty "$empty" --rounds "$rounds" --commit "$commit" "$@" 8>&- || status=$?
for file in "$SCRATCH"/output/*; do
	if [ -f "$file" ]; then install -m 644 "$file" "$results/"; fi
done
if [ "$status" -ne 0 ]; then exit "$status"; fi
note "results: ${results#"$ROOT"/}/results.txt, .json and .svg"
