# The four commands as calls of the SQL procedures, after docs/protocol.md: the same test then runs
# on a server that has the replication grammar and on one that has not.

package ParallelBackup::Call;

use strict;
use warnings FATAL => 'all';

use Carp;
use Exporter 'import';

our @EXPORT_OK = qw(call_of);

# Arguments that are text: a number is a string there.
my %is_text = map { $_ => 1 } qw(label checkpoint backup_id new_backup_id file_checksum compression compression_detail
	terminate_transfers);

# What of a file is asked for, and the argument that says so for all files.
my %argument_of = (OFFSET => 'offsets', LENGTH => 'lengths', BLOCKS => 'blocks');

# The CALL that asks for what a command asks for.  What is none of the four
# commands comes back as it is.
sub call_of
{
	my ($command) = @_;

	return $command
	  unless $command =~ /\A(START_BACKUP|SEND_FILE_LIST|SEND_FILES_CONTENT|STOP_BACKUP)\b/g;
	my $name = $1;
	my @arguments;
	if ($name eq 'SEND_FILES_CONTENT')
	{
		@arguments = _files(\$command);
		push @arguments, _options(\$command) if $command =~ /\G\s*WITH\b/gc;
	}
	else
	{
		@arguments = _options(\$command);
	}
	croak 'cannot read "' . substr($command, pos($command) // 0, 100) . '" as a part of a command'
	  unless $command =~ /\G\s*;?\s*\z/gc;
	return "CALL parallel_backup.\L$name\E(" . join(', ', @arguments) . ')';
}

# [ ( name [ value ] [, ...] ) ]
sub _options
{
	my ($text) = @_;

	return map {
		my ($name, $value) = @$_;
		$name = lc $name;
		$value = !defined $value ? 'true' : $value =~ /^'/ ? $value : $value =~ /^\d+\z/ && !$is_text{$name} ? $value : "'$value'";
		"$name => $value"
	} _list($text);
}

# ( 'path' [ ( options ) ] [, ...] )
sub _files
{
	my ($text) = @_;
	my (@paths, %range);

	$$text =~ /\G\s*\(/gc or croak 'no files';
	while ($$text =~ /\G\s*('[^']*(?:''[^']*)*')/gc)
	{
		push @paths, $1;
		for my $option (_list($text))
		{
			croak "$option->[0] of a file cannot be said in a call"
			  if $option->[0] !~ /^(?:OFFSET|LENGTH|BLOCKS)\z/ || !defined $option->[1];
			$range{ $argument_of{ $option->[0] } }[$#paths] = $option->[1];
		}
		last unless $$text =~ /\G\s*,/gc;
	}
	$$text =~ /\G\s*\)/gc or croak 'the files do not end';
	return (
		'files => ARRAY[' . join(', ', @paths) . ']::text[]',
		map {
			my $values = $range{$_};
			"$_ => ARRAY[" . join(', ', map { $values->[$_] // 'NULL' } 0 .. $#paths) . ($_ eq 'blocks' ? ']::text[]' : ']::int8[]')
		} sort { $b cmp $a } keys %range);
}

# What is in parentheses, if there are any, as [name, value].
sub _list
{
	my ($text) = @_;
	my @list;

	return () unless $$text =~ /\G\s*\(/gc;
	while ($$text =~ /\G\s*(\w+)(?:\s+('[^']*(?:''[^']*)*'|\w+))?/gc)
	{
		push @list, [ $1, $2 ];
		last unless $$text =~ /\G\s*,/gc;
	}
	$$text =~ /\G\s*\)/gc or croak 'the options do not end';
	return @list;
}

1;
