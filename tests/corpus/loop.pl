# Perl: hashes, lists and strings that come and go.
#
# Stages: ready, (byte: run) and then until it is killed.
use strict;
use warnings;
use Time::HiRes qw(sleep time);

$| = 1;
print "{\"stage\":\"ready\",\"pid\":$$}\n";
sysread(STDIN, my $byte, 1) or die "the test closed stdin";
my (%table, @queue);
my $start = time;
for (my $turn = 0;; $turn++) {
    for my $part (0 .. 3) {
        my $key = ($turn * 7 + $part * 31) % 400;
        if ($turn & 1) { $table{"key $key"} = { name => "x" x ($key % 90), list => [1 .. 5] } }
        else           { delete $table{"key $key"} }
    }
    push @queue, join(",", map { $_ * $turn } 1 .. 20);
    shift @queue if @queue > 150;
    my $rest = $start + ($turn + 1) / 50 - time;
    sleep($rest) if $rest > 0;
}
