# A server that lies: what a real one sends, with rows and frames of some commands changed on the way, and everything that
# the protocol has against damage (checksums of rows, their number) made right again.

package ParallelBackup::Hostile;

use strict;
use warnings FATAL => 'all';

use IO::Select;
use IO::Socket::UNIX;
use ParallelBackup::Disturbance;
use ParallelBackup::Frame qw(crc32c);
use parent 'ParallelBackup::Network';

# new(node => the server, command => a key of %ParallelBackup::Disturbance::PHASE or a pattern, row => sub, frame => sub)
#
# row and frame are called with what one row or frame is, a list of values (without the checksum) or bytes, and return what
# there is instead: lists of values, or bytes, in the order in which they are sent. row gets the number of its result
# set in the command too, from 0; frame a hash that lasts as long as the connection. Where it returns a function,
# it is called for more until it has none.
sub new
{
	my ($class, %params) = @_;
	return $class->SUPER::new(%params, socket => $params{node}->host . '/.s.PGSQL.' . $params{node}->port);
}

sub _connect { return IO::Socket::UNIX->new(Peer => $_[0]{socket}) }

sub _carry
{
	my ($self, $client, $server) = @_;
	my $both = IO::Select->new($client, $server);
	my ($bytes, $command, %state) = ('', '');

	while (1)
	{
		for my $from ($both->can_read)
		{
			sysread($from, my $some, 1 << 18) or return;
			if ($from == $client)
			{
				# A command is short, and comes alone.
				@state{qw(crc set rows)} = (undef, -1, 0), $command = $some if $some =~ /^Q/;
				ParallelBackup::Network::_write($server, $some) or return;
				next;
			}
			$bytes .= $some;
			my $is_ours = $command =~ ($ParallelBackup::Disturbance::PHASE{ $self->{command} } // $self->{command});
			while (length $bytes >= 5 && length $bytes > (my $length = unpack('x N', $bytes)))
			{
				my $message = substr $bytes, 0, $length + 1, '';
				$self->_message($client, $message, $is_ours, \%state) or return;
			}
		}
	}
	return;
}

sub _message
{
	my ($self, $client, $message, $is_ours, $state) = @_;
	my ($type, $body) = (substr($message, 0, 1), substr($message, 5));

	@$state{qw(set rows)} = ($state->{set} + 1, 0) if $type eq 'T';
	if ($is_ours && $type eq 'D')
	{
		my @values = _values($body);
		pop @values;
		my $sent = '';
		my $give = sub {
			my ($row) = @_;
			$state->{rows}++;
			$state->{crc} = crc32c(join('', map { defined $_ ? pack('l> a*', length $_, $_) : pack('l>', -1) } @$row), $state->{crc});
			$sent .= _row(@$row, unpack('H*', pack('V', $state->{crc})));
			return length $sent < 65536 || ParallelBackup::Network::_write($client, substr($sent, 0, length $sent, ''));
		};
		for my $row ($self->{row} ? $self->{row}->(\@values, $state->{set}) : \@values)
		{
			if (ref $row eq 'CODE')
			{
				while (my $more = $row->()) { $give->($more) or return 0 }
			}
			else { $give->($row) or return 0 }
		}
		return ParallelBackup::Network::_write($client, $sent);
	}
	if ($is_ours && $type eq 'C')
	{
		$message = _of('C', $body =~ s/^SELECT \d+/SELECT $state->{rows}/r);
	}
	if ($is_ours && $type eq 'd' && $self->{frame})
	{
		for my $frame ($self->{frame}->($body, $state))
		{
			if (ref $frame)
			{
				while (defined(my $more = $frame->())) { ParallelBackup::Network::_write($client, _of('d', $more)) or return 0 }
			}
			else { ParallelBackup::Network::_write($client, _of('d', $frame)) or return 0 }
		}
		return 1;
	}
	return ParallelBackup::Network::_write($client, $message);
}

sub _of { my ($type, $body) = @_; return $type . pack('N', length($body) + 4) . $body }

sub _row { return _of('D', pack('n', scalar @_) . join('', map { defined $_ ? pack('l> a*', length $_, $_) : pack('l>', -1) } @_)) }

sub _values
{
	my ($body) = @_;
	my $count = unpack 'n', substr($body, 0, 2, '');
	my @values;
	for (1 .. $count)
	{
		my $length = unpack 'l>', substr($body, 0, 4, '');
		push @values, $length < 0 ? undef : substr($body, 0, $length, '');
	}
	return @values;
}

1;
