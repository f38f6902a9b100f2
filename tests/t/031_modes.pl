# Modes of files: those of the server, set once a file is complete, so that it can be fetched again before.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
my $node = parallel_node('main', extension => 1, conf => "listen_addresses = '127.0.0.1'\n");
my %modes = (read_only => 0400, executable => 0755, shared => 0640, usual => 0600);
for my $name (keys %modes)
{
	write_file($node->data_dir . "/$name", "content of $name\n" x 1000);
	chmod $modes{$name}, $node->data_dir . "/$name";
}

for my $name (sort keys %modes)
{
	# Damaged on the way, once: fetched again over what came first.
	my $proxy = ParallelBackup::Proxy->new(server => $node->port, find => "content of $name\n", at => 0, xor => 1, flag => "$tempdir/$name");
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");
	local %ENV = $node->_get_env(PGSSLMODE => 'disable', PGGSSENCMODE => 'disable');
	command_checks_all(
		[ 'pg_parallel_basebackup', '-N', '-c' => 'fast', '-D' => $copy->data_dir, '--verify=server', '-h' => '127.0.0.1', '-p' => $proxy->port ],
		0, [qr/^$/], [qr/warning: could not fetch file "$name", will try again: file "$name" was damaged in transit/], "$name, fetched again");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$name, fetched again: pg_verifybackup");
	is_deeply({ map { ($_ => sprintf '%o', ((stat $copy->data_dir . "/$_")[2] // 0) & 07777) } keys %modes },
		{ map { ($_ => sprintf '%o', $modes{$_}) } keys %modes }, "$name, fetched again: the modes are those of the server");
	$proxy->stop;
	next if $name ne 'read_only';
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT 1'), 1, 'the copy starts');
	$copy->stop;
}

done_testing();
