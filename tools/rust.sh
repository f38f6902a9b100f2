# How cargo is called here. Sourced after lib.sh.
# shellcheck shell=bash disable=SC2034

features=(--locked --no-default-features --features "pg$PG${PPB_VALGRIND:+,valgrind}")
# The same of the whole workspace: the client has no server, and is tested with all that it can.
workspace_features=("${features[@]}" --features pg_parallel_backup_client/object-store)

# The target directory is kept in the cache, so that a fresh clone does not compile the
# dependencies again. cargo tells two checkouts' own crates apart by file times alone: after a
# build from another checkout those crates are built anew. CARGO_TARGET_DIR overrides all this.
use_target_dir() {
	if [ -n "${CARGO_TARGET_DIR:-}" ]; then return; fi
	local rust cache
	rust=$(rustc -vV | sha256sum | cut -c 1-8)
	cache=$(cache_dir)
	# Debian's header files have a directory of their own, and so have those of another build: pgrx's bindings, and
	# all that is built upon them, would be compiled anew at each turn from those of the patched server and back.
	export CARGO_TARGET_DIR=$cache/target-$rust${PPB_STOCK:+-stock}${PPB_SERVER:+-$PPB_SERVER}
	mkdir -p "$CARGO_TARGET_DIR"
	require_free "$CARGO_TARGET_DIR" 2500
	lock "$CARGO_TARGET_DIR/.lock" 'cargo build'
	if [ "$(cat "$CARGO_TARGET_DIR/.checkout" 2>/dev/null)" != "$ROOT" ]; then
		rm -rf "$CARGO_TARGET_DIR"/*/.fingerprint/pg_parallel_*
		echo "$ROOT" >"$CARGO_TARGET_DIR/.checkout"
	fi
}

# use_server PG_CONFIG: the server that pgrx's bindings and libpq are taken from. The one in
# build/ is named by the path of its twin in the cache, which stays the same from checkout to
# checkout: a new path would compile the bindings again.
use_server() {
	local pg_config=$1 entry
	if [ "$pg_config" = "$INSTALL/bin/pg_config" ]; then
		entry=$(cat "$INSTALL/.cache-entry")
		if [ -x "$entry/bin/pg_config" ]; then pg_config=$entry/bin/pg_config; fi
	fi
	export PG_CONFIG=$pg_config PGRX_PG_CONFIG_PATH=$pg_config
	LD_LIBRARY_PATH=$("$pg_config" --libdir)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	export LD_LIBRARY_PATH
}

# cargo_tool NAME VERSION: prints the path of a program for cargo: the installed one, or else that of this version in the cache,
# where it is installed first, which takes some minutes once.
cargo_tool() {
	local name=$1 version=$2 tools program
	program=$(command -v "$name" || true)
	if [ -z "$program" ]; then
		tools=$(cache_dir)/tools
		program=$tools/bin/$name
		mkdir -p "$tools"
		if [ "$("$program" --version 2>/dev/null)" != "$name $version" ]; then
			lock "$tools/.lock" "installation of $name" >&2
			step "Installing $name $version (some minutes, once)" \
				cargo install --quiet --locked --root "$tools" --target-dir "$tools/target" "$name@$version" >&2
			rm -rf "$tools/target"
		fi
	fi
	echo "$program"
}
