# The files in a stream of frames, with the rules of the stream checked: every
# "f" is followed by exactly the bytes that it announces and by its "e", whose
# count and checksum are those of the bytes. Compressed ones are decompressed when
# some have come: `complete` says that all of them were looked at.

package ParallelBackup::Transfer;

use strict;
use warnings FATAL => 'all';

use Carp;
use Digest::SHA ();
use ParallelBackup::Compressed qw(decompress);
use ParallelBackup::Frame qw(digest_of);

use constant CHECKSUMMED => 64 * 1024;
# Of a stream in a frame, where nothing is encrypted.
use constant MAX_STREAM_FRAME => 248 * 1024;
use constant DECOMPRESSED_TOGETHER => 4 * 1024 * 1024;

# new(begin => sub, data_sink => sub, end => sub, vanish => sub, sha => bits)
#
# begin and end are called with the file (a hash of the fields of its frames),
# data_sink with the file and some bytes, vanish with the frame.  Without a
# data_sink the bytes are kept in ->{data}; with one, sha says which digest to
# compute along the way.
sub new
{
	my ($class, %params) = @_;

	return bless { %params, files => [], vanished => [], skipped => [], waiting => 0 }, $class;
}

# Reads frames that were kept.
sub of
{
	my ($class, $frames, %params) = @_;
	my $self = $class->new(%params);

	$self->frame($_) for @$frames;
	$self->_decompress;
	return $self;
}

sub frame
{
	my ($self, $frame) = @_;
	my $type = $frame->{type};
	my $file = $self->{open};

	if ($type eq 'd')
	{
		croak "data outside of a file" unless $file;
		if ($file->{compression})
		{
			croak "file \"$file->{path}\": a frame of " . length($frame->{data}) . " compressed bytes"
			  if length($frame->{data}) > MAX_STREAM_FRAME;
			$file->{stream} .= $frame->{data};
			$file->{frames}++;
			return;
		}
		$file->{received} += length($frame->{data});
		croak "file \"$file->{path}\" got $file->{received} bytes of $file->{length}"
		  if $file->{received} > $file->{length};
		$file->{frames}++;
		if ($self->{data_sink}) { $self->{data_sink}->($file, $frame->{data}) }
		else { $file->{data} .= $frame->{data} }
		$file->{sha}->add($frame->{data}) if $file->{sha};
	}
	elsif ($type eq 'f')
	{
		croak "file \"$frame->{path}\" begins inside of \"$file->{path}\""
		  if $file;
		$file = $self->{open} = { %$frame, data => '', received => 0, frames => 0 };
		if (defined $self->{sha})
		{
			$file->{sha} = Digest::SHA->new($self->{sha});
		}
		$self->{begin}->($file) if $self->{begin};
	}
	elsif ($type eq 'c')
	{
		croak "end of a stream outside of one" unless $file && $file->{compression} && !$file->{stream_end};
		croak "file \"$file->{path}\": $frame->{bytes} compressed bytes, and " . length($file->{stream}) . " came"
		  if $frame->{bytes} != length $file->{stream};
		$file->{stream_end} = $frame;
	}
	elsif ($type eq 'e')
	{
		croak "end outside of a file" unless $file;
		if ($file->{compression})
		{
			croak "file \"$file->{path}\" has no end of its stream" unless $file->{stream_end};
			# Of longer ones it takes too long here.
			croak "file \"$file->{path}\": the checksum of its stream differs"
			  if length $file->{stream} <= CHECKSUMMED
			  && $file->{stream_end}{digest} ne digest_of('CRC32C', $file->{raw} . $file->{stream} . $frame->{raw});
		}
		croak "file \"$file->{path}\" ends with $frame->{bytes} bytes"
		  if $frame->{bytes} != $file->{length};
		$file->{$_} = $frame->{$_} for qw(failures algorithm digest);
		push @{ $self->{files} }, $file;
		$self->{open} = undef;
		if (!$file->{compression})
		{
			$self->_end($file);
			return;
		}
		push @{ $self->{compressed} }, $file;
		$self->{waiting} += length $file->{stream};
		$self->_decompress if $self->{waiting} > DECOMPRESSED_TOGETHER;
	}
	elsif ($type eq 'v')
	{
		croak "\"$frame->{path}\" vanishes inside of \"$file->{path}\"" if $file;
		push @{ $self->{vanished} }, $frame->{path};
		$self->{vanish}->($frame) if $self->{vanish};
	}
	else
	{
		push @{ $self->{skipped} }, $type;
	}
	return;
}

# All of its bytes are there.
sub _end
{
	my ($self, $file) = @_;

	croak "file \"$file->{path}\": $file->{received} bytes of $file->{length}"
	  if $file->{received} != $file->{length};
	my $sha = delete $file->{sha};
	my $expected =
	    $file->{algorithm} eq 'NONE' ? ''
	  : $sha && $file->{algorithm} eq "SHA$self->{sha}" ? $sha->digest
	  : $self->{data_sink} ? undef
	  : digest_of($file->{algorithm}, $file->{data});
	croak "file \"$file->{path}\": $file->{algorithm} differs"
	  if defined $expected && $expected ne $file->{digest};
	$self->{end}->($file) if $self->{end};
	return;
}

# Those that came compressed, as if their bytes had come as they are. Many at a time: it takes
# a process for each time.
sub _decompress
{
	my ($self) = @_;
	my $files = delete $self->{compressed} or return;

	$self->{waiting} = 0;
	for my $one (decompress(@$files))
	{
		my ($file, $data) = @$one;
		$file->{received} = length $data;
		if ($self->{data_sink}) { $self->{data_sink}->($file, $data) }
		else { $file->{data} = $data }
		$file->{sha}->add($data) if $file->{sha};
		$self->_end($file);
	}
	return;
}

# No file is left half sent.
sub complete
{
	my ($self) = @_;

	$self->_decompress;
	return !defined $self->{open};
}

1;
