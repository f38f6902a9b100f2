# A whole backup through the four commands, written to disk by this code alone:
# the proof that docs/protocol.md is enough to write a client from.

package ParallelBackup::RawBackup;

use strict;
use warnings FATAL => 'all';

use Carp;
use Digest::SHA ();
use Exporter 'import';
use File::Path ();
use IO::Select;
use POSIX ();
use ParallelBackup::Connection;
use ParallelBackup::Frame qw(encode_path);
use ParallelBackup::Increment;
use ParallelBackup::Test;
use ParallelBackup::Transfer;

our @EXPORT = qw(raw_backup);

use constant BATCH_FILES => 64;
use constant BATCH_BYTES => 1024 * 1024;
use constant RANGE_BYTES => 4 * 1024 * 1024;

# raw_backup($node, $directory, ...) returns what START, the list, the transfers
# and STOP said.
#
# workers       connections beside the coordinator (default 3; 0: it fetches itself)
# connection    parameters of the connections; calls => 1: ordinary ones, and procedures
# coordinator   a connection to use as the coordinator; left open
# start         options of START_BACKUP
# transfer      more options of SEND_FILES_CONTENT
# stop          options of STOP_BACKUP
# tablespaces   oid => directory of the copy's tablespace
# wal           0: do not fetch WAL
# prior         text of the manifest that it is an increment to
# after_start, after_list, before_stop   called with the state, whose coordinator they may replace
sub raw_backup
{
	my ($node, $directory, %params) = @_;
	my %connection = %{ $params{connection} || {} };
	my $coordinator = $params{coordinator} || connection($node, %connection);
	my $state = {
		node => $node,
		directory => $directory,
		coordinator => $coordinator,
		manifest => {},
		vanished => [],
		failures => 0,
		files => 0,
		bytes => 0
	};

	if (defined $params{prior})
	{
		my $error = upload_manifest($coordinator, $params{prior})->{error};
		croak "the manifest was refused: $error->{message}" if $error;
	}
	my $start = $state->{start} =
	  start_backup($coordinator, %{ $params{start} || {} }, defined $params{prior} ? (INCREMENTAL => 'true') : ());
	my @id = (BACKUP_ID => $start->{backup_id});
	$params{after_start}->($state) if $params{after_start};

	_mkdir($directory);
	for my $tablespace (grep { defined $_->[0] } @{ $start->{tablespaces} })
	{
		my $target = $params{tablespaces}{ $tablespace->[0] };
		_mkdir($target) if defined $target;
	}

	my @list = list_files($state->{coordinator});
	$state->{list} = \@list;
	$params{after_list}->($state) if $params{after_list};

	# Directories first, as they were listed: parents come before children.
	for my $entry (grep { $_->{type} eq 'd' } @list)
	{
		my $path = "$directory/$entry->{path}";
		if (   $entry->{path} =~ m{^pg_tblspc/(\d+)(?:/|\z)}
			&& !-e "$directory/pg_tblspc/$1")
		{
			_tablespace($directory, $1, $params{tablespaces}{$1});
		}
		_mkdir($path) unless -d $path;
		chmod($entry->{mode}, $path);
	}

	# Relation files of some size in ranges, the rest in batches, large ones first.
	my @queue;
	my ($batch, $batch_bytes) = ([], 0);
	$state->{increments} = { map { $_->{path} => $_ } grep { defined $_->{blocks} } @list };
	for my $file (sort { $b->{size} <=> $a->{size} || $a->{path} cmp $b->{path} }
		grep { $_->{type} eq 'f' } @list)
	{
		if (@$batch >= BATCH_FILES
			|| $batch_bytes + $file->{size} > BATCH_BYTES && @$batch)
		{
			push @queue, $batch;
			($batch, $batch_bytes) = ([], 0);
		}
		push @$batch, defined $file->{blocks} ? $file : $file->{path};
		$batch_bytes += $file->{size};
	}
	push @queue, $batch if @$batch;

	my @workers =
	  $params{workers} // 1
	  ? map { connection($node, %connection) } 1 .. $params{workers} // 3
	  : ($coordinator);
	$state->{workers} = \@workers;
	_transfer($state, \@workers, \@queue,
		[ @id, FILE_CHECKSUM => 'SHA256', %{ $params{transfer} || {} } ]);
	$params{before_stop}->($state) if $params{before_stop};

	my $stop = $state->{stop} =
	  stop_backup($state->{coordinator}, %{ $params{stop} || {} });

	_write($state, 'backup_label', $stop->{totals}{labelfile});
	_write($state, 'global/pg_control', $stop->{controlfile});
	if ($params{wal} // 1)
	{
		# In the order given, oldest first, by a worker: only the id is needed.
		# Neither the manifest nor STOP_BACKUP's totals have it.
		my %before = map { $_ => $state->{$_} } qw(manifest files bytes);
		$state->{manifest} = {};
		_transfer($state, [ $workers[0] ],
			[ map { ["pg_wal/$_"] } @{ $stop->{wal} } ], [@id]);
		$state->{$_} = $before{$_} for keys %before;
		write_file("$directory/pg_wal/archive_status/$_.done", '')
		  for @{ $stop->{wal} };
	}
	_write_manifest($state);

	$_->close for grep { $_ != $coordinator } @workers;
	$coordinator->close unless $params{coordinator};
	return $state;
}

sub _mkdir
{
	my ($path) = @_;

	return if -d $path;
	File::Path::make_path($path, { mode => 0700 });
	return;
}

# pg_tblspc/<oid>: a link to where the copy's tablespace is, or, where none is
# given, a directory (an in-place tablespace).
sub _tablespace
{
	my ($directory, $oid, $target) = @_;
	my $path = "$directory/pg_tblspc/$oid";

	if (defined $target)
	{
		symlink($target, $path) or croak "could not link \"$path\": $!";
	}
	else
	{
		_mkdir($path);
	}
	return;
}

# Shares the queue among the connections and writes what they send.
sub _transfer
{
	my ($state, $workers, $queue, $options) = @_;
	my $select = IO::Select->new;
	my %worker_of;

	my $give = sub {
		my ($worker) = @_;
		my $batch = shift @$queue;
		if (!$batch)
		{
			$select->remove($worker->{conn}->socket);
			return;
		}
		my $transfer = $worker->{transfer} = _writer($state);
		$worker->{conn}->send_query(send_files_sql($batch, @$options),
			on_frame => sub { $transfer->frame($_[0]) });
	};

	for my $conn (@$workers)
	{
		my $worker = { conn => $conn };
		$worker_of{ $conn->socket } = $worker;
		$select->add($conn->socket);
		$give->($worker);
	}
	while ($select->count)
	{
		my @ready =
		  $select->can_read($PostgreSQL::Test::Utils::timeout_default)
		  or croak 'timed out waiting for files';
		for my $socket (@ready)
		{
			my $worker = $worker_of{$socket};
			my $conn = $worker->{conn};
			$conn->fill;
			while (my $message = $conn->poll)
			{
				next unless $message->{type} eq 'Z' || $message->{type} eq 'EOF';
				my $error = $conn->reply->{error};
				croak 'transfer failed: '
				  . ($error ? "$error->{sqlstate} $error->{message}" : 'no reply')
				  if $error || $message->{type} eq 'EOF';
				croak 'transfer ended inside of a file'
				  unless $worker->{transfer}->complete;
				push @{ $state->{notices} }, @{ $conn->reply->{notices} };
				$give->($worker);
				last;
			}
		}
	}
	return;
}

sub _writer
{
	my ($state) = @_;

	return ParallelBackup::Transfer->new(
		sha => 256,
		begin => sub {
			my ($file) = @_;
			# Without FILE_CHECKSUM the end frame has nothing to compare with.
			my $increment = $state->{increments}{ $file->{path} };
			$file->{name} = $increment ? increment_path($file->{path}) : $file->{path};
			my $path = "$state->{directory}/$file->{name}";
			open $file->{handle}, '>:raw', $path
			  or croak "could not create \"$path\": $!";
			chmod($file->{mode}, $path);
			return if !$increment;
			my $header = $file->{header} =
			  increment_header($increment->{blocks}, $increment->{truncation_block_length});
			# The digest of the manifest is of all of it, that of the end frame of what was sent.
			$file->{whole} = Digest::SHA->new(256)->add($header);
			print { $file->{handle} } $header;
		},
		data_sink => sub {
			my ($file, $bytes) = @_;
			print { $file->{handle} } $bytes;
			$file->{whole}->add($bytes) if $file->{whole};
		},
		end => sub {
			my ($file) = @_;
			close(delete $file->{handle}) or croak "could not write: $!";
			utime($file->{mtime}, $file->{mtime},
				"$state->{directory}/$file->{name}");
			$state->{failures} += $file->{failures};
			$state->{files}++;
			$state->{bytes} += $file->{length};
			$state->{manifest}{ $file->{name} } = {
				size => $file->{length} + length($file->{header} // ''),
				mtime => $file->{mtime},
				digest => unpack('H*', $file->{whole} ? $file->{whole}->digest : $file->{digest})
			};
		},
		vanish => sub { push @{ $state->{vanished} }, $_[0]{path} });
}

sub _write
{
	my ($state, $path, $content) = @_;

	write_file("$state->{directory}/$path", $content);
	$state->{manifest}{$path} = {
		size => length($content),
		mtime => time,
		digest => Digest::SHA::sha256_hex($content)
	};
	return;
}

# backup_manifest of version 2, for pg_verifybackup to judge.
sub _write_manifest
{
	my ($state) = @_;
	my $stop = $state->{stop};
	my @files = map {
		my $entry = $state->{manifest}{$_};
		my $name =
		  /[^\x20-\x21\x23-\x5B\x5D-\x7E]/
		  ? sprintf('"Encoded-Path": "%s"', unpack('H*', $_))
		  : qq("Path": "$_");
		sprintf(
			'{ %s, "Size": %s, "Last-Modified": "%s", "Checksum-Algorithm": "SHA256", "Checksum": "%s" }',
			$name,
			$entry->{size},
			POSIX::strftime('%Y-%m-%d %H:%M:%S GMT', gmtime($entry->{mtime})),
			$entry->{digest})
	} sort keys %{ $state->{manifest} };
	my @ranges = map {
		sprintf('{ "Timeline": %s, "Start-LSN": "%s", "End-LSN": "%s" }', @$_)
	} @{ $stop->{ranges} };

	# Version 2, new in 17, names the system.
	my $text = (
		server_major() >= 17
		? qq({ "PostgreSQL-Backup-Manifest-Version": 2,\n)
		  . qq("System-Identifier": $state->{start}{system_identifier},\n)
		: qq({ "PostgreSQL-Backup-Manifest-Version": 1,\n))
	  . qq("Files": [\n)
	  . join(",\n", @files)
	  . qq(\n],\n"WAL-Ranges": [\n)
	  . join(",\n", @ranges)
	  . qq(\n],\n"Manifest-Checksum": ");
	# The checksum covers everything up to and including the line before it.
	my $covered = substr($text, 0, rindex($text, "\n") + 1);
	$text .= Digest::SHA::sha256_hex($covered) . qq("}\n);
	write_file("$state->{directory}/backup_manifest", $text);
	return;
}

1;
