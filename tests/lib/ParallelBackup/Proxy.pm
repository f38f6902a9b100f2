# A network between client and server that changes bytes: a process that takes connections
# over TCP and hands on to the server what it gets, and the other way round.

package ParallelBackup::Proxy;

use strict;
use warnings FATAL => 'all';

use Fcntl;
use IO::Select;
use IO::Socket::INET;
use parent 'ParallelBackup::Network';

use constant STRAND_AFTER => 2 * 1024 * 1024;

# new(server => the server's port on 127.0.0.1, and what is changed)
#
#   find     bytes that the server sends
#   at       which byte after the beginning of these is changed
#   xor      the bits of it that are
#   always   1: wherever the bytes come, else where they come first, on any connection
#   nth      without find: the byte with this number on each connection (with always) or on
#            the first that has as many
#   flag     a file that is made when a byte is changed
#   log      a file that gets a line for each connection: the code that the client begins with, such as
#            that of a request for TLS
#   strand   instead of all that: the connection with this number, from 1, is closed to the client once
#            the server has sent megabytes, and left open to the server, which nobody reads from
sub _connect
{
	my ($self) = @_;

	return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{server}, Proto => 'tcp');
}

sub _carry
{
	my ($self, $client, $server, $number) = @_;
	my $both = IO::Select->new($client, $server);
	# What was not handed on yet, because it may be the beginning of what is looked for.
	my ($held, $sent, $said) = ('', 0, 0);
	my @changes = defined $self->{nth} ? ($self->{nth}) : ();
	my $keep = defined $self->{find} ? length($self->{find}) - 1 : 0;

	while (1)
	{
		my @ready = $both->can_read($held eq '' ? undef : 0.02);
		# Nothing more has come: what is held is not the beginning of anything.
		ParallelBackup::Network::_write($client, substr($held, 0, length $held, '')) or return if !@ready;
		for my $from (@ready)
		{
			my $count = sysread($from, my $bytes, 1 << 18);
			if (!$count)
			{
				ParallelBackup::Network::_write($client, $held);
				return;
			}
			if ($from == $client)
			{
				$self->_log(unpack('x4 N', $bytes)) if $self->{log} && !$said++;
				ParallelBackup::Network::_write($server, $bytes) or return;
				next;
			}
			my $before = $sent - length $held;
			my $scan = $held . $bytes;
			if (defined $self->{find})
			{
				for (my $at = 0; ($at = index($scan, $self->{find}, $at)) >= 0; $at++)
				{
					push @changes, $before + $at + $self->{at};
				}
			}
			$sent += $count;
			if ($number == ($self->{strand} // 0) && $sent > STRAND_AFTER)
			{
				close $client;
				sleep;
			}
			# In what is held back changes were made already, but to what was just found.
			for my $change (@changes)
			{
				my $place = $change - $before;
				next if $place < 0 || $place >= length $scan || !$self->_may_change;
				substr($scan, $place, 1) = chr(ord(substr($scan, $place, 1)) ^ $self->{xor});
			}
			@changes = grep { $_ >= $sent } @changes;
			$held = $keep ? (length $scan > $keep ? substr($scan, -$keep) : $scan) : '';
			ParallelBackup::Network::_write($client, substr($scan, 0, length($scan) - length $held)) or return;
		}
	}
	return;
}

sub _log
{
	my ($self, $code) = @_;

	open my $file, '>>', $self->{log} or die "$self->{log}: $!";
	syswrite $file, "$code\n";
	close $file;
	return;
}

# Whether a byte is to be changed now: the flag says that one was.
sub _may_change
{
	my ($self) = @_;
	my $first = sysopen(my $file, $self->{flag}, O_CREAT | O_EXCL | O_WRONLY);

	return $first || $self->{always};
}

1;
