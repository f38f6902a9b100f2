# How pg_parallel_basebackup connects: whatever libpq can do for pg_basebackup it does for every
# connection of a parallel backup, by either way in.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

# It would be the name of every connection here, and the client's own shows in the servers' logs.
delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $target = "$tempdir/target";
# Three that fetch and one that streams; where the server has no replication commands, the one that
# asked for them too.
my $connections = 4 + stock_server();
my @client = ('pg_parallel_basebackup', '--no-sync', '--checkpoint' => 'fast', '-j' => 3, '-D' => $target);

# Over the socket and over TCP nobody but the superuser comes in without a password.
sub password_node
{
	my ($name, $password) = @_;
	my $node = parallel_node($name, extension => 1, conf => "listen_addresses = '127.0.0.1'\nlog_connections = on\n");

	$node->safe_psql('postgres', qq(
		CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
		SET password_encryption = 'scram-sha-256';
		CREATE ROLE backup LOGIN REPLICATION PASSWORD '$password';
		CREATE ROLE plain LOGIN PASSWORD '$password' IN ROLE pg_read_server_files;
		GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO plain;));
	may_back_up($node, 'backup');
	require_passwords($node);
	return $node;
}

sub require_passwords
{
	my ($node) = @_;

	write_file($node->data_dir . '/pg_hba.conf', <<HBA);
local all,replication backup,plain scram-sha-256
host all,replication backup,plain 127.0.0.1/32 scram-sha-256
local all,replication all trust
HBA
	$node->reload;
	return;
}

