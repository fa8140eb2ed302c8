#!/usr/bin/env perl
# Run a command, or an array of them, on this machine, each with a log.
#
#   run.pl [options] [JOB=1:N] log command [arguments]
#   run.pl --max-jobs-run 2 JOB=1:4 exp/log/decode.JOB.log python -m decode --job JOB
#   run.pl --gpu 1 EXPERT=hi,it exp/EXPERT/train.log python -m train --expert EXPERT \> EXPERT.txt
#
# --max-jobs-run N   at most N at a time; else as many as there are cores or, with --gpu, GPUs
# --num-threads N    cores that a job uses
# --gpu N            N GPUs for each job and for it alone, through CUDA_VISIBLE_DEVICES; 0 hides all
# --mem, --time, --num-nodes, --name, --config are for clusters, and change nothing here
#
# Exit status: 0 if all went well, 1 if a job failed, 2 after Ctrl-C or a TERM signal (all jobs and
# what they started are ended first). After a USR1 signal, which jobs get too where slurm.pl has
# started this, those that run are waited for, and no others are started: 75 if it is worth to be
# called again, as a job has asked for that, or one has gone well and others have not.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use POSIX qw(:sys_wait_h setpgid strftime);

require(dirname(abs_path($0)) . "/job.pm");

my $GRACE = 20;    # seconds between asking jobs to end and ending them

my $job = job::parse("run.pl", [], @ARGV);
my $gpus_each = $job->{options}{gpu};
my @free_gpus = $gpus_each ? gpus() : ();
if ($gpus_each && $gpus_each > @free_gpus) {
    job::usage("run.pl", "--gpu $gpus_each, but there are " . scalar(@free_gpus) . " GPUs here");
}
my $places = places();
my @waiting = @{$job->{values}};
my %running;       # process id => {log, start, gpus}
my %failed;        # log => its code
my $good = 0;      # how many have gone well
my $broken = 0;    # how many have failed by themselves
my $ending;        # the signal that was caught
my $leaving;       # whether the time limit is near (USR1)

# The handlers only take note, and wake the loop below, which does the rest.
$SIG{$_} = sub { $ending = shift } for qw(INT TERM HUP);
$SIG{USR1} = sub { $leaving = 1 };
$SIG{CHLD} = sub { };

while (!$ending && (%running || @waiting && !$leaving)) {
    while (!$ending && !$leaving && @waiting && keys(%running) < $places) {
        start(shift @waiting);
    }
    reap() or nap();
}
if ($ending) {
    end_all();
    print STDERR "run.pl: ended by SIG$ending\n";
    exit 2;
}
my @logs = map { job::fill($job, $job->{log}, $_) } @{$job->{values}};
my $asked = grep { $_ == job::requeue() } values %failed;
exit job::requeue() if $leaving && !$broken && ($asked || $good && (@waiting || %failed));
if ($leaving && !$broken && (@waiting || %failed)) {
    print STDERR "run.pl: the time is over before any job has gone well; another run would come no further\n";
    exit 1;
}
exit job::verdict($job, [grep { $failed{$_} } @logs]);

# The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them.
sub gpus {
    return split /,/, $ENV{CUDA_VISIBLE_DEVICES} if defined $ENV{CUDA_VISIBLE_DEVICES};
    $ENV{CUDA_DEVICE_ORDER} = "PCI_BUS_ID";    # nvidia-smi's order
    return map { /^(\d+)/ ? $1 : () }
        split /\n/, `nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null` || "";
}

# How many jobs run at a time.
sub places {
    my $most = $job->{options}{max_jobs_run};
    if ($gpus_each) {
        my $fit = int(@free_gpus / $gpus_each);
        return $most && $most < $fit ? $most : $fit;
    }
    return $most if $most;
    # nproc believes OMP_NUM_THREADS, which the recipes set to 1.
    my $cores = `env -u OMP_NUM_THREADS nproc 2>/dev/null` || 1;
    my $fit = int($cores / ($job->{options}{num_threads} || 1));
    return $fit || 1;
}

sub start {
    my ($value) = @_;
    my $log = job::fill($job, $job->{log}, $value);
    my $line = job::shell_line(map { job::fill($job, $_, $value) } @{$job->{command}});
    my @gpus = splice @free_gpus, 0, $gpus_each || 0;
    make_path(dirname($log));
    open my $out, ">", $log or die "run.pl: error: cannot write $log: $!\n";
    print $out "# Running on ", (POSIX::uname())[1], "\n# Started at ", now(), "\n";
    print $out "# GPUs: @gpus\n" if @gpus;
    print $out "# $_\n" for split /\n/, $line;
    print $out "#\n";
    close $out or die "run.pl: error: cannot write $log: $!\n";

    my $pid = fork;
    defined $pid or die "run.pl: error: cannot start a process: $!\n";
    if ($pid == 0) {
        $SIG{$_} = "DEFAULT" for qw(INT TERM HUP USR1 CHLD);
        setpgid(0, 0);    # so that all the job starts can be ended with it
        $ENV{CUDA_VISIBLE_DEVICES} = join(",", @gpus) if defined $gpus_each;
        open STDIN, "<", "/dev/null";
        open STDOUT, ">>", $log or exit 1;
        open STDERR, ">&", \*STDOUT or exit 1;
        # The shell outlives a USR1, so that the command may end in its own way.
        exec("bash", "-o", "pipefail", "-c", "trap : USR1\n$line") or exit 127;
    }
    setpgid($pid, $pid);    # whichever of the two is first
    $running{$pid} = {log => $log, start => time, gpus => \@gpus};
}

# Look whether a job has ended, and finish its log.
sub reap {
    my $pid = waitpid(-1, WNOHANG);
    my $done = $pid > 0 ? delete $running{$pid} : undef;
    $done or return 0;
    my $code = $? & 127 ? 128 + ($? & 127) : $? >> 8;
    my $elapsed = time - $done->{start};
    if (open my $log, ">>", $done->{log}) {
        print $log "# Ended (code $code) at ", now(), ", elapsed time $elapsed seconds\n";
        close $log or $code ||= 1;
    } else {
        $code ||= 1;
    }
    $failed{$done->{log}} = $code if $code;
    $good++ unless $code;
    # What comes after a USR1 signal is its doing.
    $broken++ if $code && !$leaving;
    push @free_gpus, @{$done->{gpus}};
    return 1;
}

# Ask all jobs to end; end those that did not within the grace time, and what they leave behind.
sub end_all {
    $SIG{$_} = "IGNORE" for qw(INT TERM HUP);
    my @groups = keys %running;
    kill "TERM", map { -$_ } @groups;
    my $until = time + $GRACE;
    while (%running && time < $until) {
        reap() or nap();
    }
    kill "KILL", map { -$_ } @groups;
    while (%running) {
        reap() or nap();
    }
}

# Wait for a signal, but not for long: one may have come just before.
sub nap { select undef, undef, undef, 0.1 }

sub now { return strftime("%a %b %e %H:%M:%S %Z %Y", localtime) }
