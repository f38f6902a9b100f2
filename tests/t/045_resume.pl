# A backup whose client is interrupted or dies, and that another goes on with: --resume. The first part has what can be
# waited for, the second kills the client at random moments: a few here, make check-lease ROUNDS=50 for many. They come from
# a random number that is printed, and can be given by SEED.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();
use ParallelBackup::Client;
use ParallelBackup::Disturbance;
use ParallelBackup::Lease;
use ParallelBackup::Test;

delete $ENV{PGAPPNAME};
my $kills = $ENV{ROUNDS} || 4;
my $seed = $ENV{SEED} || int rand 1_000_000;
srand $seed;
note("SEED=$seed ROUNDS=$kills");

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my ($journal, $claim) = ('pgsql_tmp.pg_parallel_basebackup.resume', 'pgsql_tmp.pg_parallel_basebackup');
my $node = lease_node('main', segsize => 1, conf => q(
checkpoint_timeout = 1h
max_replication_slots = 10
max_worker_processes = 12
wal_keep_size = 0
));
mkdir "$tempdir/ts" or die $!;
sql($node, "CREATE TABLESPACE ts LOCATION '$tempdir/ts'");
sql($node, q(CREATE TABLE spaced TABLESPACE ts AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 5000) g));
$node->command_ok([ 'pgbench', '--quiet', '--initialize', '--scale' => 2, '--no-vacuum', 'postgres' ], 'pgbench tables');
my $load = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client' => 1, '--time' => 100_000, '--rate' => 50, '-h' => $node->host, '-p' => $node->port, 'postgres' ],
	'>' => \my $out, '2>' => \my $err);
my $number = 0;
my ($copy, $target);
our @client;

# The next backup has directories of its own.
sub next_backup
{
	$number++;
	$copy = PostgreSQL::Test::Cluster->new("copy$number");
	$target = $copy->data_dir;
	@client = ('pg_parallel_basebackup', '-v', '-c' => 'fast', '--lease' => 120, '-D' => $target, '-T' => "$tempdir/ts=$tempdir/ts$number", @_);
	return;
}

sub run_client
{
	my $run = start_client($node, @client, @_);
	my $code = client_ended($run);

	return ($code, $run->{err});
}

# One that has received some files, and what the backup is called.
sub under_way
{
	my (@options) = @_;
	my $run = start_client($node, @client, '-r' => '6M', @options);

	$node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM parallel_backup.backups WHERE files > 100') or die "no files: $run->{err}";
	$run->{id} = sql($node, 'SELECT backup_id FROM parallel_backup.backups');
	return $run;
}

sub is_good
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(join(' ', grep { /^pgsql_tmp/ } map { slurp_dir($_) } $target, "$tempdir/ts$number"), '', "$name: neither claims nor journal");
	command_ok([ 'pg_verifybackup', $target ], "$name: pg_verifybackup");
	start_copy($copy, conf => "autovacuum = off\n");
	is($copy->safe_psql('postgres', q(
		SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
		AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)
		AND (SELECT count(*) FROM pgbench_accounts) = 200000 AND (SELECT count(*) FROM spaced) = 5000)), 't', "$name: sums");
	$copy->stop('immediate');
	File::Path::remove_tree($target, "$tempdir/ts$number");
	return;
}

