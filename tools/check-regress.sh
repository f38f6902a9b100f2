#!/usr/bin/env bash
# The SQL tests, tests/regress/sql against tests/regress/expected, in a server that pg_regress
# makes for the purpose and takes down again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$TOOLS/counts.sh"

say 'SQL tests (pg_regress)'
make_scratch
make_readable
mkdir -p "$LOGS"
rm -rf "$LOGS/regress"

tests=()
for file in "$ROOT"/tests/regress/sql/*.sql; do
	if [ -f "$file" ]; then tests+=("$(basename "$file" .sql)"); fi
done
if [ ${#tests[@]} -eq 0 ]; then die 'there are no tests in tests/regress/sql'; fi

config=$SCRATCH/postgresql.conf
echo "shared_preload_libraries = 'pg_parallel_backup'" >"$config"
# Settings that the tests ask for stand beside them.
if [ -f "$RUN_ROOT/tests/regress/postgresql.conf" ]; then
	cat "$RUN_ROOT/tests/regress/postgresql.conf" >>"$config"
fi
chmod 644 "$config"

before_scratch_goes() {
	if [ "$1" -ne 0 ] && [ -d "$SCRATCH/regress" ]; then
		mkdir -p "$LOGS/regress"
		(cd "$SCRATCH/regress" && cp -r regression.* log results "$LOGS/regress/" 2>/dev/null) || true
	fi
}

# pg_regress is linked with libpq and lies where its run path does not reach.
export LD_LIBRARY_PATH=$RUN_INSTALL/lib
pgxs=$(dirname "$("$RUN_INSTALL/bin/pg_config" --pgxs)")
pg_regress=$pgxs/../test/regress/pg_regress
# Before 16 the expected results can only be where they are.
expected=()
if "$pg_regress" --help | grep -q -e --expecteddir; then
	expected=(--expecteddir="$RUN_ROOT/tests/regress")
fi
status=0
cd "$SCRATCH"
run_job "$TOOLS/as-user.sh" "$pg_regress" \
	--bindir="$RUN_INSTALL/bin" --dlpath="$("$RUN_INSTALL/bin/pg_config" --pkglibdir)" \
	--inputdir="$RUN_ROOT/tests/regress" --outputdir="$SCRATCH/regress" \
	"${expected[@]}" \
	--temp-instance="$SCRATCH/regress/instance" --temp-config="$config" --no-locale --encoding=UTF8 \
	"${tests[@]}" >"$SCRATCH/output" 2>&1 || status=$?
cat "$SCRATCH/output"

# "ok 1 - name 12 ms" and "not ok 2 - name 12 ms"; before 16 "test name ... ok 12 ms" and
# "test name ... FAILED 12 ms"
passed=$(grep -cE '^ok |^test .* \.\.\. ok ' "$SCRATCH/output" || true)
failed=$(grep -cE '^not ok |^test .* \.\.\. FAILED' "$SCRATCH/output" || true)
if [ "$status" -ne 0 ]; then
	if [ "$failed" -eq 0 ]; then failed=1; fi
	cat "$SCRATCH/regress/regression.diffs" >&2 2>/dev/null || true
	note "logs: $LOGS/regress"
fi
note "SQL tests: $passed passed, $failed failed"
counts regress "$passed" "$failed"
