# What the job launchers (run.pl and the ones for clusters) have in common: the command line, its
# quoting, the names of logs, and the verdict over all jobs.
package job;

use strict;
use warnings;

# Options with a value that every launcher takes; `--a-b` is the same as `--a_b`.
my @COMMON = qw(config gpu max_jobs_run mem name num_nodes num_threads time);

# The status of a command that wants to go on in another job (EX_TEMPFAIL).
sub requeue { return 75 }

my $WHOLE_NUMBER = qr/^(?:gpu|max_jobs_run|num_nodes|num_threads)$/;

# parse($program, $more, @arguments): read `[options] [JOB=1:N] [options] log command ...`.
#
# JOB=a:b stands for the numbers a to b, JOB=x,y,z for these words; wherever the name occurs in the
# log's name and in the command, a job's own value takes its place.
#
# $more: names of further options, which this launcher alone has.
#
# Returns a hash: options {name => value}, name (of the array, or undef), values [one a job],
# log, command [words].
sub parse {
    my ($program, $more, @rest) = @_;
    my @legal = sort(@COMMON, @$more);
    my %job = (program => $program, options => {}, name => undef, values => [""]);
    while (@rest) {
        if ($rest[0] =~ /^--?([A-Za-z][\w-]*)$/) {
            (my $option = $1) =~ tr/-/_/;
            shift @rest;
            grep { $_ eq $option } @legal
                or usage($program, "option --$option is unknown; legal: --" . join(" --", @legal));
            @rest or usage($program, "option --$option needs a value");
            my $value = shift @rest;
            if ($option =~ $WHOLE_NUMBER && $value !~ /^\d+$/) {
                usage($program, "option --$option needs a whole number, not '$value'");
            }
            $job{options}{$option} = $value;
        } elsif ($rest[0] =~ /^([A-Za-z_]\w*)=(.*)$/s && !defined $job{name}) {
            $job{name} = $1;
            $job{values} = values_of($program, $rest[0], $2);
            shift @rest;
        } else {
            last;
        }
    }
    @rest >= 2 or usage($program, "a log file and a command are needed");
    ($job{log}, @{$job{command}}) = @rest;
    if (@{$job{values}} > 1 && index($job{log}, $job{name}) < 0) {
        usage($program, "several jobs need $job{name} in the name of the log, but it is $job{log}");
    }
    return \%job;
}

sub values_of {
    my ($program, $word, $range) = @_;
    if ($range =~ /^(\d+)(?::(\d+))?$/) {
        my ($first, $last) = ($1, defined $2 ? $2 : $1);
        $first <= $last or usage($program, "$word is an empty range");
        return [$first .. $last];
    }
    my @words = split /,/, $range, -1;
    if (!@words || grep { !/^[\w.+-]+$/ } @words) {
        usage($program, "$word is neither a range such as JOB=1:4 nor a list such as JOB=hi,it");
    }
    return \@words;
}

sub usage {
    my ($program, $message) = @_;
    print STDERR "$program: error: $message\n",
        "usage: $program [--gpu N] [--max-jobs-run N] [--num-threads N] [--mem M] [--time T]",
        " [JOB=1:N] log command [arguments]\n";
    exit 1;
}

# fill($job, $text, $value): put a job's own value in the place of the array's name.
sub fill {
    my ($job, $text, $value) = @_;
    $text =~ s/\Q$job->{name}\E/$value/g if defined $job->{name};
    return $text;
}

# shell_line(@words): the command as bash gets it.
#
# A word without white space goes as it is, so that an escaped pipe or redirection works; one that
# holds a double quote is put in single quotes; any other in double quotes, where $ still counts.
sub shell_line {
    return join " ", map {
        my $word = $_;
        if ($word =~ /^\S+$/) { $word }
        elsif ($word =~ /"/) { $word =~ s/'/'\\''/g; "'$word'" }
        else { "\"$word\"" }
    } @_;
}

# verdict($job, $failed): report the logs of failed jobs, in order; return the exit status.
sub verdict {
    my ($job, $failed) = @_;
    @$failed or return 0;
    my $logs = fill($job, $job->{log}, "*");
    my $all = @{$job->{values}};
    print STDERR "$job->{program}: ", scalar(@$failed), " / $all failed, log is in $logs\n";
    print STDERR "end of $failed->[0]:\n", map { "    $_" } tail($failed->[0], 20);
    return 1;
}

sub tail {
    my ($path, $count) = @_;
    open my $log, "<", $path or return "(it cannot be read: $!)\n";
    my @lines;
    while (my $line = <$log>) {
        push @lines, $line;
        shift @lines if @lines > $count;
    }
    return @lines;
}

1;
