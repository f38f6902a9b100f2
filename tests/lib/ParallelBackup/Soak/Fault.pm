# What goes wrong during a backup of a soak, from its drawing to what is left of it. Half of what can be is done while the client
# is at a certain command, the reply to which stands still meanwhile, or, where nobody can tell the command, at a
# certain byte; the rest at any moment.

package ParallelBackup::Soak::Fault;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use Time::HiRes qw(time);
use ParallelBackup::Disturbance;
use ParallelBackup::Disturbance::Encrypted;
use ParallelBackup::Load;
use ParallelBackup::Soak::FaultKinds;
use ParallelBackup::Soak::Servers;

our @EXPORT = qw(draw_fault);

# Of what a server says over TLS before a client is let in, about; of a large part of a backup.
use constant { HANDSHAKE => 3000, LARGE => 30_000_000 };

# One for a request, by chance; the directory is for what it needs.
sub draw_fault
{
	my ($request, $from, $directory, $wanted) = @_;
	# As many of each kind, however many there are of it.
	my %kinds;
	push $kinds{s/:.*//r}->@*, $_ for fitting_faults($request, $from);
	if ($wanted) { $_ = [ grep { /$wanted/ } @$_ ] for values %kinds }
	my @kinds = grep { $kinds{$_}->@* } sort keys %kinds or return;
	my $name = pick($kinds{ pick(@kinds) }->@*);
	my $self = bless { name => $name, request => $request, from => $from, place => $request->{place}, directory => $directory }, __PACKAGE__;

	become($self, $name);
	if ($self->{disturbance}) { $self->{event} = { $self->{disturbance}->%*, $self->_point($self->{disturbance}{how}) } }
	elsif ($self->{strike} && rand() < 0.5) { $self->{event} = { how => 'wait', $self->_point('wait') } }
	elsif ($self->{strike}) { $self->{moment} = rand(rand() < 0.5 ? 0.3 : 2.5) }
	return $self;
}

# Where in what goes to and fro.
sub _point
{
	my ($self, $how) = @_;

	return $self->_byte($how) if $self->{request}{over_tls};
	my $request = $self->{request};
	my @phases = ('start', 'list', 'files', 'files', 'stop', $request->{wal} eq 'stream' ? 'stream' : (), $request->{wal} eq 'fetch' ? 'wal' : (),
		defined $request->{lease} && $request->{lease} > 0 ? 'release' : ());
	# What is not handed on cannot be changed.
	return (phase => pick(@phases), skip => pick(0, 0, 1, 3), after => pick($how eq 'change' ? () : -1, 0, 30, 1000, 100000));
}

# As many early as late ones: while the two sides agree on keys, and in what comes then, by orders of magnitude. A client
# says little.
sub _byte
{
	my ($self, $how) = @_;
	my $sender = pick(qw(server server client));
	my $after = rand() < 0.2 ? rand HANDSHAKE : HANDSHAKE * (($sender eq 'server' ? LARGE : 20 * HANDSHAKE) / HANDSHAKE)**rand;

	return (
		sender => $sender, after => int $after, skip => pick(0, 0, 1, 3),
		$how eq 'change' ? (place => pick(undef, undef, 'high', 'low')) : ());
}

# What is known of it before it happens.
sub words
{
	my ($self) = @_;
	my $event = $self->{event} or return $self->{name};
	my $place = defined $event->{place} ? " in the $event->{place} byte of a length" : '';
	return "$self->{name} " . (defined $event->{phase} ? "at $event->{phase} after $event->{after}" : "$event->{after} bytes after the $event->{sender}'s first$place");
}

# How the client connects, and with which environment it is run.
sub begin
{
	my ($self) = @_;

	$self->{prepare}->() if $self->{prepare};
	if ($self->{event})
	{
		my $class = 'ParallelBackup::Disturbance' . ($self->{request}{over_tls} ? '::Encrypted' : '');
		$self->{network} = $class->new(node => $self->{from}, dir => $self->{directory}, plan => [ $self->{event} ]);
	}
	$self->{began} = time;
	return;
}

sub connection_string
{
	my ($self) = @_;
	return connection_to($self->{from}, $self->{request}{over_tls}) if !$self->{network};
	return network_connection($self->{network}->port, $self->{request}{over_tls});
}

sub environment { return ($_[0]{environment} // [])->@* }

# Called again and again while the client runs: true once it has happened.
sub happens
{
	my ($self, $pid) = @_;

	return 0 if !$self->{strike} || $self->{is_done};
	$self->{moment_has_come} = $self->{network} ? -e "$self->{directory}/0" : time >= $self->{began} + $self->{moment};
	return 0 if !$self->{moment_has_come};
	$self->{pid} = $pid;
	$self->{is_done} = 1;
	$self->{has_struck} = $self->{strike}->() ? 1 : 0;
	$self->{network}->go_on if $self->{network};
	return $self->{has_struck};
}

sub is_down { return $_[0]{is_down} && $_[0]{has_struck} }

# After the client's end; true if it has come to pass.
sub ends
{
	my ($self) = @_;

	if (my $network = delete $self->{network})
	{
		$self->{has_struck} = 1 if !$self->{strike} && -e "$self->{directory}/0";
		$network->go_on;
		$network->stop;
	}
	if ($self->{back} && ($self->{prepare} || $self->{has_struck}))
	{
		my $came_to_pass = $self->{back}->();
		$self->{has_struck} = $came_to_pass ? 1 : 0;
	}
	return $self->{has_struck} // 0;
}

sub clean_up { my ($self) = @_; $self->{after}->() if $self->{after} && $self->{has_struck}; return }

sub has_to_fail { return ($_[0]{has_to} // '') eq 'fail' && $_[0]{has_struck} }

1;
