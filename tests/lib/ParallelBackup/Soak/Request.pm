# One backup of a soak: which options, drawn at random.

package ParallelBackup::Soak::Request;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use ParallelBackup::Load;
use ParallelBackup::Soak::Servers;
use ParallelBackup::TLS;
use ParallelBackup::Test;

our @EXPORT = qw(draw);

# draw(server, name, place, prior, store, share): what is asked for.
#
# prior    the manifest of a backup to go on from, or undef
# store    the object store, or undef
# share    how many in a hundred are over TLS, where the server has it
#
#   format    plain, tar, pipe (a tar archive on standard output), volumes, file (volumes by URL), objects, or blackhole
#   wal, lease, role, prior
#   over_tls  by TCP, encrypted; else by the Unix socket, or over a network that can be listened to
#   options   of the client, with where it puts the copy, but for the connection
#   place     the directory that it has then; of a pipe, where the harness puts the archive; of objects, none
#   url       of objects
#   checked   whether pages are
sub draw
{
	my ($from, $name, $place, $prior, $store, $share) = @_;
	my @formats = (qw(plain plain tar tar volumes file blackhole), has_spaces() ? () : qw(pipe pipe), $store ? 'objects' : ());
	my %request = (
		name => $name, format => pick(@formats), wal => pick(qw(stream stream fetch none)), role => pick('', '', '', 'calls', 'timed'),
		place => $place, spaces => "${place}_ts", checked => 1, prior => $prior, over_tls => rand(100) < $share && has_tls());
	my $format = $request{format};

	# Who may not replicate has no WAL stream, and who is cut short by the server has a backup all the same.
	$request{wal} = pick(qw(fetch none)) if $request{role} eq 'calls' || $format =~ /^(?:pipe|blackhole)\z/;
	my @options = ('--jobs' => pick(1, 2, 3, 4, 8), '-X' => $request{wal});
	push @options, '--verify' => pick(qw(client server)) if rand() < 0.3;
	push @options, '--max-rate' => pick('8M', '32M', '64M') if rand() < 0.2;
	push @options, '--manifest-checksums' => pick(qw(CRC32C SHA224 SHA256 SHA512)) if rand() < 0.3;
	if (rand() < 0.1)
	{
		push @options, '--no-verify-checksums';
		$request{checked} = 0;
	}
	push @options, '--no-sync' if rand() < 0.8;
	push @options, '--no-estimate-size' if rand() < 0.2;
	# One that was asked for, none, or what is taken by default. What has changed since another backup the coordinator alone knows.
	$request{lease} = pick(defined $prior ? (0, undef) : (60, 60, 0, undef, undef));
	push @options, '--lease' => $request{lease} if defined $request{lease};
	push @options, '--incremental' => $prior if defined $prior;
	push @options, '--username' => $request{role} if $request{role} ne '';

	push @options, @{ _output($from, \%request, $store) };
	$request{options} = \@options;
	return \%request;
}

sub _output
{
	my ($from, $request, $store) = @_;
	my $format = $request->{format};
	# In pieces that the server compresses, or the client.
	my @archives = pick([], [], [ '-z' ], [ '-Z' => 'client-gzip:1' ], [ '-Z' => 'client-lz4' ], [ '-Z' => 'client-zstd:1' ],
		[ '-Z' => 'server-lz4' ], [ '-Z' => 'server-zstd' ], [ '-Z' => 'server-zstd:level=1' ])->@*;
	my @volumes = ('--volumes=' . pick('1MB', '8MB', '1GB'));

	return ['--target=blackhole'] if $format eq 'blackhole';
	return [
		'-D' => $request->{place}, mapped_to($from, $request->{spaces}),
		rand() < 0.3 ? ('-Z' => pick(qw(server-lz4 server-zstd server-zstd:level=1))) : ()
	] if $format eq 'plain';
	return [ '-D' => $request->{place}, '-Ft', @archives ] if $format eq 'tar';
	# As it is, for nothing in it says what it is.
	return [ '-D' => '-', '-Ft' ] if $format eq 'pipe';
	return [ '-D' => $request->{place}, '-Ft', @volumes, @archives ] if $format eq 'volumes';
	return [ '-D' => "file://$request->{place}", @volumes, @archives ] if $format eq 'file';
	$request->{url} = "s3://$store->{bucket}/$request->{name}";
	# Each is held in memory by the store.
	return [ '-D' => $request->{url}, '--volumes=8MB', @archives ];
}

1;
