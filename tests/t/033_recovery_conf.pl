# --write-recovery-conf: the same primary_conninfo as pg_basebackup writes, however the connection was
# given, by either way in.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, conf => "listen_addresses = '127.0.0.1'\n");
write_file($node->data_dir . '/pg_hba.conf', "local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n");
$node->reload;
my $dead = PostgreSQL::Test::Cluster::get_free_port();
my $passfile = "$tempdir/pass";
write_file($passfile, "*:*:*:*:secret\n");

# What a program has written into the settings of its copy, and the way that it took.
sub written
{
	my ($program, $options, $environment) = @_;
	local %ENV = (%ENV, %$environment);
	delete $ENV{$_} for grep { !defined $ENV{$_} } keys %ENV;
	my $target = "$tempdir/target";
	my $stderr = '';

	IPC::Run::run([ $program, '--no-sync', '-v', '-R', '-c' => 'fast', '-X' => 'none', '-D' => $target, @$options ], '2>' => \$stderr)
	  or BAIL_OUT("$program failed: $stderr");
	my @lines = grep { /^primary_/ } split /\n/, slurp_file("$target/postgresql.auto.conf");
	File::Path::remove_tree($target);
	return (join("\n", @lines), $stderr =~ /using the SQL procedures/ ? 1 : 0);
}

# By way of a network that says "of" where the server says that it has the replication grammar.
my $proxy = ParallelBackup::Proxy->new(server => $node->port, find => "\0\1\0\0\0\2on", at => 7, xor => 8, always => 1, flag => "$tempdir/flag");
for my $way ([ 'directly', $node->port, stock_server() ], [ 'by procedures', $proxy->port, 1 ])
{
	my ($way, $port, $procedures) = @$way;
	my $services = "$tempdir/services_$port";
	write_file($services, "[main]\nhost=127.0.0.1\nport=$port\nuser=postgres\ndbname=postgres\nkeepalives_idle=7\nkeepalives_count=3\nconnect_timeout=30\nsslmode=disable\n");
	my %services = (PGSERVICEFILE => $services);

	for my $case (
		[ '-h and -p', [ '-h' => '127.0.0.1', '-p' => $port, '-U' => 'postgres' ] ],
		[ 'a URI of two hosts', [ '-d' => "postgresql://postgres:it%27s\@127.0.0.1:$dead,127.0.0.1:$port/postgres?sslmode=disable&target_session_attrs=any" ] ],
		[ 'PGHOST of two hosts', [], { PGHOST => '127.0.0.1,localhost', PGPORT => "$dead,$port", PGUSER => 'postgres', PGDATABASE => 'postgres' } ],
		[ 'hostaddr', [ '-d' => "host=nowhere.invalid,here hostaddr=127.0.0.1,127.0.0.1 port=$dead,$port user=postgres sslmode=disable" ] ],
		[ 'service=', [ '-d' => 'service=main' ], \%services ],
		[ 'service= and -p', [ '-d' => 'service=main', '-h' => '127.0.0.1,127.0.0.1', '-p' => "$dead,$port" ], \%services ],
		[ 'PGSERVICE', [], { %services, PGSERVICE => 'main', PGHOST => undef, PGPORT => undef } ],
		[ 'PGPASSFILE', [ '-h' => '127.0.0.1', '-p' => $port ], { PGPASSFILE => $passfile, PGUSER => 'postgres' } ],
		[ 'keepalives, PGOPTIONS and PGPASSWORD', [ '-d' => "host=127.0.0.1 port=$port user=postgres keepalives_interval=4 application_name='some body'" ],
			{ PGOPTIONS => '-c work_mem=1MB', PGPASSWORD => q(it's\\) } ])
	{
		my ($name, $options, $environment) = @$case;
		# What the second connection makes of it is seen by the other way.
		next unless $procedures || $name =~ /two hosts|service=/;
		my ($theirs) = written('pg_basebackup', $options, $environment || {});
		my ($ours, $by_procedures) = written('pg_parallel_basebackup', $options, $environment || {});
		like($theirs, qr/^primary_conninfo = '.*$port/, "$way, $name: pg_basebackup's");
		is($ours, $theirs, "$way, $name: the same");
		is($by_procedures, $procedures, "$way, $name: by that way");
	}
}

$node->stop;
done_testing();
