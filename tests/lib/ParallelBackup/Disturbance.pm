# A network between client and server that loses connections: a process that takes connections over TCP, hands on
# what it gets, and at moments that are agreed before ends one, or lets it stand still, in one of several ways.

package ParallelBackup::Disturbance;

use strict;
use warnings FATAL => 'all';

use Carp;
use Fcntl;
use IO::Select;
use IO::Socket::UNIX;
use Time::HiRes ();
use parent 'ParallelBackup::Network';

# What a client says when it is at something: by either way in.
our %PHASE = (
	start => qr/START_BACKUP *\((?!.*(?<!new_)backup_id)/is,
	attach => qr/START_BACKUP *\(.*(?<!new_)backup_id/is,
	list => qr/SEND_FILE_LIST *\((?!.*estimate)/is,
	files => qr/SEND_FILES_CONTENT *\((?!.*pg_wal\/0)/is,
	stop => qr/STOP_BACKUP *\((?!.*release)/is,
	wal => qr/SEND_FILES_CONTENT *\(.*pg_wal\/0/is,
	stream => qr/START_REPLICATION\b/is,
	release => qr/STOP_BACKUP *\(.*release/is);

# new(node => the server, dir => a directory for this one alone, plan => [events])
#
# Each event of the plan happens once, on the first connection that comes to it:
#
#   phase   a key of %PHASE: the client is at that
#   skip    so many commands of that phase go on undisturbed first
#   after   how many bytes of the reply are handed on first; -1: the command itself is not
#   how     'cut'    both ends are closed
#           'client' the client's end alone: the server does not notice for some time
#           'server' the server's end alone: the client does not
#           'half'   the client's end is shut down in the one direction that it reads from
#           'stall'  nothing moves for some time, and then all goes on
#           'wait'   nothing moves until go_on() is called, and then all goes on
#           'change' a bit of the next byte of the reply is another, and all goes on, until the connection is silent for
#                    seconds: then it is cut. Who was told of a longer message than there is would wait for ever
#   for     how many seconds something stands still
#   bit     which bit of the byte, from 0
sub new
{
	my ($class, %params) = @_;

	mkdir $params{dir} or croak "$params{dir}: $!";
	return $class->SUPER::new(%params, socket => $params{node}->host . '/.s.PGSQL.' . $params{node}->port);
}

# The events that have happened, by their place in the plan.
sub happened
{
	my ($self) = @_;

	opendir my $dir, $self->{dir} or croak "$self->{dir}: $!";
	my @happened = sort { $a <=> $b } grep { /^\d+$/ } readdir $dir;
	return @happened;
}

# What waits goes on, now or when it comes to it.
sub go_on
{
	my ($self) = @_;

	open my $file, '>', "$self->{dir}/go" or croak "$self->{dir}: $!";
	close $file;
	return;
}

sub _connect { return IO::Socket::UNIX->new(Peer => $_[0]{socket}) }

sub _carry
{
	my ($self, $client, $server) = @_;
	my $both = IO::Select->new($client, $server);
	my ($event, $left, $is_changed);

	while (1)
	{
		my @ready = $both->can_read($is_changed ? 5 : undef) or return;
		for my $from (@ready)
		{
			my $count = sysread($from, my $bytes, 1 << 16) or return;
			if ($from == $client)
			{
				# The reply before was shorter than the event had it.
				my $is_due = defined $event;
				$event //= $self->_event($bytes);
				$is_due ||= $event && $event->{after} < 0;
				if ($is_due && $event->{how} ne 'change')
				{
					return if !$self->_happen($event, $client, $server);
					undef $event;
				}
				$left = $is_due ? 0 : $event->{after} if $event;
				ParallelBackup::Network::_write($server, $bytes) or return;
				next;
			}
			if ($event)
			{
				my $now = $left < $count ? $left : $count;
				ParallelBackup::Network::_write($client, substr($bytes, 0, $now, '')) or return;
				$left -= $now;
				if ($left <= 0)
				{
					# The byte may be in what comes next.
					next if $event->{how} eq 'change' && $bytes eq '';
					return if !$self->_happen($event, $client, $server, \$bytes);
					$is_changed ||= $event->{how} eq 'change';
					undef $event;
				}
			}
			ParallelBackup::Network::_write($client, $bytes) or return;
		}
	}
	return;
}

# The event of the plan that is due with what the client says.
sub _event
{
	my ($self, $said) = @_;

	for my $number (0 .. $#{ $self->{plan} })
	{
		my $event = $self->{plan}[$number];
		next if -e "$self->{dir}/$number" || $said !~ $PHASE{ $event->{phase} };
		next if !$self->_is_turn($number, $event->{skip} // 0);
		return {%$event} if sysopen(my $file, "$self->{dir}/$number", O_CREAT | O_EXCL | O_WRONLY);
	}
	return;
}

# Whether enough commands of that phase have gone on.
sub _is_turn
{
	my ($self, $number, $skip) = @_;

	for my $turn (1 .. $skip)
	{
		return 0 if sysopen(my $file, "$self->{dir}/$number.$turn", O_CREAT | O_EXCL | O_WRONLY);
	}
	return 1;
}

# True if the connection goes on after it.
sub _happen
{
	my ($self, $event, $client, $server, $bytes) = @_;
	my $how = $event->{how};

	if ($how eq 'change')
	{
		substr($$bytes, 0, 1) ^= chr(1 << $event->{bit});
		return 1;
	}
	if ($how eq 'wait')
	{
		Time::HiRes::sleep(0.01) while !-e "$self->{dir}/go";
		return 1;
	}
	if ($how eq 'client') { close $client }
	elsif ($how eq 'server') { close $server }
	elsif ($how eq 'half') { shutdown $client, 1 }
	elsif ($how eq 'cut')
	{
		close $_ for $client, $server;
		return 0;
	}
	Time::HiRes::sleep($event->{for});
	return $how eq 'stall';
}

1;
