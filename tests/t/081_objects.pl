# Backups that go to object storage, against a store of others' making: what is there can be extracted and started, and
# whatever goes wrong with the store or the client, there is no index of what is not complete, and nothing that is left for ever.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();
use ParallelBackup::Archive;
use ParallelBackup::ObjectStore;
use ParallelBackup::Test;

plan skip_all => 'NOT TESTED: PPB_NO_OBJECTS says that no object store is to be had' if $ENV{PPB_NO_OBJECTS};

delete $ENV{PGAPPNAME};

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $node = parallel_node('main', extension => 1, conf => "checkpoint_timeout = 1d\n");
my $store = object_store('backups');
my @common = ('--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'));
my $MB = 1024 * 1024;
my $secret = qr/verySecretAccessKey|AKIATESTKEYID/;

mkdir "$tempdir/ts" or die $!;
$node->safe_psql('postgres', $_) for (
	"CREATE TABLESPACE ts LOCATION '$tempdir/ts'",
	# What does not get smaller: of several parts of an upload.
	"CREATE TABLE t AS SELECT id, (SELECT string_agg(md5(id::text || n), '') FROM generate_series(1, 30) n) AS filler FROM generate_series(1, 32000) AS id",
	"CREATE TABLE t1 TABLESPACE ts AS SELECT id FROM generate_series(1, 20000) AS id",
	'VACUUM FREEZE', 'CHECKPOINT');
my $query = join(' UNION ALL ', map { "SELECT '$_', count(*), sum(hashtext(x::text)) FROM $_ x" } qw(t t1)) . ' ORDER BY 1';
my $expected = $node->safe_psql('postgres', $query);
my $outputs = '';

sub client
{
	my ($proxy, @options) = @_;
	return ('env', $store->environment($proxy), 'pg_parallel_basebackup', @common, @options);
}

# A run of the client, that ends with this code and says this.
sub run_client
{
	my ($name, $code, $said, @command) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $run = IPC::Run::start(\@command, '<' => \undef, '>' => \my $out, '2>' => \my $errors, IPC::Run::timeout(300));

	$run->finish;
	is(($run->results)[0], $code, "$name: exit code") or diag($errors);
	like($errors, $said, "$name: what it says");
	$outputs .= $out . $errors;
	return $errors;
}

