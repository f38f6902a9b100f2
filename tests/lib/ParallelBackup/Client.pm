# A client that runs beside the test.

package ParallelBackup::Client;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(start_client client_ended kill_client);

# Starts a command with a node's environment: { handle (of IPC::Run), out, err }.
sub start_client
{
	my ($node, @command) = @_;
	my %run = (out => '', err => '');

	local %ENV = $node->_get_env();
	$run{handle} = IPC::Run::start(\@command, '>' => \$run{out}, '2>' => \$run{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%run;
}

# Waits until it has ended: its exit code, or "signal" and the signal's number.
sub client_ended
{
	my ($run) = @_;

	$run->{handle}->finish;
	note($run->{err});
	my $status = $run->{handle}->full_result(0);
	return $status & 127 ? 'signal ' . ($status & 127) : $status >> 8;
}

# Kills it without a warning.
sub kill_client
{
	my ($run) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$run->{handle}->signal('KILL');
	is(client_ended($run), 'signal 9', 'killed');
	return;
}

1;
