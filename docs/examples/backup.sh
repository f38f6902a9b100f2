#!/usr/bin/env bash
# A base backup by way of the SQL procedures, with psql, a shell and perl:
#
#   backup.sh DIRECTORY [JOBS]        PGHOST, PGDATABASE and so on say from where
#
# Left out: tablespaces, a manifest, trying again (docs/protocol.md has all).
set -euo pipefail
export target=$1 jobs=${2:-4}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A database's owner can make procedures, and operators, of any name.
export PGOPTIONS="${PGOPTIONS:-} -c search_path="
if [ "$(psql -XAtq -f "$(dirname "$0")/trusted.sql")" != t ]; then
	echo 'backup.sh: the procedures are not those of the extension pg_parallel_backup' >&2
	exit 1
fi

# One psql stays for as long as the backup runs. A command's results go into a file.
coproc COORDINATOR { exec psql -XAtq -F $'\t' -v ON_ERROR_STOP=1; }
call() {
	printf '\\o %s\nCALL parallel_backup.%s;\n\\o\n\\echo done\n' "$work/$1" "$2" >&"${COORDINATOR[1]}"
	read -r answer <&"${COORDINATOR[0]}" && [ "$answer" = done ]
}

# Writes the files of a stream of frames: f begins one, d is data, e ends it, v is one that vanished.
# psql writes messages one behind the other: where a checksum is asked for, d frames are of 8 kB but
# for a file's last, and the checksum says that they were cut right.
export unpack='
use Digest::SHA; chdir $ENV{target} or die; binmode STDIN;
sub get { my $b = ""; while (length $b < $_[0]) { read(STDIN, $b, $_[0] - length $b, length $b) or die "cut short" } $b }
sub name { local $/ = "\0"; my $name = <STDIN>; chop $name; $name }
while (read(STDIN, my $type, 1)) {
	if ($type eq "v") { name(); next }
	my (undef, undef, $left, undef, $mode) = unpack("q>4 N C", get(37));
	my ($name, $sha) = (name(), Digest::SHA->new(256));
	open my $file, ">:raw", $name or die "$name: $!"; chmod $mode, $name;
	for (; $left; $left -= length $data) {
		get(1) eq "d" or die "$name: no data";
		$data = get($left < 8192 ? $left : 8192); $sha->add($data); print $file $data }
	close $file or die "$name: $!";
	(get(1), get(15), get(32))[2] eq $sha->digest or die "$name: checksum differs" }'
fetch() { # names of files, a line each
	perl -ne 'chomp; s/\x27/\x27\x27/g; push @f, "\x27$_\x27";
		END { print "CALL parallel_backup.send_files_content(files => ARRAY[", join(",", splice(@f, 0, 500)),
			"], file_checksum => \x27sha256\x27, backup_id => \x27$ENV{id}\x27)\n" while @f }' |
		xargs -r -d '\n' -n 1 -P "$jobs" bash -o pipefail -c 'psql -Xq -c "$0" | perl -e "$unpack"'
}

call start "start_backup(label => 'backup.sh', checkpoint => 'fast')"
id=$(head -n 1 "$work/start" | cut -f 3)
export id
sed -n '/^START WAL LOCATION/,/^START TIMELINE/p' "$work/start" >"$work/backup_label"
[ "$(sed '/^START WAL LOCATION/q' "$work/start" | wc -l)" = 3 ] || { echo 'tablespaces: not in this example' >&2; exit 1; }
mkdir -m 700 "$target"
call list 'send_file_list()'
awk -F '\t' '$2 == "d" { print $1 }' "$work/list" |
	perl -ne 'chomp; s/%(..)/chr hex $1/ge; mkdir "$ENV{target}/$_", 0700 or die "$_: $!"'
awk -F '\t' '$2 == "f" { print $1 }' "$work/list" | fetch
call stop 'stop_backup(wait => false)'
cut -f 1 "$work/stop" | grep -Ex '[0-9A-F]{24}|[0-9A-F]{8}\.history' | tee "$work/wal" | sed 's,^,pg_wal/,' | fetch
(cd "$target/pg_wal/archive_status" && sed 's/$/.done/' "$work/wal" | xargs touch)
cp "$work/backup_label" "$target/"
awk 'length($1) > 10000 { print $1 }' "$work/stop" | perl -ne 'chomp; print pack "H*", $_' >"$target/global/pg_control" # the last: now it is a cluster
