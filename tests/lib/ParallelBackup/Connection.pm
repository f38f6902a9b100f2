# A frontend of its own: protocol 3.0 over the server's socket, by hand.
#
# libpq hides what these tests are about: the order of messages, the edges of a
# CopyOut, a client that stops reading in the middle of a frame.  So the messages
# are read here one by one and kept as they came.

package ParallelBackup::Connection;

use strict;
use warnings FATAL => 'all';

use Carp;
use IO::Socket::INET;
use Errno qw(EINTR EAGAIN EPIPE ECONNRESET);
use IO::Select;
use Time::HiRes ();
use PostgreSQL::Test::Utils ();
use ParallelBackup::Call qw(call_of);
use ParallelBackup::Frame qw(decode_frame);

use constant PROTOCOL_3_0 => 196608;
use constant CANCEL_REQUEST => 80877102;

# new($node, user =>, dbname =>, replication => 'true' | 'database', options => {})
#
# tcp => 1: over TCP, to 127.0.0.1, where the kernel takes far more than over a local socket.
# Dies where the server refuses the connection, unless fail_ok is given: then the
# error is left in ->startup_error.  calls => 1: the four commands are sent as calls
# of the SQL procedures.
sub new
{
	my ($class, $node, %params) = @_;

	my $self = bless {
		node => $node,
		calls => $params{calls},
		socket => $params{tcp}
		? IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $node->port, Proto => 'tcp') // croak "could not connect: $!"
		: $node->raw_connect(),
		buffer => '',
		parameters => {},
		reply => undef,
		eof => 0
	}, $class;
	binmode $self->{socket};

	my $user = $params{user} // scalar getpwuid($<);
	my @startup = (user => $user, client_encoding => 'UTF8');
	push @startup, (replication => $params{replication})
	  if defined $params{replication};
	my $dbname = $params{dbname};
	$dbname //= 'postgres'
	  if ($params{replication} // '') ne 'true';
	push @startup, (database => $dbname) if defined $dbname;
	push @startup, (application_name => $params{application_name})
	  if defined $params{application_name};
	push @startup, %{ $params{options} } if $params{options};

	my $body =
	  pack('N', PROTOCOL_3_0) . join('', map { "$_\0" } @startup) . "\0";
	$self->_write(pack('N', length($body) + 4) . $body);

	$self->{reply} = _new_reply();
	my $reply = $self->finish;
	if ($reply->{error})
	{
		$self->{startup_error} = $reply->{error};
		croak "connection refused: $reply->{error}{message}"
		  unless $params{fail_ok};
	}
	return $self;
}

sub pid { return $_[0]->{pid} }

# Whether commands travel as calls of the SQL procedures.
sub calls { return $_[0]->{calls} }
sub node { return $_[0]->{node} }
sub startup_error { return $_[0]->{startup_error} }
sub socket { return $_[0]->{socket} }

# Sends a simple query and reads all of its reply.
sub query
{
	my ($self, $sql, %params) = @_;

	$self->send_query($sql, %params);
	return $self->finish;
}

# Sends a simple query and returns at once.
#
# on_frame: called with each decoded frame, which is then not kept
# on_row:   called with each row and its result set, likewise
sub send_query
{
	my ($self, $sql, %params) = @_;

	$sql = call_of($sql) if $self->{calls};
	$self->send_message('Q', "$sql\0");
	$self->{reply} = { %{ _new_reply() }, %params };
	return;
}

sub send_message
{
	my ($self, $type, $body) = @_;

	return $self->_write($type . pack('N', length($body) + 4) . $body);
}

# Sends a command that takes data, and the data; the reply, as of query().
sub copy_in
{
	my ($self, $sql, $data) = @_;

	$self->send_query($sql);
	$self->read_until(sub { $_[0]->{type} eq 'G' }) or return $self->reply;
	$self->send_message('d', substr($data, $_ * 65536, 65536)) for 0 .. (length($data) - 1) / 65536;
	$self->send_message('c', '');
	return $self->finish;
}

# The reply being read.
sub reply { return $_[0]->{reply} }

# Reads messages until the server is ready again (or the connection is over) and
# returns the reply:
#   results  list of { columns, types, rows, tag }
#   tag      the CommandComplete that belongs to no result set
#   frames   frames of the CopyOut
#   copies   number of CopyOut responses
#   errors, notices   list of { severity, sqlstate, message, detail, hint }
#   error    the first of the errors
#   status   transaction status of ReadyForQuery; undef where the connection ended
#   eof      the connection ended
sub finish
{
	my ($self) = @_;

	while (1)
	{
		my $message = $self->step;
		last if $message->{type} eq 'Z' || $message->{type} eq 'EOF';
	}
	return $self->{reply};
}