sub started
{
	my ($prefix, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new('copy_' . ($prefix =~ s/\W+/_/gr));
	my $index = extract_volumes($store->download($prefix, "$tempdir/place"), $copy->data_dir);

	command_ok([ 'pg_verifybackup', '--ignore' => 'tablespace_map', '--manifest-path' => "$tempdir/place/backup_manifest", $copy->data_dir ], "$name: pg_verifybackup");
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree("$tempdir/place", $copy->data_dir, glob($copy->data_dir . '.*'));
	return $index;
}

sub nothing_left
{
	my ($prefix, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is_deeply([ $store->list("$prefix/") ], [], "$name: no object is left");
	is_deeply([ $store->uploads ], [], "$name: no upload is left");
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM parallel_backup.backups'), "$name: nothing is left on the server") if stock_server() || $node->safe_psql('postgres', q(SELECT count(*) FROM pg_extension WHERE extname = 'pg_parallel_backup'));
	return;
}

# Volumes of many parts and of one, in each way of compressing.
for my $case (
	[ 'plain', 4, '--volumes=64MB' ], [ 'small', 2, '--volumes=4MB', '-X' => 'fetch' ],
	[ 'client_zstd', 3, '-Z' => 'zstd' ], [ 'server_zstd', 1, '-Z' => 'server-zstd' ])
{
	my ($prefix, $jobs, @options) = @$case;
	my $log = "$tempdir/$prefix.log";
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, log => $log);
	run_client($prefix, 0, qr/base backup completed/, client($proxy, '-v', '-D' => "s3://backups/a/$prefix/", '-j' => $jobs, '--report' => "$tempdir/$prefix.json", @options));
	$proxy->stop;
	my $requests = slurp_file($log);
	my $parts = () = $requests =~ /^PUT \S*partNumber=/mg;
	cmp_ok($parts, '>=', 3, "$prefix: it was uploaded in parts");
	my %volumes = map { $_ => 1 } $requests =~ m{^PUT \S*?/a/$prefix/(base\.\d+\.tar)}mg;
	cmp_ok(scalar(keys %volumes), '>=', $prefix eq 'small' ? 3 : 1, "$prefix: volumes");
	my @written = $requests =~ m{^PUT \S*?/a/$prefix/([^ ?\n]+)}mg;
	is($written[0], 'backup_claim.json', "$prefix: the claim comes first");
	is_deeply([ @written[ -2, -1 ] ], [ 'backup_manifest', 'backup_index.json' ], "$prefix: manifest and index come last");
	my $index = started("a/$prefix", $prefix);
	is(scalar(grep { /upload|claim/ } $store->list("a/$prefix/")), 0, "$prefix: neither claim nor upload is left");
	is(JSON::PP::decode_json(slurp_file("$tempdir/$prefix.json"))->{directory}, "s3://backups/a/$prefix", "$prefix: the report has the place");
	$outputs .= slurp_file("$tempdir/$prefix.json");
}
is_deeply([ $store->uploads ], [], 'no upload is left');

# A place that is taken.
run_client('taken', 1, qr{error: "s3://backups/a/plain" has a backup already}, client(undef, '-D' => 's3://backups/a/plain'));
run_client('leftovers of what is complete', 1, qr{error: "s3://backups/a/plain" has a complete backup}, 'env', $store->environment, 'pg_parallel_basebackup', '--remove-leftovers', '-D' => 's3://backups/a/plain');
$store->put('others/thing', 'x');
run_client('not empty', 1, qr{error: "s3://backups/others" exists but is not empty}, client(undef, '-D' => 's3://backups/others'));
run_client('no bucket', 1, qr{error: could not list objects below "s3://nowhere/x": }, client(undef, '-D' => 's3://nowhere/x'));

my $before = join ' ', $store->list('');
run_client('dry run', 0, qr/^\z/, client(undef, '-D' => 's3://backups/dry/run', '--dry-run'));
run_client('dry run of what is taken', 1, qr{error: "s3://backups/a/plain" has a backup already}, client(undef, '-D' => 's3://backups/a/plain', '--dry-run'));
is(join(' ', $store->list('')), $before, 'dry run: nothing is written');

# Of two to one place one gets it, whatever the other does then.
{
	my $hold = "$tempdir/both";
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, method => qr/^PUT/, path => qr/backup_claim/, hold => $hold, log => "$tempdir/both.log");
	my @runs = map { { errors => '' } } 1 .. 2;
	$_->{run} = IPC::Run::start([ client($proxy, '-D' => 's3://backups/both', '-j' => 1) ], '<' => \undef, '>' => \$_->{out}, '2>' => \$_->{errors}, IPC::Run::timeout(300)) for @runs;
	# Both have found nothing, and write their claims.
	for (1 .. 3000) { last if -e "$tempdir/both.log" && 2 == (() = slurp_file("$tempdir/both.log") =~ /disturbed$/mg); $_->{run}->pump_nb for @runs; Time::HiRes::sleep(0.1) }
	write_file($hold, '');
	$_->{run}->finish for @runs;
	$proxy->stop;
	my @codes = sort map { ($_->{run}->results)[0] } @runs;
	is("@codes", '0 1', 'two at once: one gets the place') or diag(map { $_->{errors} } @runs);
	like(join('', map { $_->{errors} } @runs), qr{error: "s3://backups/both" is in use by another backup}, 'two at once: the other is told');
	ok(volume_index($store->download('both', "$tempdir/both.place")), 'two at once: there is one whole backup');
}

