# What can go wrong during a backup of a soak: to the client's process, to the processes of the server that it backs up, to the
# network between them, to files on either side. When it does is not said here.

package ParallelBackup::Soak::FaultKinds;

use strict;
use warnings FATAL => 'all';

use Errno qw(EACCES EIO EMFILE ENOSPC);
use Exporter 'import';
use Fcntl qw(SEEK_SET);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Time::HiRes qw(sleep);
use ParallelBackup::Load;
use ParallelBackup::Soak::Copy;
use ParallelBackup::Soak::Servers;

our @EXPORT = qw(fitting_faults become);

use constant { BLOCK => 8192, SPOILED_BLOCK => 7 };

# Signals to processes, by part, and what a superuser can do to them.
my %process_faults = (
	SIGTERM => sub { kill 'TERM', $_[0] },
	SIGINT => sub { kill 'INT', $_[0] },
	SIGKILL => sub { kill 'KILL', $_[0] },
	'stopped for a while' => sub { kill 'STOP', $_[0]; sleep 0.3 + rand 1; kill 'CONT', $_[0] },
	pg_terminate_backend => sub { $_[1]->safe_psql('postgres', "SELECT pg_terminate_backend($_[0])") },
	pg_cancel_backend => sub { $_[1]->safe_psql('postgres', "SELECT pg_cancel_backend($_[0])") });

# What can be chosen: a name, and a function of the fault's object, which says how it goes.
#
#   strike         does it; true if it has come to pass
#   disturbance    what the network does, but for the moment
#   prepare        before the client begins
#   environment    what the client is run with
#   back           after the client's end, before anything else: true unless it has not come to pass after all
#   after          after the servers were looked at
#   words          what the client may say, and must if it is to fail
#   has_to         'fail' where the backup must
#   is_down        the server does not answer until it is brought back
my %faults;

for my $signal (qw(SIGTERM SIGINT SIGKILL))
{
	$faults{"client: $signal"} = sub { my ($self) = @_; $self->{strike} = sub { kill $signal =~ s/SIG//r, $self->{pid} } };
}
$faults{'client: stopped for a while'} = sub {
	my ($self) = @_;
	$self->{strike} = sub { kill 'STOP', $self->{pid}; sleep 0.5 + rand 2; kill 'CONT', $self->{pid} };
};
for my $part (qw(worker coordinator keeper))
{
	for my $how (keys %process_faults)
	{
		$faults{"$part: $how"} = sub {
			my ($self) = @_;
			$self->{strike} = sub {
				my @pids = backends($self->{from}, $part) or return 0;
				# Perhaps it has gone in the meantime.
				$process_faults{$how}->(pick(@pids), $self->{from});
				return 1;
			};
		};
	}
}
$faults{'backup cancelled'} = sub {
	my ($self) = @_;
	$self->{strike} = sub { $self->{from}->safe_psql('postgres', 'SELECT parallel_backup.cancel_backup(backup_id) FROM parallel_backup.backups') ne '' };
};
for my $mode (qw(fast immediate))
{
	$faults{"server: $mode restart"} = sub { my ($self) = @_; $self->{strike} = sub { restart_server($self->{from}, $mode); 1 } };
}
# It lasts until the client is through, or finds that nobody new is let in.
$faults{'server: smart shutdown'} = sub {
	my ($self) = @_;
	my $from = $self->{from};
	$self->{is_down} = 1;
	$self->{strike} = sub {
		eval { stop_load() };
		system_or_bail('pg_ctl', '--silent', '-D', $from->data_dir, '-m', 'smart', '--no-wait', 'stop');
		return 1;
	};
	$self->{back} = sub {
		for (1 .. 1200)
		{
			last if !-e $from->data_dir . '/postmaster.pid';
			sleep 0.1;
		}
		die 'a smart shutdown does not end' if -e $from->data_dir . '/postmaster.pid';
		$from->_update_pid(0);
		start_server($from);
		return 1;
	};
};
$faults{'standby: promotion'} = sub {
	my ($self) = @_;
	$self->{strike} = sub { $self->{from}->promote; 1 };
	$self->{after} = sub { replace_standby(); forget_chain(); settle() };
};

for my $how (qw(cut client server half stall change))
{
	my %words = (cut => 'both ends closed', client => 'closed to the client', server => 'closed to the server', half => 'half closed', stall => 'not read for a while', change => 'a bit changed');
	$faults{"network: $words{$how}"} = sub {
		my ($self) = @_;
		$self->{disturbance} = { how => $how, for => rand() < 0.1 ? 20 + rand 40 : 0.5 + rand 4, bit => int rand 8 };
	};
}

my %error = (ENOSPC => ENOSPC, EIO => EIO, EACCES => EACCES, EMFILE => EMFILE);
for my $case (qw(create:ENOSPC create:EACCES create:EMFILE write:ENOSPC write:EIO sync:EIO sync:ENOSPC open:EACCES open:EMFILE))
{
	my ($call, $error) = split /:/, $case;
	$faults{"client's files: $error, $call"} = sub {
		my ($self) = @_;
		my $control = $self->{control} = "$self->{place}.faults";
		$self->{prepare} = sub { _write($control, join ' ', 0, $call, $error{$error}, pick(0, 0, 5, 50, 500), $self->{place}) };
		$self->{environment} = [ 'LD_PRELOAD=' . io_library(), "IO_FAULTS=$control" ];
		$self->{back} = sub { my $has_failed = -e "$control.seen"; unlink $control, "$control.seen"; $has_failed };
	};
}
for my $case (qw(open:EACCES open:EMFILE open:EIO read:EIO))
{
	my ($call, $error) = split /:/, $case;
	$faults{"server's files: $error, $call"} = sub {
		my ($self) = @_;
		$self->{strike} = sub {
			my @pids = backends($self->{from}) or return 0;
			_write(io_control($self->{from}), join ' ', pick(@pids), $call, $error{$error}, pick(0, 0, 10), pick('base', 'base', 'global', 'pg_wal', 'pg_xact'));
			return 1;
		};
		$self->{back} = sub { no_io_faults($self->{from}) };
	};
}
# What backups make in the server: shared memory, and slots.
for my $what ('write:pg_dynshmem', 'create:pg_dynshmem', 'write:pg_replslot', 'create:pg_replslot')
{
	my ($call, $where) = split /:/, $what;
	$faults{"server's files: ENOSPC, $call in $where"} = sub {
		my ($self) = @_;
		$self->{prepare} = sub { _write(io_control($self->{from}), join ' ', 0, $call, ENOSPC, pick(0, 0, 1), $where) };
		$self->{back} = sub { no_io_faults($self->{from}) };
	};
}

# Of a table that nobody writes to.
$faults{'page: damaged on disk'} = sub {
	my ($self) = @_;
	my $page;
	$self->{has_to} = 'fail' if !defined $self->{request}{prior};
	$self->{words} = qr/checksum verification failed in file "[^"]+", block ${\ SPOILED_BLOCK}:/;
	$self->{prepare} = sub { $page = _spoiled($self->{from}); _flip($page, 1) };
	$self->{back} = sub { _flip($page, 1); !defined $self->{request}{prior} };
};
$faults{'page: torn, and heals'} = sub {
	my ($self) = @_;
	my $process;
	$self->{words} = qr/checksum verification failed in file "[^"]+", block ${\ SPOILED_BLOCK}:/;
	$self->{prepare} = sub {
		my $page = _spoiled($self->{from});
		my $parent = $$;
		$process = fork() // die $!;
		return if $process;
		my $is_over = 0;
		$SIG{TERM} = sub { $is_over = 1 };
		while (!$is_over && getppid() == $parent)
		{
			_flip($page, 1);
			sleep 0.002;
			_flip($page, 1);
			sleep 0.02;
		}
		POSIX::_exit(0);
	};
	$self->{back} = sub { kill 'TERM', $process; waitpid $process, 0; 1 };
};

