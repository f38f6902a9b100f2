# What the TAP files share: nodes, the four commands in short form, comparison of
# data directories.

package ParallelBackup::Test;

use strict;
use warnings FATAL => 'all';

use Carp;
use Digest::SHA ();
use Exporter 'import';
use Fcntl ':mode';
use File::Find ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Call qw(call_of);
use ParallelBackup::Connection;
use ParallelBackup::Frame qw(crc32c encode_path decode_path quote_literal);
use ParallelBackup::Transfer;
use Time::HiRes ();

# Whoever started this may have had it ignore signals (nohup, a shell's background job), and the
# programs under test would go on ignoring them.
$SIG{$_} = 'DEFAULT' for qw(HUP INT);

# A file that does not end is ended from outside: what it was waiting for, and which processes there were.
# (PostgreSQL::Test::Cluster has such a handler in an INIT block, too, which comes before this one.)
INIT
{
	$SIG{TERM} = \&ended_by_signal;
}

my $this_process = $$;

sub ended_by_signal
{
	# A process of its own for something has no servers to stop.
	POSIX::_exit(1) if $$ != $this_process;
	note(grep { /postgres|pg_/ } `ps -eo pid,ppid,stat,wchan:20,etime,args`);
	note(Carp::longmess('ended by a signal'));
	# No eval is to take it for a failure of its own.
	exit 1;
}

our @EXPORT = qw(
	checked_results
  server_major wal_directories stock_server
  parallel_node connection sql_connection may_back_up start_copy
  upload_manifest start_backup list_files send_files_sql send_files_call fetch stop_backup result_hash tag_of
  query_ok is_error is_report still_works sending wait_until_full wait_until_up
  file_tree compare_trees write_file make_file
  encode_path decode_path quote_literal
);

# The major version of the servers: that of the programs that are first in PATH.
sub server_major
{
	our $major //= do
	{
		my ($version) = run_command([ 'pg_config', '--version' ]);
		$version =~ /^PostgreSQL (\d+)/ or croak "unknown version \"$version\"";
		$1;
	};
	return $major;
}

# Whether the server under test is a stock one, which has no replication grammar for
# the commands: PPB_STOCK says so, and parallel_node() that it is true.
sub stock_server { return $ENV{PPB_STOCK} ? 1 : 0 }

# The directories that BASE_BACKUP puts into pg_wal.
sub wal_directories
{
	return server_major() >= 17 ? qw(archive_status summaries) : qw(archive_status);
}

