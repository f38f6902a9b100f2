# prove, but for the numbers: runs TAP files several at a time and writes "passed failed" to a
# file, which prove only prints in words.
#
#   perl run-tap.pl JOBS COUNTS_FILE test.pl...
#
# PPB_FILE_TIMEOUT is after how many seconds a file is ended that does not end by itself; 0 or nothing is never.
#
# PPB_DIFFERENCES is a file that names tests which have to fail, a line each:
#
#   FILE | HOW MANY of that name | NAME | WHY
#
# Exactly these may fail. One that fails as it should counts as passed, one that passes as failed.
#
# PPB_RESULTS is a file that is written, to compare one run with another:
#
#   FILE PASSED FAILED SKIPPED      a line for each file; skipped tests, or 1 if it is the whole file, are not
#                                   among those that passed
#   FILE not ok NAME                a line for each test that failed
use strict;
use warnings;
use TAP::Harness;

my ($jobs, $counts_file, @tests) = @ARGV;
my %expected = read_differences($ENV{PPB_DIFFERENCES});
my (%found, %skipped);
my $limit = $ENV{PPB_FILE_TIMEOUT} || 0;
my $harness = TAP::Harness->new(
	{
		jobs => $jobs,
		# By a signal that has its servers stopped.
		$limit ? (exec => [ 'timeout', '--kill-after=60', $limit, $^X ]) : (),
		timer => 1,
		failures => 1,
		color => 0,
		verbosity => $jobs > 1 ? 0 : 1,
	});
$harness->callback(
	made_parser => sub {
		my ($parser, $job) = @_;
		my $file = $job->[0];
		$parser->callback(
			test => sub {
				my ($test) = @_;
				$skipped{$file}++ if $test->has_skip;
				return if $test->is_ok;
				my $name = $test->description;
				$name =~ s/^- //;
				$found{$file}{$name}++;
			});
	});
my $result = $harness->runtests(@tests);

show_last_words($_) for grep { ($result->parsers($_))[0]->has_problems } $result->descriptions;
write_results($ENV{PPB_RESULTS}) if defined $ENV{PPB_RESULTS};

# A file that died, or ran another number of tests than it planned, has failed at least once,
# even if every test that it did report was fine.
my ($passed, $failed) = (scalar $result->passed, scalar $result->failed);
for my $file ($result->descriptions)
{
	my ($parser) = $result->parsers($file);
	my $count = $parser->failed;
	$failed++ if !$count && $parser->has_problems;
	next if !$expected{$file} && !%expected;
	# Tests that a file does not come to any more.
	my $is_whole = $parser->is_good_plan && !$parser->parse_errors;
	if ($count && !$is_whole)
	{
		print "$file: ended early\n";
		$failed++;
	}
	for my $name (sort keys %{ $found{$file} // {} }, keys %{ $expected{$file} // {} })
	{
		my $wanted = delete $expected{$file}{$name} // 0;
		my $is = delete $found{$file}{$name} // 0;
		my $good = $wanted < $is ? $wanted : $is;
		$passed += $good;
		$failed -= $good;
		next if $wanted == $is;
		print "$file: \"$name\" failed $is times, expected were $wanted\n";
		$failed += $wanted - $is if $wanted > $is;
	}
}

open(my $counts, '>', $counts_file) or die "could not write $counts_file: $!";
print $counts "$passed $failed\n";
close($counts) or die "could not write $counts_file: $!";
exit($failed ? 1 : 0);

# What a file that failed has said last: not everybody who sees that it failed can look at its log.
sub show_last_words
{
	my ($file) = @_;
	my ($parser) = $result->parsers($file);
	my ($name) = $file =~ m{([^/]+)\.pl$} or return;
	my $is_late = $limit && ($parser->exit // 0) >> 8 == 124;
	my $count = $is_late ? 100 : 20;
	print "$file did not end within $limit s\n" if $is_late;
	open(my $log, '<', ($ENV{TESTLOGDIR} // '.') . "/regress_log_$name") or return;
	my @lines = <$log>;
	my @failed = grep { $lines[$_] =~ /\bnot ok\b/ } 0 .. $#lines;
	print "the last lines of $file:\n", map { "    $_" } @lines[ ($#lines > $count ? $#lines - $count : 0) .. $#lines ];
	print "and around what failed:\n" if @failed;
	print map { "    $_" } @lines[ $_ .. ($_ + 10 > $#lines ? $#lines : $_ + 10) ] for @failed > 5 ? @failed[ 0 .. 4 ] : @failed;
}

sub write_results
{
	my ($path) = @_;
	open(my $out, '>', $path) or die "could not write $path: $!";
	for my $file ($result->descriptions)
	{
		my ($parser) = $result->parsers($file);
		my $skipped = $skipped{$file} // 0;
		my ($passed, $failed) = (scalar $parser->passed, scalar $parser->failed);
		if ($parser->skip_all) { $skipped = 1; }
		else { $passed -= $skipped; }
		$failed++ if !$failed && $parser->has_problems;
		print $out "$file $passed $failed $skipped\n";
		print $out "$file not ok $_\n" for sort keys %{ $found{$file} // {} };
	}
	close($out) or die "could not write $path: $!";
}

sub read_differences
{
	my ($path) = @_;
	my %differences;
	return if !defined $path;
	open(my $file, '<', $path) or die "could not read $path: $!";
	while (my $line = <$file>)
	{
		next if $line =~ /^\s*(#|$)/;
		my ($test, $count, $name, $why) = $line =~ /^(\S+) \| (\d+) \| (.+?) \| (.+)$/
		  or die "$path, line $.: not FILE | COUNT | NAME | WHY\n";
		$differences{$test}{$name} += $count;
	}
	return %differences;
}
