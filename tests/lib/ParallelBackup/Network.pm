# What stands between client and server in tests: a process that takes connections over TCP, and has each of them
# carried to the server by a process of its own. What happens to the bytes on the way is for those to say who derive
# from this: _connect makes the connection to the server, _carry(client, server, number) hands on what comes; or
# _accepted(client, number) does all of it.

package ParallelBackup::Network;

use strict;
use warnings FATAL => 'all';

use Carp;
use IO::Socket::INET;
use POSIX ();

sub new
{
	my ($class, %params) = @_;
	my $listener = IO::Socket::INET->new(Listen => 100, LocalAddr => '127.0.0.1', Proto => 'tcp')
	  or croak "could not listen: $!";
	my $self = bless { %params, port => $listener->sockport }, $class;

	$self->{pid} = fork() // croak "could not fork: $!";
	if (!$self->{pid})
	{
		$self->_serve($listener);
		POSIX::_exit(0);
	}
	close $listener;
	# Here too: it may be stopped before it has come to that itself.
	POSIX::setpgid($self->{pid}, $self->{pid});
	return $self;
}

sub port { return $_[0]{port} }

sub stop
{
	my ($self) = @_;

	if (my $pid = delete $self->{pid})
	{
		# Its connections are processes of its group.
		kill 'KILL', -$pid, $pid;
		waitpid $pid, 0;
	}
	return;
}

sub DESTROY { local $?; $_[0]->stop; return }

sub _serve
{
	my ($self, $listener) = @_;

	POSIX::setpgid(0, 0);
	$SIG{CHLD} = 'IGNORE';
	$SIG{PIPE} = 'IGNORE';
	my $number = 0;
	while (1)
	{
		my $client = $listener->accept or next;
		$number++;
		next if fork();
		close $listener;
		eval { $self->_accepted($client, $number) };
		POSIX::_exit(0);
	}
	return;
}

# One connection, in a process of its own.
sub _accepted
{
	my ($self, $client, $number) = @_;
	my $server = $self->_connect;

	$self->_carry($client, $server, $number) if $server;
	return;
}

# Writes all of it; false if nobody takes it any more.
sub _write
{
	my ($to, $bytes) = @_;

	while ($bytes ne '')
	{
		my $count = syswrite($to, $bytes) or return 0;
		substr($bytes, 0, $count, '');
	}
	return 1;
}

1;
