# Backups to Azure's Blob Storage, as its own emulator has it, which looks at each signature: made, listed, restored, gone on
# from and removed; refused where they must be; and nothing secret in what is said. `make check-azure`.

use strict;
use warnings FATAL => 'all';

use Digest::SHA ();
use File::Path ();
use HTTP::Tiny;
use IPC::Run ();
use MIME::Base64 ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();
use ParallelBackup::Test;

# The emulator's account, which everybody knows.
use constant ACCOUNT => 'devstoreaccount1';
use constant KEY => 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
use constant VERSION => '2023-11-03';

delete $ENV{$_} for 'PGAPPNAME', grep { /^(AWS|GOOGLE|AZURE)_/ } keys %ENV;
die 'PPB_AZURE names no store: tools/objects.sh starts one' if !$ENV{PPB_AZURE};
my $url = "$ENV{PPB_AZURE}/" . ACCOUNT;
my $http = HTTP::Tiny->new(no_proxy => ['127.0.0.1']);
my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $has_increments = server_major() >= 17;
my $node = parallel_node('main', extension => 1, conf => 'checkpoint_timeout = 1d' . ($has_increments ? "\nsummarize_wal = on" : '') . "\n");

# What does not get smaller: of several parts of an upload.
$node->safe_psql('postgres', $_) for (
	"CREATE TABLE t AS SELECT id, 0 AS n, (SELECT string_agg(md5(id::text || n), '') FROM generate_series(1, 30) n) AS filler FROM generate_series(1, 32000) AS id",
	'VACUUM FREEZE');
my $query = 'SELECT count(*), sum(hashtext(t::text)) FROM t';
my $outputs = '';

# A request of the test's own (docs: Authorize with Shared Key).
sub request
{
	my ($method, $path, %query) = @_;
	my $date = POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime);
	my $named = join '', map { "\n$_:$query{$_}" } sort keys %query;
	my $signed = "$method" . "\n" x 12 . "x-ms-date:$date\nx-ms-version:" . VERSION . "\n/" . ACCOUNT . '/' . ACCOUNT . "$path$named";
	my $signature = MIME::Base64::encode_base64(Digest::SHA::hmac_sha256($signed, MIME::Base64::decode_base64(KEY)), '');
	my $response = $http->request($method, "$url$path?" . join('&', map { "$_=$query{$_}" } sort keys %query),
		{ headers => { 'x-ms-date' => $date, 'x-ms-version' => VERSION, Authorization => 'SharedKey ' . ACCOUNT . ":$signature" } });

	die "$method $path: $response->{status} $response->{content}" if !$response->{success};
	return $response->{content};
}

sub list
{
	my ($prefix) = @_;
	my $list = request('GET', '/backups', restype => 'container', comp => 'list', prefix => $prefix);

	return sort $list =~ m{<Name>([^<]*)</Name>}g;
}

our @environment = ('env', "AZURE_STORAGE_ENDPOINT=$url", 'AZURE_STORAGE_ACCOUNT_NAME=' . ACCOUNT, 'AZURE_STORAGE_ACCOUNT_KEY=' . KEY, 'AZURE_ALLOW_HTTP=true');

# run(name, code, what it says, command)
sub run
{
	my ($name, $code, $said, @command) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $run = IPC::Run::start([ @environment, @command ], '<' => \undef, '>' => \my $out, '2>' => \my $errors, IPC::Run::timeout(300));

	$run->finish;
	is(($run->results)[0], $code, "$name: exit code") or diag($errors);
	like($errors, $said, "$name: what it says");
	$outputs .= $out . $errors;
	return $out;
}

my @client = ('pg_parallel_basebackup', '--checkpoint' => 'fast', '--dbname' => $node->connstr('postgres'), '--volumes=64MB', '-j' => 2);

