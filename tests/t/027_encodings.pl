# Labels in the encoding of whatever database the procedures are called in.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Test;

my $node = parallel_node('main', extension => 1);

# Database, its encoding, the client's, a label as it is sent, and as it must be written.
for my $case (
	[ 'latin1', 'LATIN1', 'UTF8', "caf\xC3\xA9", "caf\xE9" ],
	[ 'latin1', 'LATIN1', 'LATIN1', "caf\xE9", "caf\xE9" ],
	[ 'ascii', 'SQL_ASCII', 'SQL_ASCII', "any \xE9\xFF\x80 bytes", "any \xE9\xFF\x80 bytes" ],
	[ 'postgres', 'UTF8', 'LATIN1', "caf\xE9", "caf\xC3\xA9" ])
{
	my ($database, $encoding, $client, $sent, $written) = @$case;
	my $name = "database in $encoding, client in $client";
	$node->safe_psql('postgres', "CREATE DATABASE $database ENCODING '$encoding' TEMPLATE template0")
	  if $node->safe_psql('postgres', "SELECT count(*) FROM pg_database WHERE datname = '$database'") eq '0';
	$node->safe_psql($database, 'CREATE EXTENSION IF NOT EXISTS pg_parallel_backup');

	my $conn = ParallelBackup::Connection->new($node, calls => 1, dbname => $database, options => { client_encoding => $client });
	my $start = start_backup($conn, LABEL => $sent);
	like($start->{labelfile}, qr/^LABEL: \Q$written\E$/m, "$name: the label, byte for byte");
	# Text that is valid wherever it is read, in ASCII where it cannot be had otherwise.
	(my $ascii = $written) =~ s/[^\x00-\x7F]/?/g;
	for my $reader ('postgres', 'latin1', 'ascii')
	{
		next if $node->safe_psql('postgres', "SELECT count(*) FROM pg_database WHERE datname = '$reader'") eq '0';
		$node->safe_psql($reader, 'CREATE EXTENSION IF NOT EXISTS pg_parallel_backup');
		my $look = ParallelBackup::Connection->new($node, dbname => $reader, options => { client_encoding => 'UTF8' });
		my $label = query_ok($look, 'SELECT label FROM parallel_backup.backups')->{results}[0]{rows}[0][0];
		my $same = $reader eq 'postgres' && $encoding eq 'UTF8';
		is($label, $same ? $written : $ascii, "$name: the view in $reader");
		is_error($look, "SELECT parallel_backup.cancel_backup(chr(233))", '42704', qr/^backup "%[0-9A-F%]+" does not exist$/, "$name: no such backup")
		  if $reader ne 'ascii';
		$look->close;
	}
	is(stop_backup($conn, WAIT => 'false')->{totals}{labelfile}, $start->{labelfile}, "$name: and in the end");
	$conn->close;
}

# A path that is no text in any encoding is malformed, as by the replication commands.
my $conn = ParallelBackup::Connection->new($node, calls => 1, dbname => 'ascii', options => { client_encoding => 'SQL_ASCII' });
start_backup($conn);
is_error($conn, "CALL parallel_backup.send_files_content(ARRAY['caf\xE9'])", '42602', qr/path/, 'a path that is not encoded');
$conn->close;

done_testing();
