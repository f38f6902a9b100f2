# Servers that offer TLS, with a certificate that nobody but themselves has signed.

package ParallelBackup::TLS;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use IPC::Run ();

our @EXPORT = qw(has_tls offer_tls);

# Whether the server under test was built with it.
sub has_tls { return our $has_tls //= `pg_config --configure` =~ /--with-(?:ssl=)?openssl/ ? 1 : 0 }

# It does once it is restarted, or has reloaded its configuration. Where it listens, and whom it lets in from there, is not
# said here.
sub offer_tls
{
	my ($node) = @_;
	my $pgdata = $node->data_dir;
	my $made = '';

	IPC::Run::run([ qw(openssl req -new -x509 -days 1 -nodes -newkey rsa:2048 -subj /CN=localhost),
			'-keyout' => "$pgdata/server.key", '-out' => "$pgdata/server.crt" ], '>&' => \$made)
	  or die "openssl made no certificate: $made";
	# The server takes no key that others can read.
	chmod 0600, "$pgdata/server.key", "$pgdata/server.crt";
	$node->append_conf('postgresql.conf', 'ssl = on');
	return;
}

1;
