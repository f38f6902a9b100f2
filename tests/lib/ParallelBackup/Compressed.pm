# Streams of zstd and lz4, read by the programs of these names and by what their formats' descriptions
# say of a header: nothing here is shared with what the server and the client use.

package ParallelBackup::Compressed;

use strict;
use warnings FATAL => 'all';

use Carp;
use Exporter 'import';
use File::Temp ();
use POSIX ();

our @EXPORT_OK = qw(decompress header through %COMPRESSION);

our %COMPRESSION = (none => 0, lz4 => 1, zstd => 2);
my %program = (1 => [ 'lz4', '-dcq' ], 2 => [ 'zstd', '-dcq', '--memory=128MB' ]);

# Files of ParallelBackup::Transfer whose streams have come, each with its bytes. Streams of one kind
# are read one behind the other: that they can be is a part of the protocol.
sub decompress
{
	my (@files) = @_;
	my @result;

	for my $file (@files)
	{
		my $header = header($file->{compression}, $file->{stream});
		croak "file \"$file->{path}\": the stream says $header->{length} bytes, and not $file->{length}"
		  if $header->{length} != $file->{length};
	}
	for my $kind (sort keys %program)
	{
		my @some = grep { $_->{compression} == $kind } @files or next;
		my $bytes = through($program{$kind}, join('', map { $_->{stream} } @some));
		my $at = 0;
		for my $file (@some)
		{
			push @result, [ $file, substr($bytes, $at, $file->{length}) ];
			$at += $file->{length};
		}
		croak "streams have $at bytes, and not " . length $bytes if $at != length $bytes;
	}
	return @result;
}

# What the first bytes of a stream say: length of the content, window (zstd), size of the largest block (lz4).
sub header
{
	my ($compression, $stream) = @_;

	return $compression == $COMPRESSION{lz4} ? _lz4_header($stream) : _zstd_header($stream);
}

# RFC 8878, 3.1.1.1.
sub _zstd_header
{
	my ($stream) = @_;
	my ($magic, $descriptor) = unpack('V C', $stream);
	croak sprintf('no zstd frame: %08x', $magic // 0) if ($magic // 0) != 0xFD2FB528;
	my ($length_flag, $single, $checksum, $dictionary) =
	  ($descriptor >> 6, $descriptor >> 5 & 1, $descriptor >> 2 & 1, $descriptor & 3);
	croak 'a dictionary' if $dictionary;
	my $at = 5;
	my $window;
	if (!$single)
	{
		my $byte = ord substr($stream, $at++, 1);
		$window = 1 << (10 + ($byte >> 3));
		$window += ($window >> 3) * ($byte & 7);
	}
	my $length =
	    $length_flag == 0 ? ($single ? unpack('C', substr($stream, $at)) : croak 'no content size')
	  : $length_flag == 1 ? 256 + unpack('v', substr($stream, $at))
	  : $length_flag == 2 ? unpack('V', substr($stream, $at))
	  :                     unpack('Q<', substr($stream, $at));
	return { length => $length, window => $window // $length, checksum => $checksum };
}

# lz4_Frame_format.md.
sub _lz4_header
{
	my ($stream) = @_;
	my ($magic, $flags, $block) = unpack('V C C', $stream);
	croak sprintf('no lz4 frame: %08x', $magic // 0) if ($magic // 0) != 0x184D2204;
	croak sprintf('flags %02x', $flags) if $flags >> 6 != 1 || $flags & 3;
	croak 'no content size' if !($flags & 8);
	return {
		length => unpack('Q<', substr($stream, 6)),
		block => 1 << (8 + 2 * ($block >> 4 & 7)),
		linked => !($flags >> 5 & 1),
		checksum => $flags >> 2 & 1
	};
}

# What a program makes of some bytes, without a pipe that could fill on both sides.
sub through
{
	my ($command, $bytes) = @_;
	my $input = File::Temp->new;
	binmode $input;
	print $input $bytes;
	$input->flush or croak "could not write: $!";

	my $pid = open(my $output, '-|') // croak "could not fork: $!";
	if (!$pid)
	{
		open STDIN, '<', $input->filename or POSIX::_exit(126);
		exec @$command or POSIX::_exit(127);
	}
	binmode $output;
	local $/;
	my $result = <$output> // '';
	close $output or croak "$command->[0] ends with " . ($? >> 8);
	return $result;
}

1;