# Reads messages until $predicate, called with each, says true; returns the one
# that did, or undef if the reply ended before.
sub read_until
{
	my ($self, $predicate) = @_;

	while (1)
	{
		my $message = $self->step;
		return $message if $predicate->($message);
		return undef if $message->{type} eq 'Z' || $message->{type} eq 'EOF';
	}
}

# Reads one message, waiting for it, and takes it into the reply.
sub step
{
	my ($self) = @_;

	while (1)
	{
		my $message = $self->poll;
		return $message if $message;
		$self->readable($PostgreSQL::Test::Utils::timeout_default)
		  or croak "timed out waiting for the server";
		$self->fill;
	}
}

# A message that has arrived in full, or undef.  Does not touch the socket.
sub poll
{
	my ($self) = @_;

	my $have = length($self->{buffer});
	if ($have >= 5)
	{
		my ($type, $length) = unpack('a N', $self->{buffer});
		if ($have >= $length + 1)
		{
			my $body = substr($self->{buffer}, 5, $length - 4);
			substr($self->{buffer}, 0, $length + 1, '');
			return $self->_absorb($type, $body);
		}
	}
	if ($self->{eof})
	{
		$self->{reply}{eof} = 1;
		$self->{reply}{partial} = $have;
		return { type => 'EOF' };
	}
	return undef;
}

# How many bytes lie in the socket, unread.
sub unread
{
	my ($self) = @_;

	# FIONREAD of Linux, which Perl has no name for.
	ioctl($self->{socket}, 0x541B, my $count = pack('i', 0)) or croak "could not ask the socket: $!";
	return unpack('i', $count);
}

# Waits until the socket has something to read.
sub readable
{
	my ($self, $timeout) = @_;

	return 1 if $self->{eof};
	return scalar IO::Select->new($self->{socket})->can_read($timeout);
}

# One read from the socket into the buffer, of as many bytes at most.
sub fill
{
	my ($self, $most) = @_;

	return if $self->{eof};
	my $n =
	  sysread($self->{socket}, $self->{buffer}, $most // 1024 * 1024,
		length($self->{buffer}));
	if (!defined $n)
	{
		return if $!{EINTR} || $!{EAGAIN};
		croak "could not read from server: $!" unless $!{ECONNRESET};
		$n = 0;
	}
	$self->{eof} = 1 if $n == 0;
	return;
}

# Asks the server to cancel what this connection is doing, by a second one.
sub cancel
{
	my ($self) = @_;

	my $socket = $self->{node}->raw_connect();
	my $request =
	  pack('N N N a*', 12 + length($self->{key}),
		CANCEL_REQUEST, $self->{pid}, $self->{key});
	syswrite($socket, $request);
	# The postmaster closes the connection once the signal is sent.
	sysread($socket, my $unused, 1);
	close($socket);
	return;
}

# Leaves as a good client does.
sub close
{
	my ($self) = @_;

	if (!$self->{eof})
	{
		local $@;
		eval { $self->send_message('X', ''); };
	}
	CORE::close($self->{socket});
	$self->{eof} = 1;
	return;
}

# Leaves without a word, with whatever is unread.
sub drop
{
	my ($self) = @_;

	CORE::close($self->{socket});
	$self->{eof} = 1;
	return;
}

sub _new_reply
{
	return {
		results => [],
		frames => [],
		copies => 0,
		errors => [],
		notices => [],
		open => undef
	};
}

sub _write
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';

	my $done = 0;
	while ($done < length($bytes))
	{
		my $n =
		  syswrite($self->{socket}, $bytes, length($bytes) - $done, $done);
		if (!defined $n)
		{
			next if $!{EINTR} || $!{EAGAIN};
			# The server has left: what it said before is still to be read.
			return 0 if $!{EPIPE} || $!{ECONNRESET};
			croak "could not write to server: $!";
		}
		$done += $n;
	}
	return 1;
}

