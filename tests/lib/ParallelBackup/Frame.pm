# Frames of SEND_FILES_CONTENT, decoded from docs/protocol.md alone.
#
# This is on purpose a second implementation: it shares nothing with the Rust
# crate that the server and the client use, so that a mistake made there on both
# sides still shows here.  Every decoder is strict: a byte too many or a missing
# NUL is an error, not something to read over.

package ParallelBackup::Frame;

use strict;
use warnings FATAL => 'all';

use Carp;
use Digest::SHA ();
use Exporter 'import';

our @EXPORT_OK = qw(decode_frame digest_of crc32c encode_path decode_path
  quote_literal MAX_FRAME %DIGEST_NAME);

# A frame is a CopyData of at most 1 MiB.
use constant MAX_FRAME => 1024 * 1024;

our %DIGEST_NAME = (
	0 => 'NONE',
	1 => 'CRC32C',
	2 => 'SHA224',
	3 => 'SHA256',
	4 => 'SHA384',
	5 => 'SHA512');

# One CopyData payload to a hash.  An unknown type is returned with its bytes,
# for the caller to skip.
sub decode_frame
{
	my ($bytes) = @_;

	croak "an empty frame" if length($bytes) == 0;
	croak "a frame of " . length($bytes) . " bytes" if length($bytes) > MAX_FRAME;

	my $type = substr($bytes, 0, 1);

	# Data first: the only frame whose cost matters.
	return { type => 'd', data => substr($bytes, 1) } if $type eq 'd';

	my $body = substr($bytes, 1);

	if ($type eq 'f')
	{
		croak "file frame too short" if length($body) < 37;
		my ($size, $offset, $length, $mtime, $mode, $compression, $rest) =
		  unpack('q> q> q> q> N C a*', $body);
		croak "unknown compression $compression" if $compression > 2;
		return {
			type => 'f',
			raw => $bytes,
			size => $size,
			offset => $offset,
			length => $length,
			mtime => $mtime,
			mode => $mode,
			compression => $compression,
			path => _only_string($rest)
		};
	}
	elsif ($type eq 'e')
	{
		croak "end frame too short" if length($body) < 15;
		my ($count, $failures, $algorithm, $digestlen, $digest) =
		  unpack('q> N C n a*', $body);
		croak "end frame says $digestlen digest bytes and has " . length($digest)
		  if length($digest) != $digestlen;
		croak "unknown digest algorithm $algorithm"
		  if !exists $DIGEST_NAME{$algorithm};
		return {
			type => 'e',
			raw => $bytes,
			bytes => $count,
			failures => $failures,
			algorithm => $DIGEST_NAME{$algorithm},
			digest => $digest
		};
	}
	elsif ($type eq 'c')
	{
		croak "stream end frame of " . length($body) . " bytes" if length($body) != 12;
		my ($count, $digest) = unpack('q> a4', $body);
		return { type => 'c', bytes => $count, digest => $digest };
	}
	elsif ($type eq 'v')
	{
		return { type => 'v', path => _only_string($body) };
	}

	return { type => $type, unknown => 1, data => $body };
}

# A NUL-terminated string that is the last field of its frame.
sub _only_string
{
	my ($bytes) = @_;
	my $end = index($bytes, "\0");

	croak "string without its NUL" if $end < 0;
	croak "bytes after the last string" if $end != length($bytes) - 1;
	return substr($bytes, 0, $end);
}

# Digest of $data in the bytes that an end frame carries.
sub digest_of
{
	my ($algorithm, $data) = @_;

	return '' if $algorithm eq 'NONE';
	# Least significant byte first, as backup_manifest prints it.
	return pack('V', crc32c($data)) if $algorithm eq 'CRC32C';
	return Digest::SHA::sha224($data) if $algorithm eq 'SHA224';
	return Digest::SHA::sha256($data) if $algorithm eq 'SHA256';
	return Digest::SHA::sha384($data) if $algorithm eq 'SHA384';
	return Digest::SHA::sha512($data) if $algorithm eq 'SHA512';
	croak "unknown digest $algorithm";
}

# CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), a byte at a time: for
# small files only. With a second argument, of bytes that follow others of that CRC.
my @crc_table = map {
	my $c = $_;
	$c = ($c & 1) ? (($c >> 1) ^ 0x82F63B78) : ($c >> 1) for 1 .. 8;
	$c;
} 0 .. 255;

sub crc32c
{
	my ($data, $before) = @_;
	my $crc = ($before // 0) ^ 0xFFFFFFFF;

	$crc = ($crc >> 8) ^ $crc_table[ ($crc ^ $_) & 0xFF ]
	  for unpack('C*', $data);
	return $crc ^ 0xFFFFFFFF;
}

# A path as commands and results spell it.
sub encode_path
{
	my ($bytes) = @_;

	$bytes =~ s/([^\x21-\x24\x26-\x7E])/sprintf('%%%02X', ord($1))/ge;
	return $bytes;
}

sub decode_path
{
	my ($text) = @_;

	croak "path \"$text\" holds a byte that should be spelled %XX"
	  if $text =~ /[^\x21-\x7E]/;
	$text =~ s/%([0-9A-F]{2})/chr(hex($1))/ge;
	return $text;
}

sub quote_literal
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

1;
