#!/usr/bin/env bash
# PostgreSQL's own tests of what the patch and the preloaded library could touch, once on the unpatched server and once
# on the patched one that preloads the library. The results have to be the same, file by file.
#
#   check-server.sh                 both, and the comparison; SUITES='regress recovery' are some of the suites,
#                                   TESTS='t/001*.pl' some of the TAP files of each
#   check-server.sh --side RESULTS  one server's part, which is written to that file
#
# What a suite's makefile gives to its tests they are given here: the servers are installed without their source.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/counts.sh"
. "$TOOLS/tap.sh"

suites=${SUITES:-regress recovery pg_basebackup pg_verifybackup pg_combinebackup subscription}

# directory SUITE: where it is in the source.
directory() {
	case $1 in
	regress | recovery | subscription) echo "src/test/$1" ;;
	pg_basebackup | pg_verifybackup | pg_combinebackup) echo "src/bin/$1" ;;
	*) die "SUITES: there is no $1" 'there are regress, recovery, subscription, pg_basebackup, pg_verifybackup, pg_combinebackup' ;;
	esac
}

# --- one server: lines of results "FILE passed failed skipped", and "FILE not ok NAME"

# What the tests of the source have as a library of their own.
regress_library() {
	cat >"$SCRATCH/regress.mk" <<-'MAKE'
		MODULES = regress
		PGXS := $(shell $(PG_CONFIG) --pgxs)
		include $(PGXS)
	MAKE
	make -s -C "$source/src/test/regress" -f "$SCRATCH/regress.mk" PG_CONFIG="$RUN_INSTALL/bin/pg_config" \
		with_llvm=no >"$SCRATCH/regress.log" 2>&1 || {
		cat "$SCRATCH/regress.log" >&2
		die 'the library of the regression tests does not compile'
	}
	export REGRESS_SHLIB=$source/src/test/regress/regress.so
}

run_regress() {
	local output=$SCRATCH/home/regress
	run_job "$TOOLS/as-user.sh" mkdir "$output"
	run_job "$TOOLS/as-user.sh" "$PG_REGRESS" --bindir="$RUN_INSTALL/bin" \
		--dlpath="$source/src/test/regress" --inputdir="$source/src/test/regress" \
		--expecteddir="$source/src/test/regress" --outputdir="$output" --temp-instance="$output/instance" \
		--temp-config="$TEMP_CONFIG" --max-concurrent-tests=20 \
		--schedule="$source/src/test/regress/parallel_schedule" >"$output.out" 2>&1 || true
	# "ok 1         - boolean        12 ms", and with a plus in place of the minus in a parallel group.
	awk '/^(not )?ok / {
			bad = $1 == "not"; name = $(bad ? 5 : 4)
			print "regress/" name, bad ? "0 1 0" : "1 0 0"
			if (bad) print "regress/" name " not ok " name
		}' "$output.out" >>"$results"
	if ! grep -q '^regress/' "$results"; then
		tail -n 20 "$output.out" >&2
		echo 'regress/nothing 0 1 0' >>"$results"
	fi
	if [ -f "$output/regression.diffs" ]; then cp "$output/regression.diffs" "$SCRATCH/log/"; fi
}