# --- interrupted
{
	next_backup();
	my $run = under_way();
	$run->{handle}->signal('INT');
	is(client_ended($run), 3, 'interrupted: exit code');
	like($run->{err}, qr/error: backup was interrupted\n\S+ hint: To go on with it, run the same command with --resume within 120 seconds\. To give it up, run SELECT parallel_backup\.cancel_backup\('$run->{id}'\) on the server, and remove everything in directory "\Q$target\E"\.$/m, 'interrupted: what can be done');
	wait_until($node, "SELECT NOT attached FROM parallel_backup.backups WHERE backup_id = '$run->{id}'", 'interrupted: the server keeps it');

	my ($code, $stderr) = run_client();
	is($code, 1, 'a new one: exit code');
	like($stderr, qr/error: directory "\Q$target\E" is in use by another backup\n.*\n\S+ hint: .*go on with it by the same command with --resume, or remove everything/, 'a new one is told');

	# Not the same command: nothing is touched.
	for my $other ([ [ '--manifest-checksums=SHA256' ], qr/error: the backup in directory "\Q$target\E" was begun with checksums of algorithm CRC32C$/m ],
		[ [ '-T' => "$tempdir/ts=$tempdir/elsewhere" ], qr/error: could not create symbolic link "\Q$target\E\/pg_tblspc\/\d+": File exists$/m, 1 ],
		[ [ "--waldir=$tempdir/wal" ], qr/error: could not create symbolic link "\Q$target\E\/pg_wal": File exists$/m ])
	{
		my ($options, $words, $first) = @$other;
		# The first mapping of a directory counts.
		local @client = grep { !$first || $_ ne "-T" && !/=\Q$tempdir\E/ } @client;
		($code, $stderr) = run_client('--resume', @$options);
		is($code, 1, "@$options: exit code");
		like($stderr, $words, "@$options: error");
		is(row($node, 'state', $run->{id}), 'running', "@$options: it is still there");
	}
	ok(!-e "$tempdir/elsewhere" && !-e "$tempdir/wal", 'and nothing is left of them');

	my $again = start_client($node, @client, '--resume', '-r' => '6M');
	wait_until($node, "SELECT attached FROM parallel_backup.backups WHERE backup_id = '$run->{id}'", 'resumed: it is attached');
	($code, $stderr) = run_client('--resume');
	is($code, 1, 'two at once: exit code');
	like($stderr, qr/error: the backup in directory "\Q$target\E" is still running$/m, 'two at once: error');
	is(client_ended($again), 0, 'resumed: exit code');
	like($again->{err}, qr/: going on with backup $run->{id}$/m, 'resumed: it is the same');
	my ($there) = $again->{err} =~ /: files that are there already: (\d+)$/m;
	my ($received) = $again->{err} =~ /: received \d+ bytes in (\d+) files/;
	cmp_ok($there, '>', 50, 'resumed: files were there');
	cmp_ok($received, '>', 50, 'resumed: others came');
	nothing_left($node, 'resumed');
	is_good('resumed');
}

# --- interrupted, and not to be gone on with
{
	next_backup();
	my $run = under_way('--no-resume');
	ok(!-e "$target/$journal", '--no-resume: no journal');
	$run->{handle}->signal('INT');
	is(client_ended($run), 1, '--no-resume: exit code');
	nothing_left($node, '--no-resume');
	ok(!-e $target && !-e "$tempdir/ts$number", '--no-resume: nothing is left here');

	my ($code, $stderr) = run_client('--resume');
	is($code, 1, 'nothing to resume: exit code');
	like($stderr, qr/error: there is no backup to resume in directory "\Q$target\E"$/m, 'nothing to resume: error');
	ok(!-e $target, 'nothing to resume: nothing is made');
}

# --- what cannot be gone on with
{
	next_backup();
	my ($code, $stderr) = run_client('--resume', '-Ft');
	is($code, 1, 'archives: exit code');
	like($stderr, qr/error: only backups in plain format can be resumed$/m, 'archives: error');
	local @client = grep { $_ ne '--lease' && $_ ne '120' } @client;
	($code, $stderr) = run_client('--resume', '-i' => "$tempdir/backup_manifest");
	is($code, 1, 'increments: exit code');
	like($stderr, qr/error: --resume and --incremental are incompatible options$/m, 'increments: error');
	ok(!-e $target, 'nothing is made');
}

