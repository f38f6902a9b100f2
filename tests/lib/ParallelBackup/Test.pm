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
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use ParallelBackup::Connection;
use ParallelBackup::Frame qw(encode_path decode_path quote_literal);
use ParallelBackup::Transfer;

our @EXPORT = qw(
  server_major wal_directories
  parallel_node connection sql_connection start_copy
  start_backup list_files send_files_sql send_files_call fetch stop_backup result_hash
  query_ok is_error is_report still_works
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
# preload   shared_preload_libraries
# install   an installation other than that of the programs in PATH
# init      more for ->init
# conf      more for postgresql.conf
# start     0: only made
sub parallel_node
{
	my ($name, %params) = @_;
	my $node =
	  PostgreSQL::Test::Cluster->new($name, install_path => $params{install});
	my %init = %{ $params{init} || {} };
	my @extra = @{ $init{extra} || [] };

	push @extra, '--no-locale', '--encoding=UTF8',
	  '--wal-segsize=' . ($params{segsize} // 1);
	# The default from 18.
	push @extra, '--data-checksums' if server_major() < 18;
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
	$node->start if $params{start} // 1;
	return $node;
}

# A connection for replication commands, as most tests want it.
sub connection
{
	my ($node, %params) = @_;

	return ParallelBackup::Connection->new($node, replication => 'true', %params);
}

# An ordinary connection, over which the commands are calls of the procedures.
sub sql_connection
{
	my ($node, %params) = @_;

	return ParallelBackup::Connection->new($node, calls => 1, %params);
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
	my $reply = $conn->query('IDENTIFY_SYSTEM');

	ok(!$reply->{error} && @{ $reply->{results} } == 1, $name);
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

# The text of a command, by the connection's route.
sub _command
{
	my ($conn, $name, %options) = @_;

	return $name . _options(%options) unless $conn->calls;
	return "CALL parallel_backup.\L$name\E(" . join(', ', _arguments(%options)) . ')';
}

sub _arguments
{
	my (%options) = @_;

	return map {
		my $value = $options{$_} // 'true';
		"\L$_\E => " . ($value =~ /^\d{1,9}\z/ && $_ !~ /^(?:LABEL|BACKUP_ID)\z/ ? $value : quote_literal($value))
	} sort keys %options;
}

# START_BACKUP with a fast checkpoint; the reply's results in one hash, with the
# reply itself under "reply".
sub start_backup
{
	my ($conn, %options) = @_;
	my $reply = query_ok($conn,
		_command($conn, 'START_BACKUP', CHECKPOINT => 'fast', %options));
	my ($header, $tablespaces, $files) = @{ $reply->{results} };

	return {
		%{ result_hash($header) },
		tablespaces => $tablespaces->{rows},
		%{ result_hash($files) },
		reply => $reply
	};
}

# SEND_FILE_LIST; a list of { path (bytes), name (as sent), type, size, mtime, mode }.
sub list_files
{
	my ($conn, %options) = @_;
	my $reply = query_ok($conn, _command($conn, 'SEND_FILE_LIST', %options));

	return map {
		{
			name => $_->[0],
			path => decode_path($_->[0]),
			type => $_->[1],
			size => $_->[2],
			mtime => $_->[3],
			mode => $_->[4]
		}
	} @{ $reply->{results}[0]{rows} };
}

# The text of SEND_FILES_CONTENT for raw paths; a path may be [path, offset] or
# [path, offset, length].
sub send_files_sql
{
	my ($files, %options) = @_;
	my @files;

	for my $file (@$files)
	{
		my ($path, $offset, $length) = ref $file ? @$file : ($file);
		my $text = quote_literal(encode_path($path));
		$text .= " (OFFSET '$offset'"
		  . (defined $length ? ", LENGTH '$length'" : '') . ')'
		  if defined $offset;
		push @files, $text;
	}
	my $with = _options(%options);
	return 'SEND_FILES_CONTENT (' . join(', ', @files) . ')'
	  . ($with ? " WITH$with" : '');
}

# The same as a call of the procedure.
sub send_files_call
{
	my ($files, %options) = @_;
	my @files = map { ref $_ ? $_ : [$_] } @$files;
	my @arguments =
	  ('files => ARRAY['
		  . join(', ', map { quote_literal(encode_path($_->[0])) } @files)
		  . ']::text[]');

	for my $place (1, 2)
	{
		next unless grep { defined $_->[$place] } @files;
		push @arguments, (qw(files offsets lengths))[$place] . " => '{"
		  . join(',', map { $_->[$place] // 'NULL' } @files) . "}'";
	}
	return 'CALL parallel_backup.send_files_content('
	  . join(', ', @arguments, _arguments(%options)) . ')';
}

# Fetches files and returns the ParallelBackup::Transfer, complete.
sub fetch
{
	my ($conn, $files, %options) = @_;
	my $reply = query_ok($conn,
		$conn->calls
		? send_files_call($files, %options)
		: send_files_sql($files, %options));
	my $transfer = ParallelBackup::Transfer->of($reply->{frames});

	croak "the transfer ended inside of a file" unless $transfer->complete;
	$transfer->{reply} = $reply;
	return $transfer;
}

# STOP_BACKUP; its five result sets by name, whether it ended with an error or not.
sub stop_backup
{
	my ($conn, %options) = @_;
	my $reply = $conn->query(_command($conn, 'STOP_BACKUP', %options));
	my @results = @{ $reply->{results} };

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