run_suite() {
	local suite=$1 file where
	where=$source/$(directory "$suite")
	cd "$where"
	local files=()
	shopt -s nullglob
	for file in ${TESTS:-t/*.pl}; do
		if [ -f "$file" ]; then files+=("$file"); fi
	done
	shopt -u nullglob
	if [ ${#files[@]} -eq 0 ]; then return; fi
	# Two suites have files of one name.
	export TESTDATADIR=$SCRATCH/data/$suite TESTLOGDIR=$SCRATCH/log/$suite
	run_job "$TOOLS/as-user.sh" mkdir "$TESTDATADIR" "$TESTLOGDIR"
	PPB_RESULTS=$SCRATCH/log/$suite.results run_job "$TOOLS/as-user.sh" perl "$RUN_ROOT/tools/run-tap.pl" \
		"${PPB_JOBS:-2}" "$SCRATCH/log/counts" "${files[@]}" || true
	sed "s|^t/|$suite/|" "$SCRATCH/log/$suite.results" >>"$results"
}

if [ "${1:-}" = --side ]; then
	results=$2
	tap_environment "server${PPB_SERVER:+-$PPB_SERVER}"
	source=$SCRATCH/source
	mkdir "$source"
	tar -xf "$("$TOOLS/source.sh")" -C "$source" --strip-components=1 --no-same-owner --wildcards \
		'*/src/test/regress' '*/src/test/recovery' '*/src/test/subscription' '*/src/bin/pg_*backup*/t'
	export TEMP_CONFIG=$SCRATCH/postgresql.conf
	# What a busy machine needs longer for has not failed.
	export PG_TEST_TIMEOUT_DEFAULT=600
	: >"$TEMP_CONFIG"
	if [ -z "${PPB_SERVER:-}" ]; then
		echo "shared_preload_libraries = 'pg_parallel_backup'" >"$TEMP_CONFIG"
		# The one file that preloads something itself.
		sed -i "s/shared_preload_libraries = 'pg_stat_statements/&, pg_parallel_backup/" \
			"$source/src/test/recovery/t/027_stream_regress.pl"
	fi
	chmod -R a+rX "$source" "$TEMP_CONFIG"
	if [ "$(id -u)" -eq 0 ]; then chown -R "$("$TOOLS/as-user.sh" --name):" "$source"; fi
	export with_icu=yes enable_injection_points=no top_builddir=$source
	export TAR=tar GZIP_PROGRAM=gzip LZ4=lz4 ZSTD=zstd
	: >"$results"
	case " $suites " in *' regress '* | *' recovery '*) regress_library ;; esac
	for suite in $suites; do
		say "${suite} on the ${PPB_SERVER:-patched} server"
		if [ "$suite" = regress ]; then run_regress; else run_suite "$suite"; fi
	done
	exit
fi

# --- both

say "PostgreSQL's own tests of its server, without the patch and with it"
if [ -n "${PPB_STOCK:-}${PPB_SERVER:-}" ]; then die 'these tests build both of their servers themselves'; fi
for suite in $suites; do directory "$suite" >/dev/null; done
PPB_SERVER=unpatched "$TOOLS/server.sh"

out=$LOGS/server-results
rm -rf "$out"
mkdir -p "$out"
PPB_SERVER=unpatched run_job "$BASH" "$0" --side "$out/unpatched"
run_job "$BASH" "$0" --side "$out/patched"

# tally FILE SUITE: "passed failed skipped" of all files of the suite, and how many those are.
tally() {
	awk -v suite="$2/" 'index($1, suite) == 1 && NF == 4 && $2 ~ /^[0-9]+$/ {
			passed += $2; failed += $3; skipped += $4; files++
		}
		END { printf "%d passed, %d failed, %d skipped in %d", passed, failed, skipped, files }' "$1"
}
say 'Tally: the unpatched server, and the patched one with the library'
for suite in $suites; do
	for server in unpatched patched; do
		printf '    %-17s %-10s %s\n' "$suite" "$server" "$(tally "$out/$server" "$suite")"
	done
done
read -r passed < <(awk 'NF == 4 && $2 ~ /^[0-9]+$/ { passed += $2 } END { print passed + 0 }' "$out/patched")
sort "$out/unpatched" >"$out/unpatched.sorted"
sort "$out/patched" >"$out/patched.sorted"
differences=0
if ! diff -U 0 --label unpatched "$out/unpatched.sorted" --label patched "$out/patched.sorted" >"$out/differences"; then
	differences=$(cut -c 2- "$out/differences" | awk '$2 ~ /^[0-9]+$/ && NF == 4 { print $1 }' | sort -u | wc -l)
	if [ "$differences" -eq 0 ]; then differences=1; fi
	cat "$out/differences"
fi
note "files whose results differ: $differences"
counts server "$passed" "$differences"