# --- killed, and what is gone on with is not what was left: another cluster, another directory, another journal
{
	my $elsewhere = lease_node('elsewhere');
	next_backup();
	my $run = under_way();
	kill_client($run);
	my $before = file_tree($target);
	my $untouched = sub {
		my ($name, $words, @options) = @_;
		my ($code, $stderr) = run_client('--resume', @options);

		is($code, 1, "$name: exit code");
		like($stderr, $words, "$name: error");
		is(row($node, 'state', $run->{id}), 'running', "$name: it is still there");
		return;
	};
	$untouched->('another cluster', qr/error: the backup in directory "\Q$target\E" was begun of another cluster\n\S+ detail: Its system identifier is \d+, that of this server \d+\.$/m,
		'-d' => $elsewhere->connstr('postgres'));
	$elsewhere->stop;
	compare_trees($before, $target, 'another cluster: nothing is touched');

	rename $target, "$target.away" or die $!;
	mkdir $target, 0700 or die $!;
	$untouched->('another directory', qr/error: there is no backup to resume in directory "\Q$target\E"$/m);
	is(join(' ', sort { $a cmp $b } slurp_dir($target)), '. ..', 'another directory: nothing is touched');
	rename "$target.away/$journal", "$tempdir/journal" or die $!;
	symlink "$tempdir/journal", "$target/$journal" or die $!;
	$untouched->('a link in place of the journal', qr/error: could not open file "\Q$target\E\/\Q$journal\E": Too many levels of symbolic links$/m);
	unlink "$target/$journal" or die $!;
	rmdir $target or die $!;
	rename "$target.away", $target or die $!;

	my $text = slurp_file("$tempdir/journal");
	for my $damaged ([ 'the first byte', $text =~ s/^./X/r ], [ 'its name', $text =~ s/^backup ([0-9a-f])/'backup ' . ($1 eq '0' ? 1 : 0)/mer ], [ 'all of it', '' ])
	{
		write_file("$target/$journal", $damaged->[1]);
		$untouched->("a journal without $damaged->[0]", qr/error: there is no backup to resume in directory "\Q$target\E"$/m);
	}
	write_file("$target/$journal", $text);
	my ($code, $stderr) = run_client('--resume');
	is($code, 0, 'and the right one: exit code') or diag($stderr);
	nothing_left($node, 'the right one');
	is_good('the right one');
}

# --- killed, and the server has given the backup up
{
	next_backup();
	my $run = under_way();
	kill_client($run);
	my ($code, $stderr) = run_client();
	is($code, 1, 'killed, a new one: exit code');
	sql($node, "SELECT parallel_backup.cancel_backup('$run->{id}')");
	my $before = file_tree($target);
	($code, $stderr) = run_client('--resume');
	is($code, 1, 'given up: exit code');
	like($stderr, qr/error: the backup that was begun in directory "\Q$target\E" does not exist on the server any more\n\S+ detail: ERROR: +parallel backup "$run->{id}" does not exist(?:\n.*)*hint: It cannot be gone on with\. Remove everything in the directory, and begin a new backup without --resume\.$/m, 'given up: error');
	compare_trees($before, $target, 'given up: nothing is touched');
	nothing_left($node, 'given up');
	File::Path::remove_tree($target, "$tempdir/ts$number");
}

# --- killed, and files have suffered
{
	next_backup('-R');
	my $run = under_way();
	kill_client($run);
	my @recorded = map { /^f \S+ \S+ \S+ \S+ (\S+) / ? $1 : () } split /\n/, slurp_file("$target/$journal");
	cmp_ok(scalar @recorded, '>', 50, 'suffered: files are recorded');
	my ($cut, $changed, $gone, $mode) = grep { -s "$target/$_" && /base/ } @recorded;
	truncate("$target/$cut", (-s "$target/$cut") / 2) or die $!;
	{
		open my $file, '+<:raw', "$target/$changed" or die $!;
		seek $file, 100, 0;
		print $file 'changed';
	}
	unlink "$target/$gone" or die $!;
	chmod 0400, "$target/$mode";
	write_file("$target/base/5/999999", 'of no use');
	append_to_file("$target/$journal", 'f 600 1 1 00000000 base/5/99999');
	my ($code, $stderr) = run_client('--resume');
	is($code, 0, 'suffered: exit code') or diag($stderr);
	like($stderr, qr/warning: files that are not as they were received, and are fetched again: 3$/m, 'suffered: which ones are told');
	nothing_left($node, 'suffered');
	unlink "$target/standby.signal";
	is_good('suffered');
}

