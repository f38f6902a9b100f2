#!/usr/bin/env bash
# Finds PostgreSQL's source and prints the path of the tarball on standard output. In order:
# the tarball that PG_SOURCE names, the official download, Debian's pool, Debian's source package.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
exec 3>&1 1>&2

found() {
	echo "$1" >&3
	exit 0
}
sha256_is() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$2" ]; }

# --- a tarball given by the caller
if [ -n "${PG_SOURCE:-}" ]; then
	if [ ! -f "$PG_SOURCE" ]; then die "PG_SOURCE=$PG_SOURCE: there is no such file"; fi
	found "$(cd "$(dirname "$PG_SOURCE")" && pwd -P)/$(basename "$PG_SOURCE")"
fi

if [ -z "$PG_VERSION" ]; then
	die "no source of PostgreSQL $PG is known here" "give a tarball of it with PG_SOURCE=path"
fi

sources=$(cache_dir)/sources
mkdir -p "$sources"
pinned=$sources/postgresql-$PG_VERSION.tar.bz2
if sha256_is "$pinned" "$PG_SHA256"; then found "$pinned"; fi

scratch=$(mktemp -d "$sources/.new.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# --- the official download
# The time limits are short because a closed network often drops packets silently.
url=https://ftp.postgresql.org/pub/source/v$PG_VERSION/postgresql-$PG_VERSION.tar.bz2
say "Downloading PostgreSQL $PG_VERSION from postgresql.org"
start=$(now)
if curl -fsSL --connect-timeout 8 --speed-limit 10000 --speed-time 20 -o "$scratch/tarball" "$url" \
	2>"$scratch/log"; then
	if ! sha256_is "$scratch/tarball" "$PG_SHA256"; then
		die "$url does not have the checksum that tools/versions/$PG pins" \
			'it was not used; give a tarball you trust with PG_SOURCE=path'
	fi
	mv "$scratch/tarball" "$pinned"
	note "done in $(duration $(($(now) - start)))"
	found "$pinned"
fi
note "not to be had from here ($(tail -n 1 "$scratch/log")): trying Debian's source package"

# --- Debian's source package
# An apt configuration of our own: the machine's mirror and keys, but none of its sources, lists
# or caches, so that nothing of the machine changes and an ordinary user can do it. apt checks
# signature and checksums. Only the upstream tarball is used, not Debian's changes to it.
shopt -s nullglob
kept=("$sources"/debian/postgresql-"$PG"_*.orig.tar.*)
if [ ${#kept[@]} -gt 0 ]; then
	note "using the one that was fetched earlier: ${kept[-1]##*/}"
	found "${kept[-1]}"
fi

give_up() {
	die "$1" "give a tarball of PostgreSQL $PG with PG_SOURCE=path"
}
if ! command -v apt-get >/dev/null; then give_up 'this machine has no apt-get'; fi

# "main" under the machine's own release name: third parties' sources have other names. The label
# is known only once apt-get update has run, and is then checked too.
own_release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mapfile -t mirrors < <(
	# shellcheck disable=SC2016 # apt expands these
	apt-get indextargets --format '$(RELEASE)|$(COMPONENT)|$(LABEL)|$(REPO_URI)' \
		'Created-By: Packages' |
		awk -F '|' -v own="$own_release" '
			$2 == "main" && ($3 == "Debian" || $3 == "$(LABEL)") &&
			($1 == own || $1 ~ /^(stable|testing|unstable|sid)$/) && !seen[$4]++ { print $4 }'
)
if [ ${#mirrors[@]} -eq 0 ]; then give_up "no Debian mirror was found in this machine's apt sources"; fi

keyring=
for file in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
	if [ -f "$file" ]; then keyring="signed-by=$file"; fi
done

# Mirrors that are frozen at a date are in use, and only the rolling suites' lists expire. What they
# serve is signed all the same, and an older minor release does as well.
mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/download"
apt_options=(
	-o Dir::Etc::sourcelist="$scratch/sources.list" -o Dir::Etc::sourceparts=-
	-o Dir::State::lists="$scratch/lists" -o Dir::Cache="$scratch/cache"
	-o APT::Sandbox::User=root # root's download directory is not open to apt's own user
	-o Acquire::Languages=none -o Acquire::http::Timeout=20 -o Acquire::Retries=1
	-o Acquire::Check-Valid-Until=false
)
for mirror in "${mirrors[@]}"; do
	# The version that is pinned, by its checksum: a mirror has it for some time after a suite names the
	# next, which the mirror need not have yet.
	url=${mirror%/}/pool/main/p/postgresql-$PG/postgresql-${PG}_$PG_VERSION.orig.tar.bz2
	say "Fetching PostgreSQL $PG_VERSION from Debian's pool"
	start=$(now)
	if curl -fsSL --connect-timeout 8 --speed-limit 10000 --speed-time 20 -o "$scratch/tarball" "$url" \
		2>"$scratch/log" && sha256_is "$scratch/tarball" "$PG_SHA256"; then
		mv "$scratch/tarball" "$pinned"
		note "${pinned##*/}, done in $(duration $(($(now) - start)))"
		found "$pinned"
	fi
	note 'not there'
	for suite in $PG_SUITES; do
		say "Fetching Debian's source package of PostgreSQL $PG from the suite $suite"
		start=$(now)
		echo "deb-src [$keyring] $mirror $suite main" >"$scratch/sources.list"
		if ! apt-get "${apt_options[@]}" -q update >"$scratch/log" 2>&1 ||
			! (cd "$scratch/download" && apt-get "${apt_options[@]}" -q source --download-only \
				"postgresql-$PG/$suite") >>"$scratch/log" 2>&1; then
			sed 's/^/    /' "$scratch/log" | tail -n 5
			continue
		fi
		tarball=("$scratch"/download/postgresql-"$PG"_*.orig.tar.*[!c])
		note "${tarball[0]##*/}, done in $(duration $(($(now) - start)))"
		if sha256_is "${tarball[0]}" "$PG_SHA256"; then
			mv "${tarball[0]}" "$pinned"
			found "$pinned"
		fi
		mkdir -p "$sources/debian"
		mv "${tarball[0]}" "$sources/debian/"
		found "$sources/debian/${tarball[0]##*/}"
	done
done
give_up "PostgreSQL's source could not be fetched from postgresql.org, nor from Debian"