sub _absorb
{
	my ($self, $type, $body) = @_;
	my $reply = $self->{reply};
	my $message = { type => $type };

	if ($type eq 'd')
	{
		croak "CopyData outside of a copy" unless $reply->{in_copy};
		my $frame = $message->{frame} = decode_frame($body);
		if ($reply->{on_frame}) { $reply->{on_frame}->($frame) }
		else { push @{ $reply->{frames} }, $frame }
	}
	elsif ($type eq 'D')
	{
		my $open = $reply->{open} or croak "DataRow outside of a result set";
		my $row = $message->{row} = _row($body);
		croak "DataRow has another number of columns"
		  if @$row != @{ $open->{columns} };
		if ($reply->{on_row}) { $reply->{on_row}->($row, $open) }
		else { push @{ $open->{rows} }, $row }
	}
	elsif ($type eq 'T')
	{
		croak "RowDescription inside of a result set" if $reply->{open};
		my ($columns, $types) = _columns($body);
		$reply->{open} =
		  { columns => $columns, types => $types, rows => [], tag => undef };
	}
	elsif ($type eq 'C')
	{
		my $tag = $message->{tag} = unpack('Z*', $body);
		if (my $open = delete $reply->{open})
		{
			$open->{tag} = $tag;
			push @{ $reply->{results} }, $open;
		}
		else
		{
			croak "two command tags: $reply->{tag} and $tag"
			  if defined $reply->{tag};
			$reply->{tag} = $tag;
		}
	}
	elsif ($type eq 'E' || $type eq 'N')
	{
		my $report = $message->{report} = _report($body);
		if ($type eq 'E')
		{
			push @{ $reply->{errors} }, $report;
			$reply->{error} //= $report;
			$reply->{in_copy} = 0;
			delete $reply->{open};
		}
		else
		{
			push @{ $reply->{notices} }, $report;
		}
	}
	elsif ($type eq 'H')
	{
		my ($format, $columns) = unpack('C n', $body);
		$reply->{copy_format} = $format;
		$reply->{copy_columns} = $columns;
		$reply->{copies}++;
		$reply->{in_copy} = 1;
	}
	elsif ($type eq 'c')
	{
		croak "CopyDone outside of a copy" unless $reply->{in_copy};
		$reply->{in_copy} = 0;
		$reply->{copy_done}++;
	}
	elsif ($type eq 'Z')
	{
		$reply->{status} = $body;
		croak "ready for a query inside of a copy" if $reply->{in_copy};
		croak "ready for a query inside of a result set" if $reply->{open};
	}
	elsif ($type eq 'K')
	{
		($self->{pid}, $self->{key}) = unpack('N a*', $body);
	}
	elsif ($type eq 'S')
	{
		my ($name, $value) = unpack('Z* Z*', $body);
		$self->{parameters}{$name} = $value;
	}
	elsif ($type eq 'R')
	{
		croak "the server asks for a password" if unpack('N', $body) != 0;
	}
	elsif ($type eq 'G') { $reply->{copy_in}++ }
	elsif ($type eq 'I') { $reply->{empty}++ }
	elsif ($type ne 'A' && $type ne 'W')
	{
		croak "unexpected message \"$type\"";
	}

	return $message;
}

sub _columns
{
	my ($body) = @_;
	my $n = unpack('n', $body);
	my $at = 2;
	my (@columns, @types);

	for (1 .. $n)
	{
		my $end = index($body, "\0", $at);
		push @columns, substr($body, $at, $end - $at);
		$at = $end + 1;
		my ($table, $attnum, $type, $length, $modifier, $format) =
		  unpack('N n N n N n', substr($body, $at, 18));
		croak "column \"$columns[-1]\" is not in text format" if $format != 0;
		push @types, $type;
		$at += 18;
	}
	croak "bytes after the last column" if $at != length($body);
	return (\@columns, \@types);
}

sub _row
{
	my ($body) = @_;
	my $n = unpack('n', $body);
	my $at = 2;
	my @row;

	for (1 .. $n)
	{
		my $length = unpack('l>', substr($body, $at, 4));
		$at += 4;
		if ($length < 0)
		{
			push @row, undef;
			next;
		}
		push @row, substr($body, $at, $length);
		$at += $length;
	}
	croak "bytes after the last field" if $at != length($body);
	return \@row;
}

my %report_field = (
	S => 'severity',
	C => 'sqlstate',
	M => 'message',
	D => 'detail',
	H => 'hint',
	W => 'context');

sub _report
{
	my ($body) = @_;
	my %report;

	for my $field (split /\0/, $body)
	{
		my $code = substr($field, 0, 1);
		$report{ $report_field{$code} } = substr($field, 1)
		  if exists $report_field{$code};
	}
	return \%report;
}

1;