# A backup with these options and environment: on success pg_verifybackup is content, on failure
# the exit code is pg_basebackup's, and nothing is left.
sub backup
{
	my ($name, $options, $environment, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local %ENV = (%ENV, %{ $environment || {} });

	if ($params{fails})
	{
		command_checks_all([ @client, @$options ], 1, [qr/^$/], [ $params{fails} ], $name);
		ok(!-e $target, "$name: nothing is left");
		return;
	}
	command_ok([ @client, @$options ], $name);
	command_ok([ 'pg_verifybackup', $target ], "$name: pg_verifybackup");
	File::Path::remove_tree($target);
	return;
}

# The same, with its name, where several servers are there: all connections come to the one where the
# backup runs, but for the coordinator's look at those that it did not want ("looks"); returns which.
sub backup_of_one
{
	my ($name, $nodes, $options, $environment, $looks) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @from = map { -s $_->logfile } @$nodes;

	backup($name, $options, $environment);
	my (@reached, @others);
	for my $i (0 .. $#$nodes)
	{
		my $log = slurp_file($nodes->[$i]->logfile, $from[$i]);
		my $count = () = $log =~ /connection authorized: .*application_name=pg_parallel_basebackup/g;
		if ($log =~ /received (?:replication|parallel backup) command: START_BACKUP/) { push @reached, [ $nodes->[$i], $count ] }
		else { push @others, $count }
	}
	is_deeply([ [ map { $_->[1] } @reached ], \@others ], [ [$connections], [ map { $looks // 0 } @others ] ],
		"$name: all connections come to one server");
	return @reached ? $reached[0][0]->name : undef;
}

my $node = password_node('main', 'secret');
my ($host, $port) = ($node->host, $node->port);
my @here = ('-h' => $host, '-p' => $port);
my $escaped = $host =~ s/([^\w.-])/sprintf('%%%02X', ord $1)/ger;

# --- a password, by either way in: a role that may replicate, and one that has the procedures only
for my $case ([ 'backup', 'stream' ], [ 'plain', 'fetch' ])
{
	my ($user, $wal) = @$case;
	my @wal = ('-X' => $wal);
	my $passfile = "$tempdir/pass_$user";
	my $services = "$tempdir/services_$user";

	backup("$user: PGPASSWORD", [ @here, '-U' => $user, @wal ], { PGPASSWORD => 'secret' });
	backup("$user: PGPASSWORD and -w", [ @here, '-U' => $user, '-w', @wal ], { PGPASSWORD => 'secret' });

	# The first line that fits counts; the database is called replication where there is none.
	write_file($passfile, "$host:$port:elsewhere:$user:wrong\n$host:$port:replication:$user:secret\n$host:$port:postgres:$user:secret\n*:*:*:*:wrong\n");
	backup("$user: PGPASSFILE", [ @here, '-U' => $user, '-w', @wal ], { PGPASSFILE => $passfile });
	backup("$user: passfile", [ '-d' => "host=$host port=$port user=$user passfile=$passfile", '-w', @wal ]);
	# By TCP: found by the host's name, whatever its address.
	write_file($passfile, "localhost:$port:*:$user:secret\n");
	backup("$user: PGPASSFILE, TCP", [ '-h' => 'localhost', '-p' => $port, '-U' => $user, '-w', @wal ], { PGPASSFILE => $passfile });
	{
		my $home = "$tempdir/home_$user";
		mkdir $home;
		write_file("$home/.pgpass", "$host:$port:*:$user:secret\n");
		backup("$user: ~/.pgpass", [ @here, '-U' => $user, '-w', @wal ], { HOME => $home });
	}

	write_file($services, "[parallel]\nhost=$host\nport=$port\nuser=$user\npassword=secret\n[elsewhere]\nhost=$tempdir\nport=$port\nuser=$user\npassword=secret\n");
	backup("$user: service=", [ '-d' => 'service=parallel', '-w', @wal ], { PGSERVICEFILE => $services });
	backup("$user: PGSERVICE", [ '-w', @wal ], { PGSERVICEFILE => $services, PGSERVICE => 'parallel' });
	backup("$user: service= and -h", [ '-d' => 'service=elsewhere', '-h' => $host, '-w', @wal ], { PGSERVICEFILE => $services });
	backup("$user: a service that is not there", [ '-d' => 'service=missing', '-w', @wal ], { PGSERVICEFILE => $services },
		fails => qr/error: definition of service "missing" not found/);

	backup("$user: a URI", [ '-d' => "postgresql://$user:secret\@$escaped:$port/postgres", '-w', @wal ]);
	backup("$user: a URI with parameters", [ '-d' => "postgres:///?host=$escaped&port=$port&user=$user&password=secret&application_name=somebody", '-w', @wal ]);
	backup("$user: a URI over TCP", [ '-d' => "postgresql://$user:secret\@127.0.0.1:$port", '-w', @wal ]);

	backup("$user: the environment", [@wal], { PGHOST => $host, PGPORT => $port, PGUSER => $user, PGPASSWORD => 'secret', PGDATABASE => 'postgres' });
	backup("$user: options before the environment", [ @here, '-U' => $user, @wal ],
		{ PGHOST => $tempdir, PGPORT => 1, PGUSER => 'nobody', PGPASSWORD => 'secret' });

	# As pg_basebackup: exit code 1, libpq's words, and nothing touched.
	backup("$user: -w and no password", [ @here, '-U' => $user, '-w', @wal ], {},
		fails => qr/^pg_parallel_basebackup: error: connection to server .* failed: fe_sendauth: no password supplied$/m);
	backup("$user: a wrong password", [ @here, '-U' => $user, @wal ], { PGPASSWORD => 'wrong' },
		fails => qr/^pg_parallel_basebackup: error: connection to server .* FATAL:  password authentication failed for user "$user"$/m);
	backup("$user: a wrong password in a file", [ @here, '-U' => $user, '-w', @wal ],
		{ PGPASSFILE => do { write_file($passfile, "*:*:*:*:wrong\n"); $passfile } },
		fails => qr/FATAL:  password authentication failed for user "$user".*password retrieved from file "\Q$passfile\E"/s);
}

# --- asked for on a terminal, once for all connections
SKIP:
{
	skip 'no IO::Pty', 9 unless eval { require IO::Pty; 1 };
	for my $case ([ 'asked', 'secret', 0 ], [ '-W', 'secret', 0, '-W' ], [ 'asked, wrong', 'wrong', 1 ])
	{
		my ($name, $password, $status, @options) = @$case;
		my ($in, $out) = ('', '');
		my $handle = IPC::Run::start([ @client, @here, '-U' => 'backup', @options ],
			'<pty<' => \$in, '>pty>' => \$out, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
		$handle->pump until $out =~ /Password: /;
		$in = "$password\n";
		$handle->finish;
		is($handle->full_result(0) >> 8, $status, "$name: exit code") or diag($out);
		my $asked = () = $out =~ /Password: /g;
		is($asked, 1, "$name: once") or diag($out);
		is(-e $target ? 0 : 1, $status, "$name: " . ($status ? 'nothing is left' : 'a backup'));
		File::Path::remove_tree($target);
	}
}

# --- without a terminal, from standard input
for my $case ([ 'secret', 0 ], [ 'wrong', 1 ])
{
	my ($password, $status) = @$case;
	my ($in, $out, $err) = ("$password\n", '', '');
	my $handle = IPC::Run::start([ 'setsid', '--wait', @client, @here, '-U' => 'backup', '-W' ],
		'<' => \$in, '>' => \$out, '2>' => \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$handle->finish;
	is($handle->full_result(0) >> 8, $status, "no terminal, $password: exit code") or diag($err);
	like($err, $status ? qr/^Password: \n.*password authentication failed/ : qr/^Password: \n/, "no terminal, $password: asked");
	is(-e $target ? 0 : 1, $status, "no terminal, $password: " . ($status ? 'nothing is left' : 'a backup'));
	File::Path::remove_tree($target);
}

# --- several hosts
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->start;
	$node->wait_for_replay_catchup($standby);
	require_passwords($standby);
	# Another cluster: a backup would not be known to it.
	my $other = password_node('other', 'other secret');
	my $dead = PostgreSQL::Test::Cluster::get_free_port();
	my %password = (PGPASSWORD => 'secret');
	my @nodes = ($node, $standby);

	my $several = sub {
		my ($hosts, $ports, @more) = @_;
		return [ '-d' => join(' ', 'host=' . join(',', @$hosts), 'port=' . join(',', @$ports), 'user=backup', @more) ];
	};
	is(backup_of_one('the first host is dead', \@nodes,
			$several->([ $tempdir, '127.0.0.1', $host ], [ $dead, $dead, $port ]), \%password), 'main', 'the one that lives');
	is(backup_of_one('the first host is dead, a URI', \@nodes,
			[ '-d' => "postgresql://backup:secret\@127.0.0.1:$dead,127.0.0.1:$port/" ]), 'main', 'the one that lives');
	is(backup_of_one('the first host is dead, in the environment', \@nodes, [],
			{ %password, PGHOST => "$tempdir,$host", PGPORT => "$dead,$port", PGUSER => 'backup' }), 'main', 'the one that lives');
	is(backup_of_one('the first host is dead, as options', \@nodes,
			[ '-h' => "$tempdir,$host", '-p' => "$dead,$port", '-U' => 'backup' ], \%password), 'main', 'the one that lives');
	backup('all are dead', $several->([ $tempdir, '127.0.0.1' ], [ $dead, $dead ]), \%password,
		fails => qr/^pg_parallel_basebackup: error: connection to server on socket .* failed: .*connection to server at "127\.0\.0\.1", port $dead failed: /ms);

	# One port for all, and a host that has several names.
	is(backup_of_one('names and addresses', \@nodes,
			$several->([ 'nowhere.invalid', 'localhost' ], [$port], 'hostaddr=127.0.0.2,127.0.0.1'), \%password), 'main', 'the address that answers');

	# Which server it is depends on what is asked of it.
	my ($hosts, $ports) = ([ $host, $standby->host ], [ $port, $standby->port ]);
	for my $case ([ 'any', 'main', 0 ], [ 'read-write', 'main', 0 ], [ 'primary', 'main', 0 ],
		[ 'read-only', 'standby', 1 ], [ 'standby', 'standby', 1 ], [ 'prefer-standby', 'standby', 1 ])
	{
		my ($attributes, $expected, $looks) = @$case;
		is(backup_of_one("target_session_attrs=$attributes", \@nodes,
				$several->($hosts, $ports, "target_session_attrs=$attributes"), \%password, $looks), $expected, 'the one that was asked for');
	}
	is(backup_of_one('PGTARGETSESSIONATTRS', \@nodes, $several->($hosts, $ports), { %password, PGTARGETSESSIONATTRS => 'standby' }, 1),
		'standby', 'the one that was asked for');
	backup('no such server', $several->([$host], [$port], 'target_session_attrs=standby'), \%password,
		fails => qr/failed: server is not in hot standby mode/);

	# Either would do, but all connections must come to the same; each has its password.
	my $passfile = "$tempdir/pass_several";
	write_file($passfile, "$host:$port:*:backup:secret\n" . $other->host . ':' . $other->port . ":*:backup:other secret\n");
	for my $hosts ([ $node, $other ], [ $other, $node ])
	{
		is(backup_of_one('one of two clusters', [ $node, $other ],
				$several->([ map { $_->host } @$hosts ], [ map { $_->port } @$hosts ]), { PGPASSFILE => $passfile }), $hosts->[0]->name, 'the first');
	}
  SKIP:
	{
		# New in libpq of 16.
		skip 'no load_balance_hosts', 1 if server_major() < 16;
		for my $round (1 .. 4)
		{
			note(backup_of_one("load_balance_hosts, $round", [ $node, $other ],
					$several->([ map { $_->host } $node, $other ], [ map { $_->port } $node, $other ], 'load_balance_hosts=random'),
					{ PGPASSFILE => $passfile }));
		}
	}
	$_->stop for $other, $standby;
}

# --- a copy made so is one
{
	my $copy = PostgreSQL::Test::Cluster->new('copy');
	local %ENV = (%ENV, PGPASSWORD => 'secret');
	command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-D' => $copy->data_dir, '-d' => "postgresql://backup\@127.0.0.1:$port" ], 'a backup');
	start_copy($copy, conf => "listen_addresses = ''\n");
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20000, 'data of the copy');
	$copy->stop;
}

done_testing();