sub is_good
{
	my ($name, $place, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $copy = PostgreSQL::Test::Cluster->new("copy_$name");

	run("$name: restore", 0, qr/^\z/, 'pg_parallel_restore', '--no-sync', '-D' => $copy->data_dir, $place);
	command_ok([ 'pg_verifybackup', $copy->data_dir ], "$name: pg_verifybackup");
	start_copy($copy);
	is($copy->safe_psql('postgres', $query), $expected, "$name: data");
	$copy->stop;
	File::Path::remove_tree($copy->data_dir);
	return;
}

request('PUT', '/backups', restype => 'container');
my %data;
my @week = ([ 'full' ], [ 'one', 'full' ], [ 'other', undef, '-Z' => 'zstd:1' ]);
@week = grep { !$_->[1] } @week if !$has_increments;
for my $day (@week)
{
	my ($name, $from, @more) = @$day;
	run($name, 0, qr/^\z/, @client, @more, '-D' => "az://backups/main/$name", $from ? ('-i' => "az://backups/main/$from/backup_manifest") : ());
	$data{$name} = $node->safe_psql('postgres', $query);
	$node->safe_psql('postgres', 'UPDATE t SET n = n + 1 WHERE id % 100 = 7');
}
is_deeply([ grep { !/\.tar(?:\.zst)?\z/ } list('main/full') ], [ map { "main/full/$_" } qw(backup_index.json backup_manifest) ], 'no claim and no note of an upload is left');
is_good($_, "az://backups/main/$_", $data{$_}) for map { $_->[0] } @week;

# A prefix is of one backup.
run('once more', 1, qr{error: "az://backups/main/full" has a backup already\n}, @client, '-D' => 'az://backups/main/full');
ok((grep { $_ eq 'main/full/backup_index.json' } list('main/full')), 'once more: the first stays');

# Without rights.
{
	local @environment = map { s/^(AZURE_STORAGE_ACCOUNT_KEY=).*/$1bm90IHRoZSBrZXk=/r } @environment;
	run('another key', 1, qr{error: could not list objects below "az://backups/denied": [^\n]*\(AuthorizationFailure\)$}m, @client, '-D' => 'az://backups/denied');
	run('another key: list', 1, qr{error: could not list objects below "az://backups/main": [^\n]*\(AuthorizationFailure\)$}m, 'pg_parallel_restore', 'list', 'az://backups/main');
}
run('no container', 1, qr{error: could not list objects below "az://nowhere/x": [^\n]*\(ContainerNotFound\)$}m, @client, '-D' => 'az://nowhere/x');

# Killed in the middle of it.
{
	my $run = IPC::Run::start([ @environment, @client, '-r' => '16M', '-D' => 'az://backups/killed' ], '<' => \undef, '2>' => \my $errors, IPC::Run::timeout(300));
	for (1 .. 3000) { last if grep { /\.upload\z/ } list('killed'); $run->pump_nb; Time::HiRes::sleep(0.1) }
	run('in use', 1, qr{error: "az://backups/killed" is in use by another backup\n}, @client, '-D' => 'az://backups/killed');
	$run->signal('KILL');
	eval { $run->finish };
	ok(!(grep { /index/ } list('killed')), 'killed: there is no index');
	ok((grep { /backup_claim/ } list('killed')), 'killed: the claim is left');
	run('the next run', 0, qr{warning: removing what an interrupted backup has left below "az://backups/killed"}, @client, '-D' => 'az://backups/killed');
	is_good('killed', 'az://backups/killed', $node->safe_psql('postgres', $query));
}

# list and prune
my $listed = run('list', 0, qr/^\z/, 'pg_parallel_restore', 'list', 'az://backups/main');
like($listed, qr/^\Q$_\E +/m, "list: $_") for map { $_->[0] } @week;
run('prune', 0, qr/removing/, 'pg_parallel_restore', 'prune', '--keep-full=1', 'az://backups/main');
is_deeply([ grep { !m{^main/other/} } list('main/') ], [], 'prune: what stays');
is_good('pruned', 'az://backups/main/other', $data{other});

unlike($outputs, qr/\Q@{[ substr KEY, 0, 20 ]}\E|bm90IHRoZSBrZXk/, 'nothing secret is in any message');

done_testing();