# --- killed when the server has stopped the backup already: files cannot come again
for my $damaged (0, 1)
{
	my $name = $damaged ? 'stopped, damaged' : 'stopped';
	next_backup('-X' => 'fetch');
	my $network = ParallelBackup::Disturbance->new(node => $node, dir => "$tempdir/network$damaged", plan => [ { phase => 'wal', after => 0, how => 'stall', for => 1000 } ]);
	my $run = start_client($node, @client, '-j' => 1, '-d' => "host=127.0.0.1 port=@{[ $network->port ]} dbname=postgres");
	wait_until($node, q(SELECT count(*) = 1 FROM parallel_backup.backups WHERE state = 'stopped'), "$name: it is");
	Time::HiRes::sleep(0.1) until $network->happened;
	kill_client($run);
	$network->stop;
	truncate("$target/PG_VERSION", 1) or die $! if $damaged;
	my ($code, $stderr) = run_client('--resume');
	is($code, $damaged, "$name: exit code");
	like($stderr, qr/error: (?:.*: )?files in directory "\Q$target\E" are not as they were received, and cannot be fetched again: 1$/m, "$name: error") if $damaged;
	nothing_left($node, $name);
	if ($damaged) { is(join(' ', -e $target ? slurp_dir($target) : ()), -e $target ? '. ..' : '', "$name: nothing is left here"); File::Path::remove_tree($target, "$tempdir/ts$number") }
	else { is_good($name) }
}

# --- killed at random moments, and what is there damaged now and then
my ($done, $backups) = (0, 0);
while ($done < $kills)
{
	my $wal = (qw(stream fetch))[ int rand 2 ];
	next_backup('-X' => $wal, '-j' => 1 + int rand 4, '-r' => '30M', rand() < 0.3 ? "--waldir=$tempdir/wal" : (), rand() < 0.3 ? '--manifest-checksums=SHA256' : ());
	my (@resume, $code);
	while (1)
	{
		my $run = start_client($node, @client, @resume);
		my $moment = $done < $kills ? rand(1.5) ** 2 : undef;
		if (defined $moment)
		{
			my $until = Time::HiRes::time() + $moment;
			while (Time::HiRes::time() < $until && $run->{handle}->pumpable) { $run->{handle}->pump_nb; Time::HiRes::sleep(0.01) }
			$run->{handle}->signal('KILL') if $run->{handle}->pumpable;
		}
		$code = client_ended($run);
		last if $code ne 'signal 9';
		$done++;
		if (!-s "$target/$journal")
		{
			# Not begun: there is nothing to go on with, here or on the server.
			my ($none, $stderr) = run_client('--resume');
			is($none, 1, "killed at the beginning: $moment s") or diag($stderr);
			File::Path::remove_tree($target, "$tempdir/ts$number", "$tempdir/wal");
			$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM parallel_backup.backups WHERE state = 'starting')) or die;
			sql($node, 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups');
			nothing_left($node, 'killed at the beginning');
			@resume = ();
			next;
		}
		@resume = '--resume';
		my $text = slurp_file("$target/$journal");
		next if $text =~ /^complete /m;
		my @recorded = map { /^f \S+ [1-9]\d* \S+ \S+ (\S+) / ? $1 : () } split /\n/, $text;
		for my $name (map { $recorded[ rand @recorded ] } @recorded ? 1 .. rand 4 : ())
		{
			# One that had suffered before may have gone since.
			my $size = -s "$target/$name" or next;
			truncate("$target/$name", int rand $size) or die "$name: $!";
			# A file system may know a file's size before it has its bytes on disk.
			truncate("$target/$name", $size) or die "$name: $!" if rand() < 0.5;
		}
		if (rand() < 0.3 && @recorded > 10)
		{
			my $size = -s "$target/$journal";
			truncate("$target/$journal", $size - int rand 200) or die $!;
			truncate("$target/$journal", $size) or die $! if rand() < 0.5;
		}
	}
	$backups++;
	is($code, 0, "backup $backups, $done kills: exit code") or diag("SEED=$seed ROUNDS=$kills");
	nothing_left($node, "backup $backups");
	last if $code;
	is_good("backup $backups");
	File::Path::remove_tree("$tempdir/wal");
}
note("$done kills of $backups backups");

$load->signal('TERM');
$load->finish;
$node->stop;
done_testing();
