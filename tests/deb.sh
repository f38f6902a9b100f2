#!/usr/bin/env bash
# Installs the packages that tools/deb.sh has built on this machine, for Debian's own server, backs
# up a cluster made for the purpose by the SQL route, verifies and starts the copy, and removes the
# packages again. No other cluster is touched, and nothing is left but the server itself, if it had
# to be installed too.
set -euo pipefail
. "$(dirname "$0")/../tools/lib.sh"
. "$TOOLS/counts.sh"

SERVER=postgresql-$PG-pg-parallel-backup
CLIENT=pg-parallel-basebackup
BIN=/usr/lib/postgresql/$PG/bin
LIBRARY=/usr/lib/postgresql/$PG/lib/pg_parallel_backup.so
NAME=ppb_check_$$
RUN_INSTALL=/usr/lib/postgresql/$PG # what stops a server that is still there at the end
NO_MAIN=/etc/postgresql-common/createcluster.d/ppb-check.conf

passed=0 failed=0
cluster_made='' packages_installed='' copy_started=''

main() {
	preconditions
	# Debian's clusters belong to this user.
	export PPB_USER=postgres
	say "Packages on the stock server of PostgreSQL $PG"

	policy
	install_packages
	make_scratch
	make_cluster
	extension
	procedures
	backup
	copy
	remove
	echo "$passed passed, $failed failed" | tee "$LOGS/summary"
	counts deb "$passed" "$failed"
}

# --- what a test is ------------------------------------------------------------------------

ok() {
	passed=$((passed + 1))
	echo "ok $((passed + failed)) - $1"
}

not_ok() {
	failed=$((failed + 1))
	echo "not ok $((passed + failed)) - $1"
}

comment() { printf '# %s\n' "${1//$'\n'/$'\n'# }"; }

# check WHAT command...: the command succeeds; its output is shown if it does not.
check() {
	local what=$1 output
	shift
	if output=$("$@" 2>&1 </dev/null 9>&-); then
		ok "$what"
	else
		not_ok "$what"
		comment "$output"
	fi
}

# is WHAT GOT EXPECTED
is() {
	if [ "$2" = "$3" ]; then
		ok "$1"
	else
		not_ok "$1"
		printf '# got: %s\n# expected: %s\n' "$2" "$3"
	fi
}

# like WHAT GOT PATTERN
like() {
	case $2 in
	*"$3"*) ok "$1" ;;
	*)
		not_ok "$1"
		printf '# got: %s\n# expected in it: %s\n' "$2" "$3"
		;;
	esac
}

# --- the steps -----------------------------------------------------------------------------

preconditions() {
	local package
	if [ "$(id -u)" -ne 0 ]; then
		die 'this test installs and removes packages: run it as root' "for example: sudo make check-deb PG=$PG"
	fi
	if ! command -v apt-get >/dev/null; then die 'this test needs a Debian machine: there is no apt-get here'; fi
	for package in "$SERVER" "$CLIENT"; do
		if dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qv '^not-installed$'; then
			die "$package is installed already" 'this test would remove it: it is for machines without it'
		fi
		if ! compgen -G "$BUILD/deb/${package}_*.deb" >/dev/null; then
			die "there is no package $package in build/deb" "make deb PG=$PG builds it"
		fi
	done
	if [ -e "$LIBRARY" ]; then die "$LIBRARY is there already" 'it is of no package of ours: remove it first'; fi
}

# What Debian asks of packages. These are not uploaded to it, so that no bug there can be closed by them.
policy() {
	check 'lintian finds no errors, and nothing to warn of' lintian --allow-root --fail-on error,warning \
		--suppress-tags initial-upload-closes-no-bugs "$BUILD/deb/${SERVER}"_*.deb "$BUILD/deb/${CLIENT}"_*.deb
}

