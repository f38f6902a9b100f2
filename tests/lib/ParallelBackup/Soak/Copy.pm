# What a successful backup of a soak has left: it is verified, becomes a data directory by one of the ways there are, alone
# or on top of those before it, is started, and has what it must have.

package ParallelBackup::Soak::Copy;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use File::Find ();
use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Archive;
use ParallelBackup::Load;
use ParallelBackup::Soak::Servers;
use ParallelBackup::Test;

our @EXPORT = qw(size_of restores prior_of forget_chain);

# Backups each of which goes on from the one before, as directories, and what else they are kept as.
my @chain;

# The manifest to go on from, if there is one and it is not too long a chain.
sub prior_of { return @chain && @chain < 4 ? "$chain[-1]{directory}/backup_manifest" : undef }

sub forget_chain
{
	File::Path::remove_tree(map { ($_->{directory}, $_->{spaces}, $_->{archives} // ()) } @chain);
	@chain = ();
	return;
}

sub size_of
{
	my ($path) = @_;
	my $sum = 0;
	File::Find::find({ no_chdir => 1, follow => 0, wanted => sub { $sum += -s _ if -f $_ } }, $path);
	return $sum;
}

# The one tablespace with a place of its own goes where a plain backup has it.
sub _extracted
{
	my ($request, $archives, $directory) = @_;

	if ($request->{format} =~ /^(?:tar|pipe)\z/) { extract_backup($archives, $directory) }
	else { extract_volumes($archives, $directory) }
	rename "$archives/backup_manifest", "$directory/backup_manifest" or die $! if !-e "$directory/backup_manifest";
	return if !has_spaces();
	my ($oid) = slurp_file("$directory/tablespace_map") =~ /^(\d+) /m or die 'there is no tablespace in the map';
	rename "$directory.$oid", $request->{spaces} or die $!;
	unlink "$directory/pg_tblspc/$oid", "$directory/tablespace_map";
	symlink $request->{spaces}, "$directory/pg_tblspc/$oid" or die $!;
	return;
}

# A data directory of the backup, with the tablespace beside it.
sub _directory_of
{
	my ($request, $from, $store, $count) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($name, $format, $place) = @$request{qw(name format place)};
	my $directory = "$place.d";

	if ($format eq 'plain')
	{
		rename $place, $directory or die "$place: $!";
		return $directory;
	}
	# An increment alone is nothing that can be restored.
	if ($format ne 'pipe' && !defined $request->{prior} && rand() < 0.6)
	{
		command_ok(
			[
				$format eq 'objects' ? ('env', $store->environment) : (),
				'pg_parallel_restore', '--no-sync', '-j' => pick(1, 2, 4), '-D' => $directory, mapped_to($from, $request->{spaces}), $request->{url} // $place
			],
			"$name: pg_parallel_restore");
		$count->{'restored by pg_parallel_restore'}++;
		return $directory;
	}
	if ($format eq 'objects') { $store->download($name, $place) }
	_extracted($request, $place, $directory);
	$count->{'extracted by tar'}++;
	return $directory;
}

# A copy of a directory that is kept, and of its tablespace.
sub _copied
{
	my ($request, $directory, $to) = @_;

	system_or_bail('cp', '-a', '--reflink=auto', $directory, $to);
	return if !has_spaces();
	system_or_bail('cp', '-a', '--reflink=auto', $request->{spaces}, "$to.ts");
	my ($link) = grep { -l } glob "$to/pg_tblspc/*" or die 'there is no tablespace';
	unlink $link or die $!;
	symlink "$to.ts", $link or die $!;
	return;
}

# Of a success: it is verified, started and has what pgbench keeps equal, and what the server had, if that is known.
#
# store   the object store
# count   what is counted
# sums    of all tables, where nothing has changed them since
# rows    of tables that nobody writes to
sub restores
{
	my ($request, $from, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($name, $count) = ($request->{name}, $params{count});
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");
	my $directory = _directory_of($request, $from, $params{store}, $count);
	# The map says where tablespaces were.
	my @verify = ('pg_verifybackup', '--quiet', '--ignore' => 'tablespace_map', $request->{wal} eq 'none' ? '--no-parse-wal' : ());

	command_ok([ @verify, $directory ], "$name: pg_verifybackup");
	my $link = { directory => $directory, spaces => $request->{spaces} };
	if (defined $request->{prior})
	{
		push @chain, $link;
		command_ok(
			[ 'pg_combinebackup', '--no-sync', '--output' => $copy->data_dir, has_spaces() ? ('--tablespace-mapping' => "$request->{spaces}=" . $copy->data_dir . '.ts') : (), map { $_->{directory} } @chain ],
			"$name: pg_combinebackup of " . @chain);
		command_ok([ @verify, $copy->data_dir ], "$name: pg_verifybackup of what was combined");
		$count->{'increments combined'}++;
	}
	elsif (server_major() >= 17)
	{
		# The next one may go on from it.
		forget_chain();
		push @chain, $link;
		_copied($request, $directory, $copy->data_dir);
	}
	else
	{
		_copied($request, $directory, $copy->data_dir);
		File::Path::remove_tree($directory, $request->{spaces});
	}
	_starts($request, $copy, %params);
	File::Path::remove_tree($copy->data_dir, $copy->data_dir . '.ts');
	return;
}

sub _starts
{
	my ($request, $copy, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($name, $directory, $count) = ($request->{name}, $copy->data_dir, $params{count});
	my $conf = "primary_conninfo = ''\n" . (server_major() >= 17 ? "summarize_wal = off\n" : '');

	unlink "$directory/standby.signal";
	if ($request->{wal} eq 'none')
	{
		# Archive recovery to the end of what there is.
		write_file("$directory/recovery.signal", '');
		$conf .= "restore_command = 'cp \"" . primary()->data_dir . "/pg_wal/%f\" \"%p\"'\n";
	}
	start_copy($copy, conf => $conf);
	$copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'the copy stays in recovery';
	is(balances($copy), 't', "$name: it is consistent");
	is($copy->safe_psql('postgres', 'SELECT count(*), sum(id), sum(hashtext(filler)) FROM spoiled'), $params{rows}, "$name: it has what nobody has changed");
	if (defined $params{sums})
	{
		is(sums($copy), $params{sums}, "$name: it has the data");
		$count->{'compared by the sums of all tables'}++;
	}
	if (rand() < 0.4)
	{
		$copy->command_ok([ 'pg_amcheck', '--all', '--install-missing', '--heapallindexed' ], "$name: pg_amcheck");
		$count->{'checked by pg_amcheck'}++;
	}
	$copy->stop;
	$count->{'verified and started'}++;
	return;
}

1;
