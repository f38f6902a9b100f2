# The same network for connections that are encrypted. Nobody on the way can tell what a client is at: the moment is how
# many bytes one of the sides has sent, and of what is sent the lengths of TLS records alone are known.

package ParallelBackup::Disturbance::Encrypted;

use strict;
use warnings FATAL => 'all';

use Fcntl;
use IO::Select;
use IO::Socket::INET;
use List::Util qw(first);
use parent 'ParallelBackup::Disturbance';

# What each side says before its first record: a request for TLS, and one byte in answer. In a record its length comes
# after a type and a version.
use constant { BEFORE => { client => 8, server => 1 }, BEFORE_LENGTH => 3, SILENCE => 5 };

# new(node => the server, which listens on 127.0.0.1, dir => a directory for this one alone, plan => [events])
#
# Each event of the plan happens once, on the first connection that comes to it:
#
#   sender  'server' or 'client'
#   after   how many bytes of what it sends are handed on first
#   place   of a change: 'high' or 'low', the next byte which is that of a record's length; undef: the next byte
#   skip    so many connections that come to it go on undisturbed first
#   how, for, bit    as for a network that can be listened to
sub _connect { return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $_[0]{node}->port, Proto => 'tcp') }

sub _carry
{
	my ($self, $client, $server) = @_;
	my $both = IO::Select->new($client, $server);
	my %sent = (client => 0, server => 0);
	my %records = map { $_ => { until => BEFORE->{$_} + BEFORE_LENGTH } } keys %sent;
	my (%is_over, $is_changed);

	while (1)
	{
		my @ready = $both->can_read($is_changed ? SILENCE : undef) or return;
		for my $from (@ready)
		{
			my $count = sysread($from, my $bytes, 1 << 16) or return;
			my ($sender, $to) = $from == $client ? ('client', $server) : ('server', $client);
			my $places = _places_of_lengths($records{$sender}, $bytes);
			my $handed_on = 0;
			while (my ($number, $at) = $self->_next($sender, $sent{$sender}, $count, $places, \%is_over))
			{
				$is_over{$number} = 1;
				next if !$self->_is_first($number);
				my $event = $self->{plan}[$number];
				ParallelBackup::Network::_write($to, substr($bytes, 0, $at - $handed_on, '')) or return;
				$handed_on = $at;
				return if !$self->_happen($event, $client, $server, \$bytes);
				$is_changed ||= $event->{how} eq 'change';
			}
			$sent{$sender} += $count;
			ParallelBackup::Network::_write($to, $bytes) or return;
		}
	}
	return;
}

# Where in these bytes there are the two bytes of a record's length each; in state, how far it is to the next.
sub _places_of_lengths
{
	my ($state, $bytes) = @_;
	my %places = (high => [], low => []);
	my $at = $state->{until};

	while ($at < length $bytes)
	{
		my $byte = ord substr($bytes, $at, 1);
		if (defined(my $high = delete $state->{high}))
		{
			push $places{low}->@*, $at;
			$at += 1 + ($high << 8 | $byte) + BEFORE_LENGTH;
			next;
		}
		push $places{high}->@*, $at++;
		$state->{high} = $byte;
	}
	$state->{until} = $at - length $bytes;
	return \%places;
}

# The next event to which this connection has come with so many bytes more, and where in them; nothing if there is none.
sub _next
{
	my ($self, $sender, $sent, $count, $places, $is_over) = @_;
	my @due;

	for my $number (grep { !$is_over->{$_} } 0 .. $#{ $self->{plan} })
	{
		my $event = $self->{plan}[$number];
		next if $event->{sender} ne $sender || $event->{after} >= $sent + $count;
		my $at = $event->{after} > $sent ? $event->{after} - $sent : 0;
		$at = first { $_ >= $at } $places->{ $event->{place} }->@* if defined $event->{place};
		push @due, [ $number, $at ] if defined $at;
	}
	my ($next) = sort { $a->[1] <=> $b->[1] } @due or return;
	return @$next;
}

# Whether it is this connection that it happens on.
sub _is_first
{
	my ($self, $number) = @_;

	return 0 if -e "$self->{dir}/$number" || !$self->_is_turn($number, $self->{plan}[$number]{skip} // 0);
	return sysopen(my $file, "$self->{dir}/$number", O_CREAT | O_EXCL | O_WRONLY);
}

1;