# New in 16.
if (!PostgreSQL::Test::Cluster->can('wait_for_replay_catchup'))
{
	no strict 'refs';
	*{'PostgreSQL::Test::Cluster::wait_for_replay_catchup'} = sub {
		my ($self, $standby, $node) = @_;
		$self->wait_for_catchup($standby, 'replay', ($node // $self)->lsn('flush'));
	};
}

# A started node with the library preloaded, without autovacuum, so that what
# the test does not touch stays as it is.
#
# segsize   WAL segment size in MB (1: small backups)
# checksums 0: no page checksums
# preload   shared_preload_libraries
# extension 1: CREATE EXTENSION in the database postgres, 0: none; by default where
#           the commands need it
# init      more for ->init
# conf      more for postgresql.conf
# start     0: only made, and the extension is the test's affair
sub parallel_node
{
	my ($name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my %init = %{ $params{init} || {} };
	my @extra = @{ $init{extra} || [] };

	push @extra, '--no-locale', '--encoding=UTF8',
	  '--wal-segsize=' . ($params{segsize} // 1);
	if ($params{checksums} // 1)
	{
		# The default from 18.
		push @extra, '--data-checksums' if server_major() < 18;
	}
	elsif (server_major() >= 18)
	{
		push @extra, '--no-data-checksums';
	}
	$node->init(allows_streaming => 1, %init, extra => \@extra);
	$node->append_conf('postgresql.conf', <<CONF);
autovacuum = off
max_connections = 30
max_wal_senders = 20
max_wal_size = '1GB'
wal_keep_size = '128MB'
CONF
	my $preload = $params{preload} // 'pg_parallel_backup';
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$preload'");
	$node->append_conf('postgresql.conf', $params{conf}) if $params{conf};
	return $node if !($params{start} // 1);
	$node->start;
	if ($preload ne '')
	{
		# No test takes the other way in by mistake.
		my $grammar = $node->safe_psql('postgres', 'SHOW pg_parallel_backup.replication_grammar');
		croak "replication_grammar is $grammar" if $grammar ne (stock_server() ? 'off' : 'on');
		$node->safe_psql('postgres', 'CREATE EXTENSION pg_parallel_backup')
		  if $params{extension} // stock_server();
	}
	return $node;
}

# A connection for the commands, as most tests want it: for replication, or, where
# the server has no grammar for them, an ordinary one.  replication => 'database'
# is that by either way.
sub connection
{
	my ($node, %params) = @_;

	$params{calls} //= stock_server();
	$params{replication} //= 'true' unless $params{calls};
	delete $params{replication} if $params{calls} && ($params{replication} // '') eq 'true';
	return ParallelBackup::Connection->new($node, %params);
}

# An ordinary connection, over which the commands are calls of the procedures.
sub sql_connection
{
	my ($node, %params) = @_;

	return ParallelBackup::Connection->new($node, calls => 1, %params);
}

# What roles need besides the REPLICATION attribute.
sub may_back_up
{
	my ($node, @roles) = @_;

	$node->safe_psql('postgres', 'GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA parallel_backup TO ' . join(', ', @roles))
	  if stock_server();
	return;
}

# Starts a node on the data directory that a test has put at ->data_dir.
sub start_copy
{
	my ($copy, %params) = @_;

	$copy->append_conf('postgresql.conf', 'port = ' . $copy->port);
	$copy->append_conf('postgresql.conf',
		"unix_socket_directories = '" . $copy->host . "'");
	$copy->append_conf('postgresql.conf', $params{conf}) if $params{conf};
	$copy->start;
	return $copy;
}

# Sends a query that must succeed; returns the reply.
sub query_ok
{
	my ($conn, $sql, %params) = @_;
	my $reply = $conn->query($sql, %params);

	croak "\"" . substr($sql, 0, 200) . "\" failed: "
	  . join(' ', map { $_ // '' } @{ $reply->{error} }{qw(sqlstate message hint)})
	  if $reply->{error};
	croak "the connection ended during \"$sql\"" if $reply->{eof};
	return $reply;
}

# One error report: code and words.
sub is_report
{
	my ($report, $sqlstate, $message, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	if (!$report)
	{
		fail("$name: an error");
		fail("$name: its message");
		return;
	}
	is($report->{sqlstate}, $sqlstate, "$name: SQLSTATE")
	  or diag("message: $report->{message}");
	like($report->{message}, $message, "$name: message");
	return;
}

# A command that must fail so, once, and leave the connection usable.
sub is_error
{
	my ($conn, $sql, $sqlstate, $message, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $reply = $conn->query($sql);

	is_report($reply->{error}, $sqlstate, $message, $name);
	like($reply->{error}{hint} // '', $params{hint}, "$name: hint")
	  if $params{hint};
	ok( @{ $reply->{errors} } <= 1 && defined $reply->{status},
		"$name: one error, and ready again");
	return $reply;
}

# The connection answers.
sub still_works
{
	my ($conn, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $reply = $conn->query($conn->calls ? 'SELECT 1' : 'IDENTIFY_SYSTEM');

	ok(!$reply->{error} && @{ $reply->{results} } == 1, $name);
	return;
}

# A condition on pg_stat_activity: the session carries out SEND_FILES_CONTENT, by
# either way.
sub sending
{
	return q(query ~* '^(?:CALL parallel_backup\.)?SEND_FILES_CONTENT' AND state = 'active');
}

# Returns once the server takes connections again after a crash. psql is given no input: one that has failed to connect would
# break the pipe that it comes by.
sub wait_until_up
{
	my ($node) = @_;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if system('psql', '-XAtq', '-c', 'SELECT 1', '-o', '/dev/null', '-L', '/dev/null', '-d', $node->connstr('postgres')) == 0;
		Time::HiRes::sleep(0.1);
	}
	croak 'the server does not come back';
}

# Returns once what the session sends has no room any more, and the session waits until it is read. A server that was
# waiting, and has not found time to go on since the last was read, looks the same for a moment, but then there
# comes more.
sub wait_until_full
{
	my ($node, $conn) = @_;
	my $before = -1;
	my $is_full;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my $waits = $node->safe_psql('postgres', "SELECT wait_event = 'ClientWrite' FROM pg_stat_activity WHERE pid = " . $conn->pid);
		my $now = $conn->unread;
		$is_full = $waits eq 't' && $now > 0 && $now == $before;
		last if $is_full;
		$before = $waits eq 't' ? $now : -1;
		Time::HiRes::sleep(0.05);
	}
	$is_full or croak 'process ' . $conn->pid . ' does not wait for its client';
	return;
}

# The single row of a result set as a hash.
sub result_hash
{
	my ($result) = @_;

	croak "not one row" if @{ $result->{rows} } != 1;
	my %hash;
	@hash{ @{ $result->{columns} } } = @{ $result->{rows}[0] };
	return \%hash;
}

# The rows of a reply without their checksum column, after a look at it: it covers the
# values of all rows so far. And at the number of rows, which is in the tag.
sub checked_results
{
	my ($reply) = @_;
	my @results;
	my $crc;

	for my $result (@{ $reply->{results} })
	{
		my @rows;
		croak "no checksum" if $result->{columns}[-1] ne 'checksum';
		for my $row (@{ $result->{rows} })
		{
			my ($checksum, @values) = ($row->[-1], @$row[ 0 .. $#$row - 1 ]);
			$crc = crc32c(join('', map { defined $_ ? pack('l> a*', length $_, $_) : pack('l>', -1) } @values), $crc);
			croak "checksum $checksum of row (@{[ map { $_ // 'NULL' } @values ]})"
			  if $checksum ne unpack('H*', pack('V', $crc));
			push @rows, \@values;
		}
		my $count = @rows;
		croak "$count rows of $result->{tag}"
		  if $result->{tag} ne "SELECT $count";
		push @results,
		  { %$result, columns => [ @{ $result->{columns} }[ 0 .. $#{ $result->{columns} } - 1 ] ], rows => \@rows };
	}
	return @results;
}

sub _options
{
	my (%options) = @_;

	return '' if !%options;
	return ' ('
	  . join(
		', ',
		map {
			my $value = $options{$_};
			defined $value
			  ? "$_ " . ($value =~ /^\d{1,9}\z/ ? $value : quote_literal($value))
			  : $_
		} sort keys %options) . ')';
}

# The last CommandComplete's tag of a command.
sub tag_of
{
	my ($conn, $command) = @_;

	return $conn->calls ? 'CALL' : $command;
}

# Uploads the manifest of a prior backup, by whichever way the connection has; the last reply.
#
# piece   bytes in one call
sub upload_manifest
{
	my ($conn, $manifest, %params) = @_;
	my $size = $params{piece} // 4096;

	return $conn->copy_in('UPLOAD_MANIFEST', $manifest) if !$conn->calls;
	my $at = 0;
	while (1)
	{
		my $piece = substr($manifest, $at, $size);
		my $is_last = $at + $size >= length($manifest);
		my $reply = $conn->query('CALL parallel_backup.upload_manifest('
			  . "'\\x" . unpack('H*', $piece) . "', $at, " . ($is_last ? 'true' : 'false') . ')');
		return $reply if $reply->{error} || $is_last;
		$at += $size;
	}
}

# START_BACKUP with a fast checkpoint; the reply's results in one hash, with the
# reply itself under "reply".
sub start_backup
{
	my ($conn, %options) = @_;
	my $reply = query_ok($conn,
		'START_BACKUP' . _options(CHECKPOINT => 'fast', %options));
	my ($header, $tablespaces, $files) = checked_results($reply);

	return {
		%{ result_hash($header) },
		tablespaces => $tablespaces->{rows},
		%{ result_hash($files) },
		reply => $reply
	};
}

# SEND_FILE_LIST; a list of { path (bytes), name (as sent), type, size, mtime, mode }, and in an
# incremental backup { blocks, truncation_block_length }.
sub list_files
{
	my ($conn, %options) = @_;
	my $reply = query_ok($conn, 'SEND_FILE_LIST' . _options(%options));

	return map {
		{
			name => $_->[0],
			path => decode_path($_->[0]),
			type => $_->[1],
			size => $_->[2],
			mtime => $_->[3],
			mode => $_->[4],
			@$_ > 5 ? (blocks => $_->[5], truncation_block_length => $_->[6]) : ()
		}
	} map { @{ $_->{rows} } } checked_results($reply);
}

# The text of SEND_FILES_CONTENT for raw paths; a path may be [path, offset],
# [path, offset, length] or { path, blocks }.
sub send_files_sql
{
	my ($files, %options) = @_;
	my @files;

	for my $file (@$files)
	{
		my ($path, $offset, $length) = ref $file eq 'ARRAY' ? @$file : ref $file ? $file->{path} : ($file);
		my @range;
		push @range, "BLOCKS '$file->{blocks}'" if ref $file eq 'HASH' && defined $file->{blocks};
		push @range, "OFFSET '$offset'" if defined $offset;
		push @range, "LENGTH '$length'" if defined $length;
		push @files, quote_literal(encode_path($path)) . (@range ? ' (' . join(', ', @range) . ')' : '');
	}
	my $with = _options(%options);
	return 'SEND_FILES_CONTENT (' . join(', ', @files) . ')'
	  . ($with ? " WITH$with" : '');
}

# The same as a call of the procedure.
sub send_files_call
{
	my ($files, %options) = @_;

	return call_of(send_files_sql($files, %options));
}

# Fetches files and returns the ParallelBackup::Transfer, complete.
sub fetch
{
	my ($conn, $files, %options) = @_;
	my $reply = query_ok($conn, send_files_sql($files, %options));
	my $transfer = ParallelBackup::Transfer->of($reply->{frames});

	croak "the transfer ended inside of a file" unless $transfer->complete;
	$transfer->{reply} = $reply;
	return $transfer;
}

# STOP_BACKUP; its five result sets by name, whether it ended with an error or not.
sub stop_backup
{
	my ($conn, %options) = @_;
	my $reply = $conn->query('STOP_BACKUP' . _options(%options));
	my @results = checked_results($reply);

	croak 'STOP_BACKUP failed: '
	  . ($reply->{error} ? $reply->{error}{message} : 'no reply')
	  if @results != 5;
	return {
		%{ result_hash($results[0]) },
		controlfile => pack('H*', $results[1]{rows}[0][0]),
		ranges => $results[2]{rows},
		wal => [ map { $_->[0] } @{ $results[3]{rows} } ],
		totals => result_hash($results[4]),
		reply => $reply
	};
}

# Everything below a directory: path => { type, mode, size, digest | target }.
# Tablespace links are read, not followed.
sub file_tree
{
	my ($root) = @_;
	my %tree;

	File::Find::find(
		{
			no_chdir => 1,
			wanted => sub {
				my $path = $File::Find::name;
				return if $path eq $root;
				my $relative = substr($path, length($root) + 1);
				my @stat = lstat($path) or croak "could not stat \"$path\": $!";
				my %entry = (mode => $stat[2] & 07777);
				if (S_ISLNK($stat[2]))
				{
					%entry = (type => 'l', target => readlink($path));
				}
				elsif (S_ISDIR($stat[2])) { $entry{type} = 'd' }
				elsif (S_ISREG($stat[2]))
				{
					$entry{type} = 'f';
					$entry{size} = $stat[7];
					$entry{mtime} = $stat[9];
					# The object form: addfile() would strip blanks off a name.
					open my $fh, '<:raw', $path
					  or croak "could not open \"$path\": $!";
					$entry{digest} =
					  Digest::SHA->new(256)->addfile($fh)->hexdigest;
					CORE::close($fh);
				}
				else { $entry{type} = 'special' }
				$tree{$relative} = \%entry;
			}
		},
		$root);
	return \%tree;
}

# Compares two trees (of file_tree, or directories).
#
# only_in_left, only_in_right, differ: hash of path => the reason why it may.  An
# exception that is not needed is reported as well, so that the list stays true.
# ignore: list of regular expressions of what may be on one side alone.
sub compare_trees
{
	my ($left, $right, $name, %params) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$left = file_tree($left) unless ref $left;
	$right = file_tree($right) unless ref $right;
	my %excused;
	my @problems;

	my $excuse = sub {
		my ($kind, $path) = @_;
		for my $pattern (keys %{ $params{$kind} || {} })
		{
			next unless $path eq $pattern || $path =~ /^(?:$pattern)\z/;
			$excused{$kind}{$pattern}++;
			return 1;
		}
		return 0;
	};

	for my $path (sort keys %{ { %$left, %$right } })
	{
		my ($l, $r) = ($left->{$path}, $right->{$path});
		next if (!$l || !$r) && grep { $path =~ /^(?:$_)\z/ } @{ $params{ignore} || [] };
		if (!$r)
		{
			push @problems, "only in the first: $path"
			  unless $excuse->('only_in_left', $path);
		}
		elsif (!$l)
		{
			push @problems, "only in the second: $path"
			  unless $excuse->('only_in_right', $path);
		}
		else
		{
			my @fields =
			  grep { ($l->{$_} // '') ne ($r->{$_} // '') }
			  (qw(type mode size digest target), $params{mtime} ? 'mtime' : ());
			next if !@fields || $excuse->('differ', $path);
			push @problems, "differs in " . join(
				', ',
				map {
					sprintf('%s (%s, %s)',
						$_, map { $_ // '' } $l->{$_}, $r->{$_})
				} @fields) . ": $path";
		}
	}
	for my $kind (qw(only_in_left only_in_right differ))
	{
		for my $pattern (keys %{ $params{$kind} || {} })
		{
			push @problems, "exception \"$pattern\" ($kind) was not needed"
			  if !$excused{$kind}{$pattern};
		}
	}
	ok(!@problems, $name)
	  or diag(join("\n", splice(@problems, 0, 40)));
	return;
}

sub write_file
{
	my ($path, $content, $mode) = @_;

	open my $fh, '>:raw', $path or croak "could not create \"$path\": $!";
	print $fh $content;
	CORE::close($fh) or croak "could not write \"$path\": $!";
	chmod($mode // 0600, $path);
	return;
}

# A sparse file of the given size.
sub make_file
{
	my ($path, $size) = @_;

	write_file($path, '');
	truncate($path, $size) or croak "could not extend \"$path\": $!";
	return;
}

1;
