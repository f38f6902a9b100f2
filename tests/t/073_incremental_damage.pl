# Damage on the way of an increment: whatever byte a network changes, one that was reported as a success has only
# bytes that the server read, and combines to a copy of it.

use strict;
use warnings FATAL => 'all';

use File::Path ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Increment;
use ParallelBackup::Proxy;
use ParallelBackup::Test;

use constant BLOCK => 8192;

plan skip_all => 'incremental backups are from 17 on' if server_major() < 17;

my $tempdir = PostgreSQL::Test::Utils::tempdir_short;
my $backups = 0;

for my $checksums (1, 0)
{
	my $node = parallel_node($checksums ? 'sums' : 'plain', checksums => $checksums, extension => 1, conf => <<CONF);
listen_addresses = '127.0.0.1'
summarize_wal = on
checkpoint_timeout = 1d
bgwriter_lru_maxpages = 0
CONF
	my $pgdata = $node->data_dir;
	my $kind = $checksums ? 'page checksums' : 'no page checksums';
	$node->safe_psql('postgres', $_)
	  for q(CREATE TABLE marked AS SELECT i, 'MARKED-' || to_char(i, 'FM00000') || repeat('x', 500) AS t FROM generate_series(1, 3000) i),
	  q(CREATE TABLE small AS SELECT i, 'SMALL-' || to_char(i, 'FM000') || repeat('y', 500) AS t FROM generate_series(1, 100) i),
	  'VACUUM FREEZE', 'CHECKPOINT';
	my ($path, $small) = map { $node->safe_psql('postgres', "SELECT pg_relation_filepath('$_')") } qw(marked small);
	my $full = "$tempdir/full$checksums";
	$node->command_ok([ 'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-X' => 'none', '-D' => $full, '-d' => $node->connstr('postgres') ], "$kind: a full backup");
	# Blocks that lie apart, and more than the server's 64 kB, below which it makes a checksum in any case.
	$node->safe_psql('postgres', $_) for 'SELECT count(*) FROM (SELECT 1 FROM marked WHERE i % 30 = 0 FOR UPDATE) x',
	  'SELECT count(*) FROM (SELECT 1 FROM small WHERE i = 50 FOR UPDATE) x', 'CHECKPOINT';
	my $user = $node->safe_psql('postgres', 'SELECT current_user');
	# On one of them the way in is by the procedures, also where the server has the grammar.
	write_file("$pgdata/pg_hba.conf", "local all,replication all trust\nhost @{[ $checksums ? 'all,replication' : 'all' ]} $user 127.0.0.1/32 trust\n");
	$node->restart;

	my $through = sub {
		my ($change, @options) = @_;
		my $copy = "$tempdir/copy" . ++$backups;
		my $proxy = ParallelBackup::Proxy->new(server => $node->port, flag => "$copy.changed", %$change);
		my $run = IPC::Run::start(
			[
				'pg_parallel_basebackup', '--no-sync', '-c' => 'fast', '-j' => 2, '-X' => 'none', '-D' => $copy,
				'-i' => "$full/backup_manifest", '-d' => "host=127.0.0.1 port=@{[ $proxy->port ]} dbname=postgres user=$user sslmode=disable", @options
			],
			'>' => \my $stdout, '2>' => \my $stderr, my $patience = IPC::Run::timeout(60));
		if (!eval { $run->finish; 1 })
		{
			$run->signal('TERM');
			$patience->start($PostgreSQL::Test::Utils::timeout_default);
			if (!eval { $run->finish; 1 })
			{
				fail('a client that is told to end does so');
				$run->kill_kill;
			}
		}
		my $good = $run->full_result == 0;
		$proxy->stop;
		return ($copy, $good, $stderr);
	};

	# The reference: nothing is changed on the way.
	my ($reference, $well, $said) = $through->({ find => 'nothing has this', at => 0, xor => 1 }, '-v');
	ok($well, "$kind: a network that changes nothing") or diag($said);
	my %own = map { $_ => 1 } qw(backup_label backup_manifest global/pg_control);
	my $increment = read_increment(slurp_file("$reference/" . increment_path($path)));
	cmp_ok(scalar @{ $increment->{numbers} }, '>', 8, "$kind: enough blocks to be sent without a copy");
	cmp_ok($increment->{truncation_block_length}, '>', @{ $increment->{numbers} }, "$kind: and not all");
	my ($number) = grep { $increment->{blocks}{$_} =~ /MARKED-/ } @{ $increment->{numbers} };
	my $block = $increment->{blocks}{ $increment->{numbers}[5] };
	my ($list) = join ',', @{ $increment->{numbers} }[ 0 .. 2 ];
	my %change = (
		'a page' => { find => substr($block, -200, 60), at => 10, xor => 0x20 },
		'an LSN that becomes new' => { find => substr($block, 0, 24), at => 3, xor => 0x40 },
		'pd_upper' => { find => substr($block, 0, 24), at => 15, xor => 2 },
		'a small increment' => { find => 'SMALL-050', at => 3, xor => 1 },
		'a list of blocks' => { find => $list, at => 0, xor => 1 },
		'a list of blocks that becomes another' => { find => "$list,", at => length($list) - 1, xor => 4 });
	for my $case (sort keys %change)
	{
		for my $always (0, 1)
		{
			my $name = "$kind, $case" . ($always ? ', each time' : '');
			my ($copy, $good, $stderr) = $through->({ %{ $change{$case} }, always => $always });
			ok(-e "$copy.changed", "$name: a byte was changed");
			if ($good)
			{
				ok(!$always, "$name: what always comes wrong is no success") or diag($stderr);
				compare_trees($copy, $reference, "$name: the copy", differ => \%own);
				command_ok([ 'pg_verifybackup', '--no-parse-wal', $copy ], "$name: pg_verifybackup");
			}
			else
			{
				like($stderr, qr/damaged in transit|in 3 tries|does not match|invalid/, "$name: why it failed");
				ok(!-e "$copy/PG_VERSION", "$name: nothing is left");
			}
			ok($good, "$name: mended") or diag($stderr) if !$always && $case !~ /list/;
			File::Path::remove_tree($copy);
		}
	}
	# Any byte of what the server sends.
	for my $nth (2_000, 20_000, 100_000, 200_000, 400_000)
	{
		my $name = "$kind, byte $nth";
		my ($copy, $good, $stderr) = $through->({ nth => $nth, xor => 1 });
		ok(-e "$copy.changed", "$name: was changed");
		compare_trees($copy, $reference, "$name: the copy", differ => \%own) if $good;
		ok($good || !-e "$copy/PG_VERSION", "$name: a good copy or none") or diag($stderr);
		File::Path::remove_tree($copy);
	}
	# The manifest on its way to the server: it is verified there.
	my $combined = "$tempdir/combined$checksums";
	command_ok([ 'pg_combinebackup', '--no-sync', '--output' => $combined, $full, $reference ], "$kind: pg_combinebackup");
	command_ok([ 'pg_verifybackup', '--no-parse-wal', $combined ], "$kind: pg_verifybackup of what was combined");
	is(slurp_file("$combined/$path"), slurp_file("$pgdata/$path"), "$kind: and it is what the server has");
	$node->stop;
}

done_testing();
