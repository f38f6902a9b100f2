# pg_parallel_restore from an object store of others' making: a chain that is found there, requests that fail, bytes that
# change on their way, list and prune.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();
use ParallelBackup::ObjectStore;
use ParallelBackup::Test;

plan skip_all => 'NOT TESTED: PPB_NO_OBJECTS says that no object store is to be had' if $ENV{PPB_NO_OBJECTS};

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $has_increments = server_major() >= 17;
my $node = parallel_node('main', extension => 1, conf => $has_increments ? "summarize_wal = on\n" : '');
my $store = object_store('restore');
my @environment = ('env', $store->environment);
my $secret = qr/verySecretAccessKey|AKIATESTKEYID/;
my $outputs = '';

# What does not get smaller: objects of several ranges.
$node->safe_psql('postgres', q(CREATE TABLE t AS SELECT g AS id, 0 AS n, (SELECT string_agg(md5(g::text || n), '') FROM generate_series(1, 30) n) AS filler FROM generate_series(1, 30000) g));
my $query = 'SELECT count(*), sum(hashtext(t::text)) FROM t';
my @backup = (@environment, 'pg_parallel_basebackup', '--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'), '--volumes=64MB');

my (%data, $prior);
my @week = ([ 'full' ], [ 'one', 'full' ], [ 'b' ]);
@week = grep { @$_ == 1 } @week unless $has_increments;
for my $day (@week)
{
	my ($name, $from) = @$day;
	$node->command_ok([ @backup, '-D' => "s3://restore/main/$name", $name eq 'b' ? ('-Z' => 'server-zstd:1') : (), $from ? ('-i' => "s3://restore/main/$from/backup_manifest") : () ], "backup $name");
	$data{$name} = $node->safe_psql('postgres', $query);
	$node->safe_psql('postgres', 'UPDATE t SET n = n + 1 WHERE id % 100 = 7');
}

