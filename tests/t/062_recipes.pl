# The scripts in docs/recipes, as a reader would run them.

use strict;
use warnings FATAL => 'all';

use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Test;

my $recipes = "$ENV{PPB_ROOT}/docs/recipes";
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, init => { has_archiving => 1 });
$node->safe_psql('postgres', q(
	CREATE TABLE t AS SELECT generate_series(1, 20000) AS id;
	CREATE ROLE backup LOGIN REPLICATION PASSWORD 'secret';));
may_back_up($node, 'backup');
my $connstr = $node->connstr('postgres') . ' user=backup';

# Every script is in the table.
for my $script (glob("$recipes/*.sh"))
{
	my ($name) = $script =~ m{([^/]+)\z};
	like(slurp_file("$recipes/README.md"), qr/\[\Q$name\E\]\(\Q$name\E\)/, "$name is in the README");
}

# Patroni calls its methods so, and configures recovery itself.
{
	my $copy = PostgreSQL::Test::Cluster->new('patroni');
	my @call = ("$recipes/patroni.sh", '--jobs=3', '--scope=batman', '--role=replica', '--datadir=' . $copy->data_dir, "--connstring=$connstr");
	command_ok(\@call, 'patroni: it runs');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'patroni: pg_verifybackup');
	ok(!-e $copy->data_dir . '/standby.signal', 'patroni: recovery settings are not its affair');
	command_fails_like(\@call, qr/exists but is not empty/, 'patroni: fails where Patroni has not made room');
	$copy->set_standby_mode;
	start_copy($copy, conf => 'primary_conninfo = \'' . ($connstr =~ s/'/''/gr) . "'\narchive_mode = off\n");
	$node->safe_psql('postgres', 'INSERT INTO t VALUES (0)');
	$node->wait_for_replay_catchup($copy);
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20001, 'patroni: a standby');
	$copy->stop;
	command_fails_like([ "$recipes/patroni.sh", '--scope=batman' ], qr/--datadir and --connstring are needed/, 'patroni: arguments that are missing');
	command_fails([ "$recipes/patroni.sh", "--datadir=$tempdir/none", '--connstring=host=/nowhere' ], 'patroni: no primary');
	ok(!-e "$tempdir/none", 'patroni: no primary: nothing is left');
}

# Debian's layout: configuration in one tree, data in another.
{
	my $copy = PostgreSQL::Test::Cluster->new('debian');
	my $version = server_major();
	my ($conf, $data) = ("$tempdir/etc/$version/main", "$tempdir/var/$version/main");
	PostgreSQL::Test::Utils::system_or_bail('mkdir', '-p', $conf, "$tempdir/var/$version");
	# What pg_createcluster leaves there.
	PostgreSQL::Test::Utils::system_or_bail('initdb', '-D', $data, '-A', 'trust', '--no-sync', '--no-locale', '--wal-segsize=1');
	rename "$data/$_", "$conf/$_" or die "could not move $_: $!" for qw(postgresql.conf pg_hba.conf pg_ident.conf);
	append_to_file("$conf/postgresql.conf", <<CONF);
data_directory = '$data'		# use data in another directory
hba_file = '$conf/pg_hba.conf'
ident_file = '$conf/pg_ident.conf'
port = @{[ $copy->port ]}
listen_addresses = ''
unix_socket_directories = '@{[ $copy->host ]}'
max_connections = 30
max_wal_senders = 20
shared_preload_libraries = 'pg_parallel_backup'
CONF
	local $ENV{CONF_ROOT} = "$tempdir/etc";
	my @call = ("$recipes/debian-standby.sh", $version, 'main', $connstr, '-c' => 'fast', '-C', '-S' => 'standby1');
	command_fails([ @call[ 0 .. 2 ], 'host=/nowhere' ], 'debian: no primary');
	ok(-e "$data/PG_VERSION" && !-e "$data.new", 'debian: no primary: what was there is there');
	command_like(\@call, qr/now start it: pg_ctlcluster $version main start/, 'debian: it runs');
	ok(-e "$data/standby.signal", 'debian: a standby');
	# As pg_ctlcluster starts it: with the configuration's directory for the data's.
	system_log('pg_ctl', '-D', $data, '-l', "$tempdir/debian.log", '-w', '-o', "-c config_file=$conf/postgresql.conf", 'start');
	$node->safe_psql('postgres', 'INSERT INTO t VALUES (0)');
	my $count = $node->safe_psql('postgres', 'SELECT count(*) FROM t');
	ok($copy->poll_query_until('postgres', "SELECT pg_is_in_recovery() AND count(*) = $count FROM t"), 'debian: it follows the primary');
	is($copy->safe_psql('postgres', 'SHOW config_file'), "$conf/postgresql.conf", 'debian: by its own configuration');
	is($node->safe_psql('postgres', q(SELECT active FROM pg_replication_slots WHERE slot_name = 'standby1')), 't', 'debian: by its slot');
	command_fails_like(\@call, qr/the cluster runs/, 'debian: a cluster that runs is left alone');
	system_log('pg_ctl', '-D', $data, '-m', 'fast', '-w', 'stop');
	$node->safe_psql('postgres', q(SELECT pg_drop_replication_slot('standby1')));
}

