# How pg_parallel_basebackup finds its way in, and what it says where there is none.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '--verbose');
my $by_commands = qr/using replication commands\n/;
# Before 16 in other words.
my $not_replication = qr/permission denied to start WAL sender|must be superuser or replication role to start walsender/;
my $by_calls = qr/using the SQL procedures of the extension over ordinary connections\n/;

sub sections
{
	my ($node, $replication) = @_;

	# Who may connect, without and with replication.
	my @hba = ("local all all trust\n");
	push @hba, "local replication all trust\n" if $replication;
	write_file($node->data_dir . '/pg_hba.conf', join('', @hba));
	$node->reload;
	return;
}

{
	my $patched = !stock_server();
	my $server = $patched ? 'patched' : 'stock';
	my $node = parallel_node($server, extension => 0);
	my $backup = sub {
		my ($name, $message, $options, %params) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		my $target = "$tempdir/$server";
		$node->command_checks_all([ @client, '-D' => $target, @$options ],
			$params{fails} ? 1 : 0, [qr/^$/], [ ref $message eq 'ARRAY' ? @$message : $message ], "$server: $name");
		if ($params{fails}) { ok(!-e $target, "$server: $name: nothing is left") }
		else
		{
			command_ok([ 'pg_verifybackup', '--no-parse-wal', $target ], "$server: $name: pg_verifybackup");
			File::Path::remove_tree($target) unless $params{keep};
		}
	};

	sections($node, 1);
	$backup->('no extension', qr/error: database "postgres" does not have the procedures of the extension pg_parallel_backup\n.*hint: Run CREATE EXTENSION pg_parallel_backup/s, [], fails => 1)
	  unless $patched;
	$node->safe_psql('postgres', q(
		CREATE DATABASE elsewhere;
		CREATE EXTENSION pg_parallel_backup;
		CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
		CREATE ROLE plain LOGIN IN ROLE pg_read_server_files;
		CREATE ROLE nobody LOGIN;
		CREATE ROLE streamer LOGIN REPLICATION;
		GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO plain;));

	my $way = $patched ? $by_commands : $by_calls;
	$backup->('-X stream', $way, [ '-X' => 'stream' ]);
	$backup->('-X fetch', $way, [ '-X' => 'fetch' ]);
	$backup->('one connection', $way, [ '-X' => 'none', '-j' => 1 ]);
	$backup->('a database that is named', $way, [ '-X' => 'fetch', '-d' => 'dbname=postgres' ]);
	if (!$patched)
	{
		$backup->('a database without the extension', qr/error: database "elsewhere" does not have the procedures/, [ '-d' => 'dbname=elsewhere' ], fails => 1);
		$backup->('a role without the grants', qr/error: role "streamer" may not execute the procedures .* in database "postgres"\n.*hint: .*GRANT EXECUTE/s, [ '-U' => 'streamer' ], fails => 1);
	}

	# A role that may not replicate.
	$backup->('a plain role', $by_calls, [ '-X' => 'fetch', '-U' => 'plain' ]);
	$backup->('a plain role that wants to stream', [ $not_replication, qr/hint: With -X fetch/ ], [ '-U' => 'plain' ], fails => 1);
	$backup->('a role without any right', [ $not_replication, qr/hint: Nor can .* role "nobody" may not execute/ ], [ '-X' => 'fetch', '-U' => 'nobody' ], fails => 1);

	# Servers that let nobody in for replication.
	if ($patched)
	{
		$node->command_ok([ @client, '-D' => "$tempdir/by_commands", '-X' => 'none' ], 'a copy by commands');
	}
	sections($node, 0);
	$backup->('no replication, -X stream', [ qr/no pg_hba\.conf entry for replication connection/, qr/hint: With -X fetch/ ], [ '-X' => 'stream' ], fails => 1);
	$backup->('no replication, -X none', $by_calls, [ '-X' => 'none' ], keep => 1);
	if ($patched)
	{
		compare_trees("$tempdir/by_commands", "$tempdir/$server", 'the same directory by both ways',
			differ => { map { $_ => 'of another moment' } qw(backup_label backup_manifest global/pg_control pg_hba.conf) });
	}
	File::Path::remove_tree("$tempdir/$server");
	my $copy = PostgreSQL::Test::Cluster->new("copy_of_$server");
	$node->command_checks_all([ @client, '-D' => $copy->data_dir, '-X' => 'fetch', '-U' => 'plain' ], 0, [qr/^$/], [$by_calls], "$server: no replication, -X fetch");
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$server: no replication, -X fetch: pg_verifybackup");
	start_copy($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20000, "$server: no replication, -X fetch: data of the copy");
	$copy->stop;

	# Nothing loaded.
	sections($node, 1);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
	$node->restart;
	$backup->('not loaded', [ qr/error: the server has not loaded the library pg_parallel_backup/, qr/hint: Install .*shared_preload_libraries.*CREATE EXTENSION/ ], [], fails => 1);
	sections($node, 0);
	$backup->('not loaded, no replication', [ qr/no pg_hba\.conf entry for replication connection/, qr/hint: .*has not loaded the library/ ], [ '-X' => 'none' ], fails => 1);
	$node->stop;
}

done_testing();
