# How TAP files on PostgreSQL::Test::Cluster are run. Sourced after lib.sh and counts.sh.
# shellcheck shell=bash

# shellcheck source=objects.sh
. "$TOOLS/objects.sh"

# tap_environment SUITE: a scratch directory for the servers, whose logs go to build/log/SUITE. TAP files find,
# besides what PostgreSQL's own build sets for such tests:
#   STOCK_INCLUDE   the server headers of the same release without the patch
#   PPB_ROOT        the checkout
#   PPB_S3          the URL of an object store, if a file is run whose name has "object" in it
#   PPB_AZURE       that of one as Azure has it, if a file is run whose name has "azure" in it
#   PPB_STOCK       set where the server is a stock one, of build/stock$PG
# and the programs of the server first in PATH.
tap_environment() {
	tap_logs=$LOGS/$1
	make_scratch
	make_readable
	require_free "$SCRATCH" 2000
	mkdir -p "$LOGS"
	rm -rf "$tap_logs"
	pgxs=$(dirname "$("$RUN_INSTALL/bin/pg_config" --pgxs)")/..
	export PATH=$RUN_INSTALL/bin:$PATH
	# For pg_regress, which is linked with libpq and lies where its run path does not reach.
	export LD_LIBRARY_PATH=$RUN_INSTALL/lib
	export PERL5LIB=$pgxs/test/perl:$RUN_ROOT/tests/lib
	export PG_REGRESS=$pgxs/test/regress/pg_regress
	export TESTDATADIR=$SCRATCH/data TESTLOGDIR=$SCRATCH/log PG_TEST_PORT_DIR=$SCRATCH/ports
	# Before 16 one directory for both, with names below it that are given.
	export TESTDIR=$SCRATCH
	export STOCK_INCLUDE=$RUN_INSTALL/stock-include PPB_ROOT=$RUN_ROOT
	mkdir "$SCRATCH"/{data,log,ports,tmp_check}
	ln -s ../log "$SCRATCH/tmp_check/log"
	if [ "$(id -u)" -eq 0 ]; then
		chown "$("$TOOLS/as-user.sh" --name):" "$SCRATCH"/{data,log,ports,tmp_check}
	fi

	# Each test's servers start as a copy of this one: half a second saved for each.
	export INITDB_TEMPLATE=$SCRATCH/template
	as_user initdb -D "$INITDB_TEMPLATE" -A trust --no-locale --encoding=UTF8 --no-instructions --no-sync \
		>"$SCRATCH/initdb.log" 2>&1 || { cat "$SCRATCH/initdb.log" >&2; die 'initdb failed'; }
}

before_scratch_goes() {
	end_object_server
	if [ -d "$SCRATCH/log" ]; then cp -r "$SCRATCH/log" "$tap_logs"; fi
	if [ "$1" -ne 0 ]; then note "logs: $tap_logs"; fi
}

# run_tap SUITE DIRECTORY FILE...: the files, as they are called in that directory, PPB_JOBS at a time, two by
# default.
run_tap() {
	local suite=$1 status=0 passed=0 failed=1
	cd "$2" || exit 1
	shift 2
	case "$*" in *object*|*soak*) object_server "$SCRATCH/log/object_store.log" ;; esac
	case "$*" in *azure*) azure_server "$SCRATCH/log/object_store.log" ;; esac
	run_job "$TOOLS/as-user.sh" perl "$RUN_ROOT/tools/run-tap.pl" "${PPB_JOBS:-2}" "$SCRATCH/log/counts" \
		"$@" || status=$?
	if [ -f "$SCRATCH/log/counts" ]; then
		read -r passed failed <"$SCRATCH/log/counts"
	fi
	if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
	note "TAP tests: $passed passed, $failed failed in $# file(s)"
	counts "$suite" "$passed" "$failed"
}