# To a moment: what was committed before it is there, what came after is not.
{
	my $copy = PostgreSQL::Test::Cluster->new('moment');
	my $backup = "$tempdir/monday";
	command_ok([ 'pg_parallel_basebackup', '-D' => $backup, '-X' => 'none', '-c' => 'fast', '-d' => $connstr ], 'moment: a backup');
	$node->safe_psql('postgres', q(CREATE TABLE kept AS SELECT 1 AS one; SELECT pg_create_restore_point('before the mistake'); DROP TABLE t;));
	$node->safe_psql('postgres', 'SELECT pg_switch_wal()');
	my $segment = $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_current_wal_lsn() - 1)');
	$node->poll_query_until('postgres', "SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver") or die 'nothing is archived';
	my @call = ("$recipes/point-in-time.sh", $backup, $copy->data_dir, $node->archive_dir, "recovery_target_name = 'before the mistake'");
	command_ok(\@call, 'moment: it runs');
	start_copy($copy, conf => "archive_mode = off\n");
	ok($copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'moment: it ends');
	is($copy->safe_psql('postgres', 'SELECT count(*), (SELECT one FROM kept) FROM t'), $node->safe_psql('postgres', 'SELECT 20002, 1'), 'moment: as it was then');
	$copy->stop;
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $backup ], 'moment: the backup is as it was');
	# One that is damaged is not restored.
	append_to_file("$backup/PG_VERSION", 'x');
	$call[2] = "$tempdir/damaged";
	command_fails(\@call, 'moment: a damaged backup');
	ok(!-e "$tempdir/damaged", 'moment: a damaged backup is not restored');
	$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT generate_series(1, 20000) AS id');
}

# Night by night.
{
	my $directory = "$tempdir/nightly";
	mkdir $directory;
	write_file("$directory/20200101T000000Z-notes", 'not a backup');
	my @call = ("$recipes/nightly.sh", $directory, 2, $connstr, '-c' => 'fast');
	my @names;
	my $list = sub { return grep { /\A\d{8}T\d{6}Z\z/ } sort(slurp_dir($directory)) };
	for my $night (1 .. 3)
	{
		# The name has seconds.
		sleep 1 if grep { $_ eq strftime_utc() } @names;
		command_ok(\@call, "night $night");
		@names = $list->();
		is(scalar @names, $night < 2 ? 1 : 2, "night $night: so many are kept");
	}
	for my $name (@names)
	{
		is(JSON::PP::decode_json(slurp_file("$directory/$name.json"))->{outcome}, 'complete', "$name: its report");
		command_ok([ 'pg_verifybackup', "$directory/$name" ], "$name: pg_verifybackup");
	}
	is(scalar(grep { /\.json\z/ } slurp_dir($directory)), 2, 'reports of what has gone have gone');
	ok(-e "$directory/20200101T000000Z-notes", 'nothing else is touched');
	sleep 1;
	command_fails([ "$recipes/nightly.sh", $directory, 2, 'host=/nowhere' ], 'a night without a server');
	is_deeply([ $list->() ], \@names, 'a night without a server: nothing goes');
	command_fails_like([ "$recipes/nightly.sh", $directory, 0, $connstr ], qr/no number of backups to keep/, 'none to keep');
	my $copy = PostgreSQL::Test::Cluster->new('nightly');
	rename "$directory/$names[-1]", $copy->data_dir or die "could not move: $!";
	start_copy($copy, conf => "archive_mode = off\n");
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20000, 'data of the last night');
	$copy->stop;
}

# Through a pipe: gzip is everywhere.
{
	my $copy = PostgreSQL::Test::Cluster->new('stream');
	local $ENV{COMPRESS} = 'gzip -1';
	mkdir $copy->data_dir, 0700 or die 'could not create directory: ' . $copy->data_dir;
	command_ok([ 'bash', '-c', 'set -o pipefail; "$1" "$2" -c fast | gzip -dc | tar -x -C "$3"', 'bash', "$recipes/stream.sh", $connstr, $copy->data_dir ], 'stream: it runs');
	command_ok([ 'pg_verifybackup', $copy->data_dir ], 'stream: pg_verifybackup');
	start_copy($copy, conf => "archive_mode = off\n");
	is($copy->safe_psql('postgres', 'SELECT count(*) FROM t'), 20000, 'stream: data of the copy');
	$copy->stop;
	command_fails([ 'bash', '-c', '"$1" host=/nowhere >/dev/null', 'bash', "$recipes/stream.sh" ], 'stream: the exit code is that of the backup');
}

sub strftime_utc
{
	my @now = gmtime;
	return sprintf('%04d%02d%02dT%02d%02d%02dZ', $now[5] + 1900, $now[4] + 1, @now[ 3, 2, 1, 0 ]);
}

done_testing();
