# pg_parallel_restore from an object store of others' making: a chain that is found there, requests that fail, bytes that
# change on their way, list and prune.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
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
	write_file("$tempdir/manifest", $store->get("main/$from/backup_manifest")) if $from;
	$node->command_ok([ @backup, '-D' => "s3://restore/main/$name", $name eq 'b' ? ('-Z' => 'server-zstd:1') : (), $from ? ('-i' => "$tempdir/manifest") : () ], "backup $name");
	$data{$name} = $node->safe_psql('postgres', $query);
	$node->safe_psql('postgres', 'UPDATE t SET n = n + 1 WHERE id % 100 = 7');
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
