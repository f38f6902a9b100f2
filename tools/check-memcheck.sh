#!/usr/bin/env bash
# Backups by each way under valgrind's memcheck, the server's processes and the client alike: tests/memcheck/*.pl, or the TAP
# files that TESTS names. The extension is built with its feature valgrind (PPB_VALGRIND=1). PPB_SERVER=debug has a server that tells valgrind of each allocation in its contexts; with
# PPB_STOCK it is Debian's own, of which valgrind knows malloc alone. What is PostgreSQL's own habit its
# source has a list of (src/tools/valgrind.supp), and what is other libraries' tests/memcheck/suppressions.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/counts.sh"
. "$TOOLS/tap.sh"

say 'Backups under valgrind'
if [ -z "${PPB_VALGRIND:-}" ]; then die 'this is for PPB_VALGRIND=1'; fi
if [ "${PPB_SERVER:-}" != debug ] && [ -z "${PPB_STOCK:-}" ]; then die 'this is for PPB_SERVER=debug, or PPB_STOCK=1'; fi
cd "$ROOT"
# shellcheck disable=SC2206 # a list of patterns
tests=(${TESTS:-tests/memcheck/*.pl})
for file in "${tests[@]}"; do
	if [ ! -f "$file" ]; then die "TESTS: there is no file $file"; fi
done
tap_environment memcheck

tar -xOf "$("$TOOLS/source.sh")" --wildcards '*/src/tools/valgrind.supp' >"$SCRATCH/valgrind.supp"
reports=$SCRATCH/log/valgrind
run_job "$TOOLS/as-user.sh" mkdir "$reports"

# A copy of the server in which these programs are started by valgrind. pg_ctl finds a server beside itself.
within=${INSTALL#"$TREE"}
copy=$SCRATCH/server$within
cp -a --reflink=auto "${RUN_INSTALL%"$within"}" "$SCRATCH/server"
under_valgrind() {
	local program=$1
	shift
	mv "$copy/bin/$program" "$copy/bin/$program.itself"
	cat >"$copy/bin/$program" <<-WRAPPER
		#!/bin/sh
		case \$1 in
		-V | --version | -C | --boot | --check | --single | --describe-config) exec "\$0.itself" "\$@" ;;
		esac
		exec valgrind --quiet --log-file=$reports/$program.%p --trace-children=no --num-callers=40 \\
			--suppressions=$SCRATCH/valgrind.supp --suppressions=$RUN_ROOT/tests/memcheck/suppressions \\
			--gen-suppressions=all $* "\$0.itself" "\$@"
	WRAPPER
	chmod 755 "$copy/bin/$program"
}
# What a backend has at its end goes with it.
under_valgrind postgres --leak-check=no
for program in pg_parallel_basebackup pg_parallel_restore; do
	under_valgrind "$program" --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
done
export PATH=$copy/bin:$PATH
export PG_TEST_TIMEOUT_DEFAULT=1800
status=0
# For what is said last of all, that it was valgrind's doing.
PPB_COUNTS='' run_tap memcheck "$RUN_ROOT" "${tests[@]}" || status=1

# A file for each process; what is written to it is an error.
shopt -s nullglob
files=("$reports"/postgres.*)
bad=()
for file in "$reports"/*; do
	if [ -s "$file" ]; then bad+=("$file"); fi
done
note "processes of the server under valgrind: ${#files[@]}; processes of any kind with errors: ${#bad[@]}"
if [ ${#files[@]} -eq 0 ]; then die 'no server was started by valgrind'; fi
if [ ${#bad[@]} -gt 0 ]; then
	cat "${bad[@]}" | sed 's/^==[0-9]*== //' | head -n 200
	status=1
fi
counts memcheck "${#files[@]}" $((${#bad[@]} + status))