# Once something fails it is tried again.
for my $case (
	[ 'five_hundreds', method => qr/^PUT/, path => qr/partNumber/, count => 3, answer => 500 ],
	[ 'cut_requests', method => qr/^PUT/, path => qr/partNumber/, count => 3, cut => 'request' ],
	[ 'cut_answers', method => qr/^P/, path => qr/partNumber|uploadId|claim|index/, count => 6, cut => 'answer' ],
	[ 'lost_completion', method => qr/^POST/, path => qr/uploadId/, count => 1, cut => 'answer' ],
	[ 'slow', method => qr/^PUT/, path => qr/partNumber/, delay => 0.005 ])
{
	my ($prefix, %fault) = @$case;
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, log => "$tempdir/$prefix.log", %fault);
	run_client($prefix, 0, qr/^\z/, client($proxy, '-D' => "s3://backups/b/$prefix", '-j' => 2));
	$proxy->stop;
	like(slurp_file("$tempdir/$prefix.log"), qr/ disturbed$/m, "$prefix: requests were disturbed");
	# Sizes and digests of all that is stored.
	ok(volume_index($store->download("b/$prefix", "$tempdir/$prefix.place")), "$prefix: everything is there");
}
is_deeply([ $store->uploads ], [], 'no upload is left of those either');

# What stays wrong ends the backup, and nothing is left of it.
for my $case (
	[ 'denied', qr/error: could not list objects below "s3:[^"]*": No, on purpose \(AccessDenied\)/, answer => 403 ],
	[ 'read_only', qr{error: could not write "s3://backups/c/read_only/backup_claim.json": permission denied}, method => qr/^P/, answer => 403 ],
	[ 'denied_later', qr{error: could not write "s3://backups/c/denied_later/[^"]*": permission denied}, method => qr/^PUT/, path => qr/partNumber/, from => 2, answer => 403 ],
	[ 'denied_at_last', qr{error: could not write "s3://backups/c/denied_at_last/backup_index.json": permission denied}, method => qr/^PUT/, path => qr/index/, answer => 403 ])
{
	my ($prefix, $complaint, %fault) = @$case;
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, %fault);
	run_client($prefix, 1, $complaint, client($proxy, '-D' => "s3://backups/c/$prefix", '-j' => 2));
	$proxy->stop;
	nothing_left("c/$prefix", $prefix);
}

