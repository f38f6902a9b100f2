# Archives of a backup: what is in them, read by the letter of the format, and a data directory made of
# them with a program of the user's choice.

package ParallelBackup::Archive;

use strict;
use warnings FATAL => 'all';

use Carp;
use Digest::SHA ();
use Exporter 'import';
use File::Path ();
use JSON::PP ();
use List::Util ();
use ParallelBackup::Test;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(members extract_backup extract_volumes volume_index tar_programs);

use constant BLOCK => 512;

# The suffix of a compressed archive, and what takes it apart.
my %filter = ('' => [], gz => [ 'gzip', '-dc' ], lz4 => [ 'lz4', '-dc' ], zst => [ 'zstd', '-dcq' ]);

# Programs that extract archives and are there.
sub tar_programs
{
	return grep { system("command -v $_ >/dev/null 2>&1") == 0 } qw(tar bsdtar);
}

# The members of an archive, in order: { name, mode, size, mtime, type, digest }. Dies of whatever is not as
# PostgreSQL's own reader wants it.
sub members
{
	my ($path) = @_;
	my ($suffix) = $path =~ /\.tar(?:\.(gz|lz4|zst))?\z/ or croak "\"$path\" is no archive";
	my @filter = @{ $filter{ $suffix // '' } };
	my $in;
	my @members;

	if (@filter) { open $in, '-|:raw', @filter, $path or croak "could not run $filter[0]: $!" }
	else { open $in, '<:raw', $path or croak "could not open \"$path\": $!" }
	my $next = sub {
		my ($length) = @_;
		my $got = read($in, my $bytes, $length);
		croak "\"$path\" ends early" if !defined $got || $got != $length;
		return $bytes;
	};
	while ((my $header = $next->(BLOCK)) ne "\0" x BLOCK)
	{
		my ($name, $mode, $uid, $gid, $size, $mtime, $sum, $type, $link, $magic, $rest) =
		  unpack 'Z100 a8 a8 a8 a12 a12 a8 a1 Z100 a8 a*', $header;
		croak "\"$path\": \"$name\" is not of ustar" if $magic ne "ustar\0" . '00';
		substr(my $blank = $header, 148, 8) = ' ' x 8;
		croak "\"$path\": checksum of \"$name\"" if oct($sum =~ s/ .*//r) != unpack('%32C*', $blank);
		# More than four gigabytes: GNU's numbers.
		$size = $size =~ /^\x80/ ? hex(unpack 'H16', substr($size, 4)) : oct($size =~ s/ \z//r);
		my $digest = Digest::SHA->new(256);
		for (my $left = $size; $left > 0;)
		{
			my $step = $left > 65536 ? 65536 : $left;
			$digest->add($next->($step));
			$left -= $step;
		}
		my $padding = $next->(-$size % BLOCK);
		croak "\"$path\": padding of \"$name\"" if $padding =~ /[^\0]/;
		push @members, { name => $name, mode => oct($mode =~ s/ \z//r), size => $size, mtime => oct($mtime =~ s/ \z//r), type => $type, link => $link, digest => $digest->hexdigest };
	}
	croak "\"$path\" has no end" if $next->(BLOCK) ne "\0" x BLOCK;
	croak "\"$path\" goes on behind its end" if read($in, my $more, 1);
	CORE::close($in) or croak "\"$path\": $filter[0] failed";
	return @members;
}

# Makes a data directory of a backup's archives. The tablespaces go to "$directory.<oid>", with links that lead there;
# those that are in place, which tablespace_map does not know, where they belong.
#
# with   the program, tar by default
sub extract_backup
{
	my ($archives, $directory, %params) = @_;
	my $program = $params{with} // 'tar';
	my $from = sub {
		my ($name, $to, %how) = @_;
		my ($path) = grep { -e } map { "$archives/$name.tar$_" } ('', '.gz', '.lz4', '.zst')
		  or return 0;
		my ($suffix) = $path =~ /\.(gz|lz4|zst)\z/;
		my $filter = join ' ', $suffix ? @{ $filter{$suffix} } : 'cat';
		File::Path::make_path($to);
		chmod 0700, $to;
		system('bash', '-c', "set -o pipefail; $filter '$path' | $program -xpf - -C '$to'") == 0
		  or croak "could not extract \"$path\"";
		return 1;
	};

	$from->('base', $directory) or croak "\"$archives\" has no base.tar";
	$from->('pg_wal', "$directory/pg_wal");
	# Recovery makes the links as this says.
	if (-e "$directory/tablespace_map")
	{
		my $map = slurp_file("$directory/tablespace_map");
		for my $oid ($map =~ /^(\d+) /gm)
		{
			$from->($oid, "$directory.$oid") or croak "no archive of tablespace $oid";
			symlink "$directory.$oid", "$directory/pg_tblspc/$oid" or croak $!;
			$map =~ s/^$oid .*$/$oid $directory.$oid/m;
		}
		write_file("$directory/tablespace_map", $map);
	}
	for my $oid (map { m{/(\d+)\.tar} } glob "'$archives/'[0-9]*.tar*")
	{
		$from->($oid, "$directory/pg_tblspc/$oid") if !-e "$directory/pg_tblspc/$oid";
	}
	return;
}

# The index of a backup in volumes, after a look at everything that docs/volumes.md promises of it: each volume is there, of
# the size and digest that it says, an archive for itself with just the files that it lists, and nothing else is there.
sub volume_index
{
	my ($place) = @_;
	my $index = JSON::PP->new->utf8->decode(slurp_file("$place/backup_index.json"));
	my (%there, %files, %numbers);

	croak "version is $index->{version}" if $index->{version} != 1;
	for my $stored (grep { defined } $index->{manifest}, @{ $index->{volumes} })
	{
		my $path = "$place/$stored->{name}";
		croak "\"$path\" has another size" if -s $path != $stored->{size};
		croak "\"$path\" has another digest" if Digest::SHA->new(256)->addfile($path, 'b')->hexdigest ne $stored->{sha256};
		$there{ $stored->{name} } = 1;
	}
	for my $volume (@{ $index->{volumes} })
	{
		my $content = $volume->{content};
		my $oid = ref $content ? $content->{tablespace} : undef;
		my ($stem, $within) = $oid ? ($oid, "pg_tblspc/$oid/") : $content eq 'wal' ? ('pg_wal', 'pg_wal/') : ('base', '');
		my ($number) = $volume->{name} =~ /^$stem\.(\d{5,})\.tar/ or croak "\"$volume->{name}\" is not of $stem";
		croak "number of \"$volume->{name}\"" if $number != ++$numbers{$stem};
		my @members = members("$place/$volume->{name}");
		my @listed = map { ref ? pack('H*', $_->{hex}) : JSON::PP->new->utf8->allow_nonref->encode($_) =~ s/^"|"\z//gr } @{ $volume->{files} };
		my @found = map { $within . $_->{name} } grep { $_->{type} ne '5' } @members;
		croak "\"$volume->{name}\" has other files than the index says" if "@found" ne "@listed";
		for (@found) { croak "\"$_\" is there twice" if $files{$_}++ }
	}
	my @others = grep { !$there{$_} } grep { !/^\.\.?\z/ && $_ ne 'backup_index.json' } slurp_dir($place);
	croak "there is also @others" if @others;
	return $index;
}

# Makes a data directory of volumes, by plain tar and in a random order, as extract_backup does it of archives.
sub extract_volumes
{
	my ($place, $directory) = @_;
	my $index = volume_index($place);
	my %in_place = map { ($_->{oid} => 1) } grep { ref $_->{location} || $_->{location} !~ m{^/} } @{ $index->{tablespaces} };

	for my $volume (List::Util::shuffle(@{ $index->{volumes} }))
	{
		my ($suffix) = $volume->{name} =~ /\.tar(?:\.(gz|lz4|zst))?\z/;
		my $oid = ref $volume->{content} ? $volume->{content}{tablespace} : undef;
		my $to = $oid ? ($in_place{$oid} ? "$directory/pg_tblspc/$oid" : "$directory.$oid") : $volume->{content} eq 'wal' ? "$directory/pg_wal" : $directory;
		my $filter = join ' ', $suffix ? @{ $filter{$suffix} } : 'cat';
		File::Path::make_path($to, { mode => 0700 });
		system('bash', '-c', "set -o pipefail; $filter '$place/$volume->{name}' | tar -xpf - -C '$to'") == 0
		  or croak "could not extract \"$volume->{name}\"";
	}
	chmod 0700, $directory;
	my $map = -e "$directory/tablespace_map" ? slurp_file("$directory/tablespace_map") : '';
	for my $oid ($map =~ /^(\d+) /gm)
	{
		File::Path::make_path("$directory.$oid", "$directory/pg_tblspc", { mode => 0700 });
		symlink "$directory.$oid", "$directory/pg_tblspc/$oid" or croak $!;
		$map =~ s/^$oid .*$/$oid $directory.$oid/m;
	}
	write_file("$directory/tablespace_map", $map) if $map ne '';
	return $index;
}

1;
