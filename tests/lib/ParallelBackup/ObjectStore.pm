# The object store that tools/objects.sh has started, as a test sees it: a bucket of its own, what is in it, and a way to it
# on which things go wrong.

package ParallelBackup::ObjectStore;

use strict;
use warnings FATAL => 'all';

use Carp;
use Exporter 'import';
use HTTP::Tiny;
use IO::Socket::INET;
use ParallelBackup::Network;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(object_store);

# The store looks whether there is a signature, and not at what it is.
use constant AUTHORIZATION => 'AWS4-HMAC-SHA256 Credential=AKIATESTKEYID/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0';

# What the environment has of credentials of the user's own must not be used.
delete $ENV{$_} for grep { /^(AWS|GOOGLE|AZURE)_/ } keys %ENV;

# object_store(): the URL of a server, in S3's protocol. Fails where there is none and nobody said that there need not be.
sub object_store
{
	my ($bucket) = @_;
	croak 'PPB_S3 names no object store: tools/objects.sh starts one' if !$ENV{PPB_S3};
	my $self = bless { url => $ENV{PPB_S3}, bucket => $bucket, http => HTTP::Tiny->new(no_proxy => ['127.0.0.1']) }, __PACKAGE__;

	$self->request('PUT', "/$bucket");
	return $self;
}

# The environment of a client of it, by way of a proxy if one is given.
sub environment
{
	my ($self, $proxy) = @_;
	my $url = $proxy ? 'http://127.0.0.1:' . $proxy->port : $self->{url};
	return ("AWS_ENDPOINT_URL=$url", 'AWS_ALLOW_HTTP=true', 'AWS_REGION=us-east-1', 'AWS_ACCESS_KEY_ID=AKIATESTKEYID', 'AWS_SECRET_ACCESS_KEY=verySecretAccessKey');
}

sub request
{
	my ($self, $method, $path, $content) = @_;
	my $response = $self->{http}->request($method, $self->{url} . $path, { headers => { Authorization => AUTHORIZATION }, defined $content ? (content => $content) : () });

	croak "$method $path: $response->{status} $response->{content}" if !$response->{success};
	return $response->{content};
}

# The names of all objects that begin so.
sub list
{
	my ($self, $prefix) = @_;
	my $list = $self->request('GET', "/$self->{bucket}?list-type=2&max-keys=1000&prefix=$prefix");

	croak 'there are too many objects' if $list =~ /<IsTruncated>true/i;
	return sort $list =~ m{<Key>([^<]*)</Key>}g;
}

# The names of objects that are being uploaded.
sub uploads
{
	my ($self) = @_;
	return sort $self->request('GET', "/$self->{bucket}?uploads") =~ m{<Key>([^<]*)</Key>}g;
}

sub get { return $_[0]->request('GET', "/$_[0]{bucket}/$_[1]") }

sub put { return $_[0]->request('PUT', "/$_[0]{bucket}/$_[1]", $_[2]) }

# Everything below a prefix as files in a directory.
sub download
{
	my ($self, $prefix, $directory) = @_;

	mkdir $directory or croak $! if !-d $directory;
	for my $name ($self->list("$prefix/"))
	{
		open my $file, '>:raw', "$directory/" . ($name =~ s{.*/}{}r) or croak $!;
		print $file $self->get($name);
		close $file or croak $!;
	}
	return $directory;
}

package ParallelBackup::ObjectStore::Proxy;

use parent -norequire, 'ParallelBackup::Network';

# new(store => ..., method => regex, path => regex, and what happens to requests that fit)
#
#   from, count   from which of those on (1), and to how many (all)
#   answer        a status that they get as answer, with an error of S3's form
#   cut           "request": the connection is closed when some of the body was read; "answer": when the store has done
#                 what was asked for; "body": in the middle of the answer's body
#   flip          a bit of the answer's body is another
#   delay         seconds for each 64 kB of the body
#   hold          nothing is answered until the file of this name is there
#   log           a file that gets a line for each request, and what was done to it
sub new
{
	my ($class, %params) = @_;

	# How many requests have fitted, counted by all processes.
	open my $counter, '+>', undef or Carp::croak($!);
	return $class->SUPER::new(from => 1, counter => $counter, %params);
}

# One request; the connection ends with its answer.
sub _accepted
{
	my ($self, $client) = @_;
	my ($server) = $self->{store}{url} =~ m{//(.*)};
	my $head = '';

	while ($head !~ /\r\n\r\n/) { sysread($client, $head, 65536, length $head) or return }
	($head, my $body) = split /\r\n\r\n/, $head, 2;
	my ($method, $path) = $head =~ /^(\S+) (\S+)/;
	my ($length) = $head =~ /^content-length: *(\d+)/mi;
	$length //= 0;
	my $fits = $method =~ ($self->{method} // qr//) && $path =~ ($self->{path} // qr//);
	if ($fits)
	{
		my $number = $self->_count;
		$fits = $number >= $self->{from} && (!$self->{count} || $number < $self->{from} + $self->{count});
	}
	if ($self->{log})
	{
		open my $log, '>>', $self->{log} or return;
		syswrite $log, "$method $path" . ($fits ? ' disturbed' : '') . "\n";
	}
	syswrite $client, "HTTP/1.1 100 Continue\r\n\r\n" if $head =~ /^expect: *100/mi;
	while (length $body < $length)
	{
		return if $fits && ($self->{cut} // '') eq 'request' && length $body > 10000;
		select undef, undef, undef, $self->{delay} if $fits && $self->{delay};
		sysread($client, $body, 65536, length $body) or return;
	}
	if ($fits && $self->{hold}) { select undef, undef, undef, 0.05 while !-e $self->{hold} }
	if ($fits && $self->{answer})
	{
		my $text = '<?xml version="1.0"?><Error><Code>' . ($self->{answer} == 403 ? 'AccessDenied' : 'InternalError') . "</Code><Message>No, on purpose</Message></Error>";
		syswrite $client, "HTTP/1.1 $self->{answer} No\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: " . length($text) . "\r\n\r\n" . ($method eq 'HEAD' ? '' : $text);
		return;
	}
	my $store = IO::Socket::INET->new(PeerAddr => $server) or return;
	$head =~ s/^connection:.*\r\n//gmi;
	_send($store, "$head\r\nConnection: close\r\n\r\n$body");
	my ($answer, $buffer) = ('');
	$answer .= $buffer while sysread $store, $buffer, 65536;
	return if $fits && ($self->{cut} // '') eq 'answer';
	$answer =~ s/^connection:.*\r\n//mi;
	$answer =~ s/\r\n/\r\nConnection: close\r\n/;
	my $begin = 4 + index $answer, "\r\n\r\n";
	$answer = substr $answer, 0, $begin + int((length($answer) - $begin) / 2) if $fits && ($self->{cut} // '') eq 'body';
	substr($answer, $begin + int((length($answer) - $begin) / 2), 1) ^= "\x04" if $fits && $self->{flip} && length $answer > $begin;
	_send($client, $answer);
	return;
}

sub _send
{
	my ($socket, $bytes) = @_;

	for (my $sent = 0; $sent < length $bytes;) { $sent += syswrite($socket, $bytes, 65536, $sent) // return }
	return;
}

# The file is shared, and so is its position: each byte written is a request.
sub _count
{
	my ($self) = @_;

	flock $self->{counter}, 2;
	syswrite $self->{counter}, '.';
	my $count = sysseek $self->{counter}, 0, 1;
	flock $self->{counter}, 8;
	return $count;
}

1;
