# Files of an incremental backup, put together after docs/protocol.md alone.

package ParallelBackup::Increment;

use strict;
use warnings FATAL => 'all';

use Carp;
use Exporter 'import';

our @EXPORT = qw(block_numbers increment_path increment_header read_increment);

use constant MAGIC => 0xd3ae1f0d;
use constant BLOCK => 8192;

# The numbers of a list: 0-3,7.
sub block_numbers
{
	my ($list) = @_;

	return map { /^(\d+)-(\d+)\z/ ? $1 .. $2 : $_ } split /,/, $list;
}

# Where a file with a list goes.
sub increment_path
{
	my ($path) = @_;

	$path =~ s{([^/]+)\z}{INCREMENTAL.$1} or croak "no name in \"$path\"";
	return $path;
}

# What stands before its blocks.
sub increment_header
{
	my ($list, $truncation_block_length) = @_;
	my @numbers = block_numbers($list);
	my $header = pack('L3 L*', MAGIC, scalar @numbers, $truncation_block_length, @numbers);

	$header .= "\0" x (-length($header) % BLOCK) if @numbers;
	return $header;
}

# A file of an incremental backup, by whomever: { numbers, truncation_block_length, blocks }, the blocks by
# their numbers.
sub read_increment
{
	my ($bytes) = @_;
	my ($magic, $count, $truncation_block_length) = unpack('L3', $bytes);

	croak 'not an increment' if $magic != MAGIC;
	my @numbers = unpack("x12 L$count", $bytes);
	my $at = 12 + 4 * $count;
	$at += -$at % BLOCK if $count;
	croak 'an increment of another length' if length($bytes) != $at + $count * BLOCK;
	my %blocks;
	@blocks{@numbers} = map { substr($bytes, $at + $_ * BLOCK, BLOCK) } 0 .. $#numbers;
	return { numbers => \@numbers, truncation_block_length => $truncation_block_length, blocks => \%blocks };
}

1;