# A client that is interrupted while parts are on their way, and one that is killed.
for my $signal ('INT', 'KILL')
{
	my ($prefix, $log, $flag) = ("d/$signal", "$tempdir/$signal.log", "$tempdir/$signal.go");
	# Nothing of the third part is answered: whatever the client does then, it has not got to the end.
	my $proxy = ParallelBackup::ObjectStore::Proxy->new(store => $store, log => $log, method => qr/^PUT/, path => qr/partNumber/, from => 3, hold => $flag);
	my $run = IPC::Run::start([ client($proxy, '-D' => "s3://backups/$prefix", '-j' => 2) ], '<' => \undef, '>' => \my $out, '2>' => \my $errors, IPC::Run::timeout(300));
	for (1 .. 3000) { last if -e $log && slurp_file($log) =~ / disturbed$/m; $run->pump_nb; Time::HiRes::sleep(0.1) }
	like(slurp_file($log), qr/ disturbed$/m, "$signal: parts are on their way");
	run_client("$signal: another to the same place", 1, qr{error: "s3://backups/$prefix" is in use by another backup\n.*detail: .*made by process \d+ on host ".*hint: .*--remove-leftovers -D s3://backups/$prefix}s, client(undef, '-D' => "s3://backups/$prefix"));
	$run->signal($signal);
	$run->finish;
	$outputs .= $out . $errors;
	if ($signal eq 'INT')
	{
		like($errors, qr{error: backup was interrupted\n.*removing objects below "s3://backups/$prefix"}s, 'INT: what it says');
		nothing_left($prefix, 'INT');
		$proxy->stop;
		next;
	}
	$proxy->stop;
	my @left = map { s{.*/}{}r } $store->list("$prefix/");
	ok((grep { $_ eq 'backup_claim.json' } @left), 'KILL: the claim is left');
	ok((grep { /\.upload\z/ } @left), 'KILL: an upload is noted');
	my @uploads = $store->uploads;
	ok(@uploads > 0, 'KILL: an upload is left');
	ok(!(grep { $_ eq 'backup_index.json' } @left), 'KILL: there is no index');
	# As another host finds it.
	my $claim = $store->get("$prefix/backup_claim.json");
	$store->put("$prefix/backup_claim.json", $claim =~ s/"boot": *"/"boot": "another-/r);
	run_client('KILL: from elsewhere', 1, qr/is in use by another backup/, client(undef, '-D' => "s3://backups/$prefix"));
	$store->put("$prefix/backup_claim.json", $claim);
	run_client('KILL: the next run', 0, qr{warning: removing what an interrupted backup has left below "s3://backups/$prefix", \d+ objects\n\z}, client(undef, '-D' => "s3://backups/$prefix"));
	is_deeply([ $store->uploads ], [], 'KILL: the next run aborts the upload');
	started($prefix, 'KILL: the next run');
}

# By hand.
{
	my $prefix = 'd/by_hand';
	$store->put("$prefix/$_", 'x') for 'backup_claim.json', 'base.00001.tar.zst', '16384.00001.tar', 'backup_manifest', 'notes';
	my ($id) = $store->request('POST', "/backups/$prefix/base.00002.tar?uploads") =~ m{<UploadId>([^<]*)<};
	$store->put("$prefix/base.00002.tar.upload", $id);
	is(scalar(my @uploads = $store->uploads), 1, 'by hand: an upload is there');
	my @command = ('env', $store->environment, 'pg_parallel_basebackup', '--remove-leftovers', '-D' => "s3://backups/$prefix");
	run_client('by hand', 1, qr{aborting the upload of "s3://backups/$prefix/base.00002.tar"\n.*removing "[^"]*/base.00001.tar.zst", 0 kB\n.*error: "s3://backups/$prefix/notes" is of no backup, and was left alone}s, @command);
	is_deeply([ $store->list("$prefix/") ], ["$prefix/notes"], 'by hand: what is left is of no backup');
	is_deeply([ $store->uploads ], [], 'by hand: the upload is no more');
	run_client('by hand, nothing', 0, qr{nothing is left of a backup below "s3://backups/d/nothing"}, @command[ 0 .. $#command - 1 ], 's3://backups/d/nothing');
}

# Pages that are damaged on the server: what there is of a copy is kept, and is no backup.
{
	my $path = $node->safe_psql('postgres', q(SELECT pg_relation_filepath('t1')));
	$node->stop;
	$node->corrupt_page_checksum($path, 8192);
	$node->start;
	my $prefix = 'e/damaged';
	run_client('damaged', 1, qr{error: checksum error occurred\n.*objects below "s3://backups/$prefix" not removed, without an index}s, client(undef, '-D' => "s3://backups/$prefix", '-j' => 2));
	my @left = $store->list("$prefix/");
	cmp_ok(scalar @left, '>', 2, 'damaged: volumes are left');
	is(scalar(grep { !/\.tar\z/ } @left), 0, 'damaged: and nothing else');
	run_client('damaged: removed', 0, qr/removing/, 'env', $store->environment, 'pg_parallel_basebackup', '--remove-leftovers', '-D' => "s3://backups/$prefix");
	is_deeply([ $store->list("$prefix/") ], [], 'damaged: removed');
}
is_deeply([ $store->uploads ], [], 'in the end no upload is left');

unlike($outputs, $secret, 'nothing secret is in any message');

done_testing();