# If the server comes with them, its installation would make and start a cluster "main".
install_packages() {
	local log=$LOGS/deb-install.log file
	mkdir -p "$LOGS"
	trap 'cleanup; exit 130' INT
	trap 'cleanup; exit 143' TERM HUP
	trap 'cleanup' EXIT
	# Read where postgresql-common has been installed, which may be about to happen.
	mkdir -p "${NO_MAIN%/*}"
	echo 'create_main_cluster = false' >"$NO_MAIN"
	packages_installed=yes
	# apt reads the files as another user, who may not be allowed into this checkout.
	local files
	files=$(mktemp -d /tmp/ppb-deb.XXXXXX)
	chmod 755 "$files"
	cp "$BUILD/deb/${SERVER}"_*.deb "$BUILD/deb/${CLIENT}"_*.deb "$files"
	if ! apt_get install --no-install-recommends "$files"/*.deb >"$log" 2>&1 </dev/null; then
		rm -rf "$files"
		tail -n 20 "$log" >&2
		die 'apt-get could not install the packages' "the whole log: $log" \
			"(does this machine's suite have postgresql-$PG? apt-get update may help, too)"
	fi
	rm -rf "$files"
	server_may_make_clusters
	ok 'apt installs both packages'

	mapfile -t installed < <(dpkg -L "$SERVER" "$CLIENT" | sort -u)
	local missing=()
	for file in "${installed[@]}"; do
		if [ -n "$file" ] && [ ! -e "$file" ]; then missing+=("$file"); fi
	done
	# A machine may be set up to install no manuals.
	is 'their files are there' "$(printf '%s\n' "${missing[@]}" | grep -v '^/usr/share/\(doc\|man\)/' || true)" ''
	is 'the library is where the server looks' "$(stat -c '%U:%G %a' "$LIBRARY")" 'root:root 644'
	check 'dpkg finds no file changed' dpkg --verify "$SERVER" "$CLIENT"
	like 'the client runs' "$(pg_parallel_basebackup --version 2>&1)" 'pg_parallel_basebackup'
	like "the client uses the system's libpq" "$(ldd /usr/bin/pg_parallel_basebackup)" 'libpq.so.5 => /lib'
	like 'it has a manual page' "$(dpkg -L "$CLIENT")" '/usr/share/man/man1/pg_parallel_basebackup.1.gz'
	is 'bash completes its options' "$(completions --tablesp)" '--tablespace-mapping'
	is 'and their words' "$(completions --wal-method f)" 'fetch'
	like 'zsh is told them' "$(cat /usr/share/zsh/vendor-completions/_pg_parallel_basebackup)" '--tablespace-mapping='
	like 'fish is told them' "$(cat /usr/share/fish/vendor_completions.d/pg_parallel_basebackup.fish)" \
		'-l tablespace-mapping'
}

# completions WORD...: what bash offers for the last of these words.
completions() {
	# shellcheck disable=SC2016 # the other bash expands it
	"$BASH" --norc -c '
		. /usr/share/bash-completion/completions/pg_parallel_basebackup
		COMP_WORDS=(pg_parallel_basebackup "$@") COMP_CWORD=$#
		previous=pg_parallel_basebackup
		if [ $# -gt 1 ]; then previous=${*: -2:1}; fi
		_pg_parallel_basebackup pg_parallel_basebackup "${*: -1}" "$previous" && echo "${COMPREPLY[*]}"
	' bash "$@" 2>&1
}

make_cluster() {
	port=$(free_port 54330)
	check 'a cluster for the purpose' pg_createcluster "$PG" "$NAME" --port "$port" --start-conf manual \
		-- --auth-local=peer --auth-host=scram-sha-256 --data-checksums
	cluster_made=yes
	check 'the one line of configuration' \
		pg_conftool "$PG" "$NAME" set shared_preload_libraries pg_parallel_backup
	check 'the server starts' pg_ctlcluster "$PG" "$NAME" start
	is 'with the library' "$(query 'SHOW shared_preload_libraries')" 'pg_parallel_backup'
}

extension() {
	local latest
	check 'the extension' query 'CREATE EXTENSION pg_parallel_backup'
	latest=$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$ROOT/pg_parallel_backup.control")
	is 'is the latest' "$(query "SELECT extversion FROM pg_extension WHERE extname = 'pg_parallel_backup'")" "$latest"
	check 'gone' query 'DROP EXTENSION pg_parallel_backup'
	check 'and there again' query 'CREATE EXTENSION pg_parallel_backup'
	check 'roles' query "CREATE ROLE backup LOGIN PASSWORD 'secret' IN ROLE pg_read_server_files; CREATE ROLE nobody LOGIN PASSWORD 'secret'"
	check 'rights' query 'GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO backup'
	check 'data' query 'CREATE TABLE numbers AS SELECT generate_series(1, 200000) AS n'
	like 'a role without rights is refused' \
		"$(PGPASSWORD=secret query_as nobody "CALL parallel_backup.start_backup(label => 'x')" 2>&1 || true)" \
		'permission denied for procedure start_backup'
}

procedures() {
	like 'the procedures, in psql' "$(PGPASSWORD=secret query_as backup \
		"CALL parallel_backup.start_backup(label => 'psql', checkpoint => 'fast')" \
		"CALL parallel_backup.send_files_content(ARRAY['PG_VERSION'])" \
		'CALL parallel_backup.stop_backup()' 2>&1 | tr -d '\0' || true)" "PG_VERSION"
}

backup() {
	local output status=0
	output=$(PGPASSWORD=secret as_user pg_parallel_basebackup -v -D "$SCRATCH/home/copy" -j 3 -X fetch -c fast \
		-d "host=127.0.0.1 port=$port user=backup dbname=postgres" 2>&1 </dev/null) || status=$?
	is 'a backup, as a role that has been granted the procedures' "$status" 0
	if [ "$status" -ne 0 ]; then comment "$output"; fi
	like 'by way of the procedures' "$output" 'procedures'
	check 'pg_verifybackup' as_user "$BIN/pg_verifybackup" "$SCRATCH/home/copy"
}

# Debian keeps a cluster's configuration outside of its data directory: the copy gets its own.
copy() {
	local data=$SCRATCH/home/copy
	if [ ! -f "$data/PG_VERSION" ]; then
		not_ok 'the copy starts'
		return
	fi
	copy_port=$(free_port $((port + 1)))
	as_user sh -c "cat >'$data/postgresql.conf' && echo 'local all all trust' >'$data/pg_hba.conf'" <<-CONF
		listen_addresses = ''
		unix_socket_directories = '$SCRATCH/home'
		port = $copy_port
	CONF
	copy_started=yes
	check 'the copy starts' as_user "$BIN/pg_ctl" -D "$data" -l "$SCRATCH/home/copy.log" -w start
	is 'with the data' "$(as_user "$BIN/psql" -XAtq -h "$SCRATCH/home" -p "$copy_port" -d postgres \
		-c 'SELECT count(*), sum(n) FROM numbers' 2>&1)" '200000|20000100000'
	check 'and stops' as_user "$BIN/pg_ctl" -D "$data" -m fast -w stop
}

remove() {
	local file left=()
	check 'the cluster goes' pg_dropcluster --stop "$PG" "$NAME"
	cluster_made=
	check 'apt purges both packages' purge
	packages_installed=
	for file in "${installed[@]}"; do
		case $file in
		*parallel*) if [ -e "$file" ]; then left+=("$file"); fi ;;
		esac
	done
	is 'no file of theirs is left' "${left[*]}" ''
	is 'nor their library' "$(ls "$LIBRARY" 2>/dev/null)" ''
	is 'nor anything in dpkg' "$(dpkg-query -W -f '${db:Status-Abbrev}' "$SERVER" "$CLIENT" 2>/dev/null | tr -d 'un ')" ''
}

# --- helpers -------------------------------------------------------------------------------

query() { as_user "$BIN/psql" -XAtq -v ON_ERROR_STOP=1 -p "$port" -d postgres -c "$1"; }
# query_as ROLE statement..., over TCP
query_as() {
	local role=$1
	shift
	as_user "$BIN/psql" -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U "$role" -d postgres "${@/#/--command=}"
}

# The first port from one on that neither a cluster has in its configuration nor anybody listens on.
free_port() {
	local port=$1
	while pg_lsclusters --no-header | awk '{ print $3 }' | grep -qx "$port" ||
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
		port=$((port + 1))
	done
	echo "$port"
}

server_may_make_clusters() {
	rm -f "$NO_MAIN"
	rmdir --ignore-fail-on-non-empty "${NO_MAIN%/*}" 2>/dev/null || true
}

purge() { apt_get purge "$SERVER" "$CLIENT"; }

# Somebody else's apt may be at work.
apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 "$@"; }

# Whatever has happened: nothing of this test stays.
cleanup() {
	if [ -n "$copy_started" ]; then
		as_user "$BIN/pg_ctl" -D "$SCRATCH/home/copy" -m immediate -s stop >/dev/null 2>&1 || true
	fi
	if [ -n "$cluster_made" ]; then pg_dropcluster --stop "$PG" "$NAME" || true; fi
	if [ -n "$packages_installed" ]; then purge >/dev/null 2>&1 || true; fi
	server_may_make_clusters
	cluster_made='' packages_installed='' copy_started=''
}
before_scratch_goes() { cleanup; }

main "$@"