sub _spoiled
{
	my ($from) = @_;
	return $from->data_dir . '/' . $from->safe_psql('postgres', q(SELECT pg_relation_filepath('spoiled')));
}

# A bit in the second half of the page is another.
sub _flip
{
	my ($path, $bit) = @_;
	open my $file, '+<:raw', $path or die "$path: $!";
	sysseek $file, SPOILED_BLOCK * BLOCK + 6000, SEEK_SET;
	sysread $file, my $byte, 1 or die $!;
	sysseek $file, SPOILED_BLOCK * BLOCK + 6000, SEEK_SET;
	syswrite $file, chr(ord($byte) ^ $bit) or die $!;
	close $file;
	return;
}

sub _write
{
	my ($path, $line) = @_;
	open my $file, '>', "$path.new" or die "$path: $!";
	print $file $line;
	close $file;
	rename "$path.new", $path or die $!;
	return;
}

# The names of those that go with a request.
sub fitting_faults
{
	my ($request, $from) = @_;
	return grep { _fits($_, $request, $from) } sort keys %faults;
}

# Makes a fault's object the one of that name.
sub become { my ($fault, $name) = @_; $faults{$name}->($fault); return }

sub _fits
{
	my ($name, $request, $from) = @_;

	return 0 if $name =~ /^standby/ && $from == primary();
	return 0 if $name =~ /page/ && !$request->{checked};
	# On a standby no such slot is made, and without a lease neither it nor a keeper.
	return 0 if $name =~ /keeper|dynshmem/ && defined $request->{lease} && $request->{lease} == 0;
	return 0 if $name =~ /pg_replslot/ && $from != primary();
	return 0 if $name =~ /^client's/ && $request->{format} =~ /^(?:pipe|blackhole|objects)\z/;
	return 0 if $name =~ /sync/ && grep { $_ eq '--no-sync' } $request->{options}->@*;
	return 1;
}

1;