# The manifest that an increment goes on from is an object, and what comes of requests for it.
if ($has_increments)
{
	my @increment = ('pg_parallel_basebackup', '--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'), '--no-sync', '-D' => "$tempdir/increment", '-X' => 'none');
	my $manifest = 's3://restore/main/full/backup_manifest';
	for my $case (
		[ 'no object', qr{error: object "s3://restore/main/full" does not exist\n\S+: hint: The manifest of a backup below "s3://restore/main/full" is "\Q$manifest\E"\.$}m, 's3://restore/main/full' ],
		[ 'no backup', qr{error: object "s3://restore/none/backup_manifest" does not exist$}m, 's3://restore/none/backup_manifest' ],
		[ 'flipped', qr{error: could not upload manifest: ERROR:  .*manifest}, $manifest, method => qr/^GET/, flip => 1 ],
		[ 'denied', qr{error: could not read "\Q$manifest\E": permission denied: No, on purpose \(AccessDenied\)$}m, $manifest, method => qr/^GET/, answer => 403 ])
	{
		my ($name, $words, $url, %fault) = @$case;
		my $proxy = %fault ? ParallelBackup::ObjectStore::Proxy->new(store => $store, path => qr/manifest/, %fault) : undef;
		my ($stdout, $stderr) = run_command([ 'env', $store->environment($proxy), @increment, '-i' => $url ]);
		like($stderr, $words, "the prior's manifest, $name: what it says");
		unlike($stderr, $secret, "the prior's manifest, $name: no secret is said");
		ok(!-e "$tempdir/increment", "the prior's manifest, $name: nothing is left");
		is($node->safe_psql('postgres', 'SELECT count(*) FROM parallel_backup.backups'), 0, "the prior's manifest, $name: no backup");
		$proxy->stop if $proxy;
	}
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, log => "$tempdir/prior.log", method => qr/^GET/, path => qr/manifest/, cut => 'body', count => 1);
	$node->command_ok([ 'env', $store->environment($proxy), @increment, '-i' => $manifest ], q(the prior's manifest, cut: asked for again));
	$proxy->stop;
	like(slurp_file("$tempdir/prior.log"), qr/ disturbed$/m, q(the prior's manifest, cut: it was));
	ok(-e "$tempdir/increment/base/5/INCREMENTAL.1259", q(the prior's manifest: an increment));
	File::Path::remove_tree("$tempdir/increment");
	# A signal is heard while it is waited for.
	my $log = "$tempdir/held.log";
	$proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, log => $log, method => qr/^GET/, path => qr/manifest/, hold => "$tempdir/goes_on");
	my $run = IPC::Run::start([ 'env', $store->environment($proxy), @increment, '-i' => $manifest ], '<' => \undef, '2>' => \my $stderr, IPC::Run::timeout(300));
	for (1 .. 3000) { last if -e $log && slurp_file($log) =~ / disturbed$/m; $run->pump_nb; Time::HiRes::sleep(0.1) }
	$run->signal('TERM');
	$run->finish;
	is(($run->results)[0], 1, q(the prior's manifest, a signal: exit code));
	like($stderr, qr/error: backup was interrupted\n/, q(the prior's manifest, a signal: what it says));
	ok(!-e "$tempdir/increment", q(the prior's manifest, a signal: nothing is left));
	write_file("$tempdir/goes_on", '');
	$proxy->stop;
	command_fails_like([ @environment, @increment, '-i' => 's3://restore' ], qr{error: "s3://restore" is a bucket and no manifest$}m, 'a bucket is no manifest');
	$node->command_ok([ @environment, @increment, '--dry-run', '-i' => $manifest ], q(the prior's manifest: --dry-run));
}

# restore(name, code, words, proxy, arguments): what is said is looked at for secrets in the end.
sub restore
{
	my ($name, $code, $words, $proxy, @arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $run = IPC::Run::start([ 'env', $store->environment($proxy), 'pg_parallel_restore', '--no-sync', '-D' => "$tempdir/copy", @arguments ],
		'<' => \undef, '>' => \my $stdout, '2>' => \my $stderr, IPC::Run::timeout(300));
	$run->finish;
	is(($run->results)[0], $code, "$name: exit code");
	like($stderr, $words, "$name: what it says");
	ok(!-e "$tempdir/copy", "$name: nothing is left") if $code;
	$outputs .= $stdout . $stderr;
	return;
}

sub is_good
{
	my ($name, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");

	command_ok([ 'pg_verifybackup', "$tempdir/copy" ], "$name: pg_verifybackup");
	rename "$tempdir/copy", $copy->data_dir or die $!;
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir);
	return;
}

for my $name (map { $_->[0] } @week)
{
	restore($name, 0, qr/^\z/, undef, "s3://restore/main/$name");
	is_good($name, $data{$name});
}

# Once something fails it is tried again.
for my $case (
	[ 'five_hundreds', method => qr/^GET/, path => qr/tar/, count => 3, answer => 500 ],
	[ 'cut_answers', method => qr/^GET|^HEAD/, path => qr/tar|index|manifest/, count => 4, cut => 'answer' ],
	[ 'cut_bodies', method => qr/^GET/, path => qr/tar/, count => 3, cut => 'body' ])
{
	my ($name, %fault) = @$case;
	my $log = "$tempdir/$name.log";
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, log => $log, %fault);
	restore($name, 0, qr/^\z/, $proxy, 's3://restore/main/full');
	$proxy->stop;
	like(slurp_file($log), qr/ disturbed$/m, "$name: requests were disturbed");
	is_good($name, $data{full});
}

# What stays wrong ends it.
for my $case (
	[ 'denied', qr/error: could not list objects below "s3:[^"]*": No, on purpose \(AccessDenied\)$/m, answer => 403 ],
	[ 'denied_later', qr{error: could not read archive "s3://restore/main/full/[^"]+": could not read "s3://restore/main/full/[^"]+": permission denied: No, on purpose \(AccessDenied\)$}m, method => qr/^GET/, path => qr/tar/, from => 2, answer => 403 ],
	[ 'flipped', qr{error: (?:checksum mismatch for file|write-ahead log at|archive|could not read archive|"[^"]+" is|could not parse)}, method => qr/^GET/, path => qr/base\S*tar/, count => 1, flip => 1 ],
	[ 'flipped_manifest', qr{error: "s3://restore/main/full/backup_manifest" is not that of the index$}m, method => qr/^GET/, path => qr/manifest/, flip => 1 ])
{
	my ($name, $words, %fault) = @$case;
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, %fault);
	restore($name, 1, $words, $proxy, 's3://restore/main/full');
	$proxy->stop;
}
restore('no_backup', 1, qr{error: "s3://restore/other" has no backup$}m, undef, 's3://restore/other');
restore('no_bucket', 1, qr{error: could not list objects below "s3://nowhere/x": }, undef, 's3://nowhere/x');
restore('secret', 1, qr{error: a storage URL must not have a user}, undef, 's3://verySecretAccessKey@restore/x');
unlike($outputs, $secret, 'no secret is said');

# list and prune
my ($stdout, $stderr) = run_command([ @environment, 'pg_parallel_restore', 'list', '--json', 's3://restore' ]);
is_deeply([ map { $_->{name} } @{ JSON::PP::decode_json($stdout) } ], [ map { "main/$_->[0]" } @week ], 'list: all of a bucket');
command_ok([ @environment, 'pg_parallel_restore', 'prune', '--keep-full=1', 's3://restore/main' ], 'prune');
is_deeply([ grep { !m{^main/b/} } $store->list('main/') ], [], 'prune: what stays');
isnt(scalar(my @stays = $store->list('main/b/')), 0, 'prune: and that all of it');
restore('pruned', 0, qr/^\z/, undef, 's3://restore/main/b');
is_good('pruned', $data{b});

done_testing();
