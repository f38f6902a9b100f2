# What tests of leases share: nodes on which it can be seen what a keeper leaves behind.

package ParallelBackup::Lease;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

our @EXPORT = qw(
  lease_node row keeper_of wait_until sql attach attach_ok nothing_left is_gone in_backup_mode gone_hint
);

# What is said of a backup that has ended.
sub gone_hint { return qr/^It has ended: its lease has run out, it was cancelled or released,/ }

# Segments of dynamic shared memory are files, and whether a backup runs shows in what WAL is written.
sub lease_node
{
	my ($name, %params) = @_;
	my $node = parallel_node($name, extension => 1, %params, conf => q(
dynamic_shared_memory_type = 'mmap'
full_page_writes = off
) . ($params{conf} // ''));

	$node->safe_psql('postgres', q(CREATE TABLE touched AS SELECT id, repeat('x', 100) AS filler FROM generate_series(1, 60) AS id));
	return $node;
}

sub sql { return $_[0]->safe_psql('postgres', $_[1]) }

# A row of the view.
sub row
{
	my ($node, $columns, $id) = @_;

	return sql($node, "SELECT $columns FROM parallel_backup.backups WHERE backup_id = '$id'");
}

sub keeper_of { return row($_[0], 'keeper', $_[1]) }

sub wait_until
{
	my ($node, $query, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok($node->poll_query_until('postgres', $query), $name);
	return;
}

# A session that attaches, or tries to: the reply.
sub attach { return $_[0]->query("START_BACKUP (BACKUP_ID '$_[1]')") }

# One that does: what START_BACKUP returns.
sub attach_ok
{
	my ($conn, $id) = @_;
	my $reply = attach($conn, $id);

	die "could not attach: $reply->{error}{sqlstate} $reply->{error}{message}" if $reply->{error};
	my ($header, $tablespaces, $files) = checked_results($reply);
	return {
		%{ result_hash($header) },
		tablespaces => $tablespaces->{rows},
		%{ result_hash($files) }
	};
}

# Whether some session is in backup mode: a change of a page that is the first since the last checkpoint is then
# written with the whole page.
sub in_backup_mode
{
	my ($node) = @_;

	return sql($node, 'CHECKPOINT; EXPLAIN (ANALYZE, WAL, COSTS OFF, TIMING OFF) UPDATE touched SET id = -id') =~ /^\s*WAL: .*\bfpi=/m ? 1 : 0;
}

# A query that says true where there is neither backup nor keeper nor slot.
my $none = q(
	SELECT (SELECT count(*) FROM parallel_backup.backups)
	+ (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pg\_parallel\_backup\_%')
	+ (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel backup keeper') = 0);

# Waits until nothing is left of any backup, and looks at what no query shows.
sub nothing_left
{
	my ($node, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	wait_until($node, $none, "$name: no backup, no keeper, no slot");
	# Where it can be seen.
	is(in_backup_mode($node), 0, "$name: nobody is in backup mode")
	  if sql($node, q(SELECT NOT pg_is_in_recovery() AND current_setting('full_page_writes') = 'off')) eq 't';
	# The control segment is the server's own, and those of its statistics are of a megabyte at least.
	my $shared = $node->data_dir . '/pg_dynshmem';
	is(scalar(grep { /^mmap/ && -s "$shared/$_" < 256 * 1024 } slurp_dir($shared)), 1, "$name: no shared memory");
	is(scalar(grep { /^pg_parallel_backup/ } slurp_dir($node->data_dir . '/pg_replslot')), 0, "$name: no slot on disk");
	return;
}

# Who attaches too late is told.
sub is_gone
{
	my ($conn, $id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is_error($conn, "START_BACKUP (BACKUP_ID '$id')", '42704', qr/^parallel backup "$id" does not exist$/, $name,
		hint => gone_hint());
	return;
}

1;
