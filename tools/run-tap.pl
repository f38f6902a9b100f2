# prove, but for the numbers: runs TAP files several at a time and writes "passed failed" to a
# file, which prove only prints in words.
#
#   perl run-tap.pl JOBS COUNTS_FILE test.pl...
use strict;
use warnings;
use TAP::Harness;

my ($jobs, $counts_file, @tests) = @ARGV;
my $harness = TAP::Harness->new(
	{
		jobs => $jobs,
		timer => 1,
		failures => 1,
		color => 0,
		verbosity => $jobs > 1 ? 0 : 1,
	});
my $result = $harness->runtests(@tests);

# A file that died, or ran another number of tests than it planned, has failed at least once,
# even if every test that it did report was fine.
my $failed = $result->failed;
for my $file ($result->descriptions)
{
	my ($parser) = $result->parsers($file);
	$failed++ if !$parser->failed && $parser->has_problems;
}
my $passed = $result->passed;

open(my $counts, '>', $counts_file) or die "could not write $counts_file: $!";
print $counts "$passed $failed\n";
close($counts) or die "could not write $counts_file: $!";
exit($failed ? 1 : 0);
