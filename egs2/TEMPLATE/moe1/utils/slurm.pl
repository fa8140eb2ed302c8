#!/usr/bin/env perl
# Run a command, or an array of them, as jobs of SLURM, and wait for them.
#
#   slurm.pl [options] [JOB=1:N] log command [arguments]
#   slurm.pl --max-jobs-run 4 JOB=1:20 exp/log/decode.JOB.log python -m decode --job JOB
#   slurm.pl --detach true --after 12:13 log command
#   slurm.pl --gpu 1 --time 12:0:0 EXPERT=hi,it exp/EXPERT/train.log python -m train --expert EXPERT
#
# --max-jobs-run N   at most N of an array at a time
# --config FILE      how options become options of sbatch (conf/slurm.conf); lines are
#                      command sbatch ...        what submits
#                      option mem=* --mem $0     an option with any value, which $0 stands for
#                      option gpu=0              an option with this value; it comes before *
#                      default gpu=0             where the command line does not say
# --after ID:ID      start when these jobs have gone well, and never if one has not;
#                    ID:ID,any:ID: and when the last one has ended, however
# --detach true      do not wait: print the number of the job ("option detach=true" may add to it)
# --gpu, --mem, --name, --num-nodes, --num-threads, --time: as that file says
#
# The script of the jobs is written to q/ beside the log. A command that ends with status 75 after a
# signal (USR1 before the time limit) is queued again and waited for; so is one that was ended by TERM,
# where it was SLURM's preemption and no cancelling.
#
# Exit status: 0 if all went well, 1 if a job failed, 2 after Ctrl-C or a TERM signal (all jobs are
# cancelled first).
use strict;
use warnings;
use Cwd qw(abs_path getcwd);
use File::Basename qw(basename dirname);
use File::Path qw(make_path);

require(dirname(abs_path($0)) . "/job.pm");

my $DEFAULT_CONFIG = "conf/slurm.conf";
my $LONGEST_NAP = 3;       # seconds between looks
my $LOST_AFTER = 15;       # seconds that a file system may take to show what a job has written
my $TROUBLE = qr/^(?!None|Priority|Resources|JobArrayTaskLimit|Dependency|BeginTime)/;

my $job = job::parse("slurm.pl", [qw(after detach)], @ARGV);
my @submit = submission();
my @logs = map { job::fill($job, $job->{log}, $_) } @{$job->{values}};
my $queue = dirname($logs[0]) . "/q";
# Many logs are called train.log: the folder tells which.
my @path = split "/", $job->{log};
my $label = job::fill($job, join("_", @path > 1 ? @path[-2, -1] : @path), "all");
$label =~ s/[^\w.+-]/_/g;
my $script = "$queue/$label.sh";
my $sync = "$queue/done.$label.$$";    # and a job's number: that it has ended, and how

my $detached = ($job->{options}{detach} // "false") eq "true";
my $id;        # of the job or array
my $ending;    # the signal that was caught
$SIG{$_} = sub { $ending = shift } for qw(INT TERM HUP);

make_path($queue, map { dirname($_) } @logs);
write_script();
unlink glob("\Q$sync\E.*");
unlink $_ for @logs;
$id = submit();
if ($detached) {
    print "$id\n";
    exit 0;
}
wait_for_all();
my @failed = grep { ended_with($_) ne "0" } 0 .. $#logs;
unlink glob("\Q$sync\E.*");
exit job::verdict($job, [@logs[@failed]]);

# The words of the call of sbatch, without the array and the script.
sub submission {
    my %given = %{$job->{options}};
    my $file = delete $given{config};
    my $most = delete $given{max_jobs_run};
    my $after = delete $given{after};
    # What a job that nobody waits for gets besides is up to the configuration.
    my $unwatched = delete $given{detach};
    $file = $DEFAULT_CONFIG unless defined $file;
    open my $config, "<", $file or stop("cannot read the configuration $file: $!");
    my (%for_value, %for_any, %default, $command);
    while (my $line = <$config>) {
        $line =~ s/(?:^|\s)#.*//;
        $line =~ s/^\s+|\s+$//g;
        next if $line eq "";
        if ($line =~ /^command\s+(.+)$/) { $command = $1 }
        elsif ($line =~ /^option\s+(\w+)=\*(?:\s+(.*))?$/) { $for_any{$1} = $2 // "" }
        elsif ($line =~ /^option\s+(\w+)=(\S+)(?:\s+(.*))?$/) { $for_value{$1}{$2} = $3 // "" }
        elsif ($line =~ /^default\s+(\w+)=(\S+)$/) { $default{$1} = $2 }
        else { stop("$file:$.: '$line' is no line of command, option or default") }
    }
    defined $command or stop("$file has no line 'command sbatch ...'");
    $given{detach} = $unwatched if $unwatched && $for_value{detach}{$unwatched};
    my %chosen = (%default, %given);
    my @words = split " ", $command;
    for my $name (sort keys %chosen) {
        my $value = $chosen{$name};
        my $words = $for_value{$name}{$value} // $for_any{$name};
        defined $words or stop("--$name $value: $file has no line for it, such as "
            . "'option $name=* --$name \$0'");
        # The value is one word, whatever is in it.
        push @words, map { s/\$0/$value/g; $_ } split " ", $words;
    }
    push @words, "--dependency", join(",", map { /^any:/ ? "after$_" : "afterok:$_" } split ",", $after),
        "--kill-on-invalid-dep=yes" if $after;
    $job->{most} = $most;
    return @words;
}

# One script for all jobs of the array; each finds its log and its command by its number.
sub write_script {
    my $here = quoted(getcwd());
    my (@logs_of, @commands);
    for my $n (0 .. $#logs) {
        my $value = $job->{values}[$n];
        my $line = job::shell_line(map { job::fill($job, $_, $value) } @{$job->{command}});
        push @logs_of, "    $n) log=" . quoted($logs[$n]) . " said=" . quoted($line) . " ;;\n";
        push @commands, "    $n)\n$line\n;;\n";
    }
    open my $out, ">", $script or stop("cannot write $script: $!");
    print $out <<"HEAD", @logs_of, <<"MIDDLE", @commands, <<'TAIL';
#!/usr/bin/env bash
# Written by slurm.pl.
cd $here || exit 1
n=\${SLURM_ARRAY_TASK_ID:-0}
sync=@{[quoted($sync)]}.\$n
again=@{[job::requeue()]}    # a status that asks for another run
wait=@{[$detached ? "" : "yes"]}    # whether slurm.pl waits to be told
case \$n in
HEAD
esac
the_job() {
    set -o pipefail
    case \$n in
MIDDLE
    esac
}
started=$SECONDS
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || : >"$log"
{
    echo "# Running on $(hostname), job ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$n}"
    echo "# Started at $(date)"
    [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || echo "# GPUs: $CUDA_VISIBLE_DEVICES"
    sed 's/^/# /' <<<"$said"
    echo "#"
} >>"$log"
. ./path.sh >>"$log" 2>&1 || { echo "path.sh failed" >>"$log"; status=1; }
caught=
if [ -z "${status:-}" ]; then
    # In the background, so that signals come through at once.
    (trap : USR1 TERM; the_job) >>"$log" 2>&1 </dev/null &
    child=$!
    # The command, and all that it has started.
    signal_below() {
        local process
        for process in $(pgrep -P "$2"); do
            signal_below "$1" "$process"
            kill "-$1" "$process" 2>/dev/null
        done
    }
    pass_on() { caught=$1 interrupted=yes; signal_below "$1" "$child"; }
    trap 'pass_on USR1' USR1
    trap 'pass_on TERM' TERM
    # A trapped signal ends wait, not the command; and wait tells of an ended command once.
    while :; do
        interrupted=
        wait "$child"
        code=$?
        [ "$code" = 127 ] && [ -n "${status:-}" ] || status=$code
        [ -n "$interrupted" ] && [ "$code" -gt 127 ] || break
    done
    elapsed=$((SECONDS - started))
    # SLURM signals one process after the other: the command may have ended of it, in its own way,
    # before this script hears of it.
    if [ "$status" != 0 ] && [ -z "$caught" ]; then
        sleep 2 &
        nap=$!
        wait "$nap"
        kill "$nap" 2>/dev/null
    fi
fi
case $caught in
    USR1) reason="the time limit is near (USR1)" ;;
    TERM) reason="ended from outside: preempted or cancelled (TERM)" ;;
esac
if [ -n "$caught" ] && [ "$status" = "$again" ]; then
    echo "# Interrupted at $(date): $reason; to be queued again" >>"$log"
    # At a preemption SLURM does it alone; a cancelled job is not queued again.
    [ "$caught" = TERM ] || scontrol requeue "$SLURM_JOB_ID"
    exit "$again"
fi
[ -z "$caught" ] || echo "# $reason" >>"$log"
# Only SLURM knows whether that was the end; slurm.pl asks it.
[ "$caught" != TERM ] || [ "$status" = 0 ] || wait=
echo "# Finished at $(date) with status $status, elapsed time ${elapsed:-0} seconds" >>"$log"
[ -z "$wait" ] || { echo "$status" >"$sync.new" && mv "$sync.new" "$sync"; }
exit "$status"
TAIL
    close $out or stop("cannot write $script: $!");
    chmod 0755, $script;
}

# Hand the script to SLURM; return the job's number.
sub submit {
    my @array;
    if (defined $job->{name}) {
        @array = ("--array", "0-$#logs" . ($job->{most} ? "%$job->{most}" : ""));
    }
    # A name of the user's (option name=*) comes later and wins.
    my ($program, @options) = @submit;
    my @call = ($program, "--job-name", $label, @options, @array, "--requeue",
        "--open-mode=append", "--output", "$queue/$label.slurm.log", $script);
    my $call = join " ", map { quoted($_) } @call;
    for my $try (1 .. 5) {
        my $answer = `$call 2>&1`;
        # A site may print more than that; --parsable prints the number alone.
        return $1 // $2 if $? == 0 && $answer =~ /Submitted batch job (\d+)|^(\d+)(?:;|$)/m;
        # These come before SLURM has taken the job; after any other error it must not come twice.
        if ($try < 5 && $answer =~ /Unable to contact slurm controller|temporarily unable/) {
            nap($try * 2);
            exit 2 if $ending;
            next;
        }
        chomp $answer;
        stop("sbatch refused the job: $answer\nthe call was: $call");
    }
}

# Until every job has ended, or is known to SLURM no more.
sub wait_for_all {
    my ($pause, $looks, %lost, $trouble) = (0.1, 0);
    my %open = map { $_ => 1 } 0 .. $#logs;
    while (%open) {
        for my $n (keys %open) {
            delete $open{$n} if -s "$sync.$n";
        }
        last unless %open;
        nap($pause);
        cancel() if $ending;
        $pause = $pause * 1.2 > $LONGEST_NAP ? $LONGEST_NAP : $pause * 1.2;
        next if ++$looks % 10;
        my $alive = living() or next;    # SLURM did not answer: nothing is known
        for my $n (keys %open) {
            if (exists $alive->{$n}) {
                delete $lost{$n};
                my ($state, $why) = @{$alive->{$n}};
                if ($state eq "PENDING" && $why =~ $TROUBLE && $why ne ($trouble // "")) {
                    $trouble = $why;
                    print STDERR "slurm.pl: job $id waits: $why\n";
                }
            } elsif (time - ($lost{$n} //= time) > $LOST_AFTER) {
                delete $open{$n};
            }
        }
    }
}

# number => [state, reason] of the jobs that SLURM knows; nothing where it does not answer.
sub living {
    my $lines = `squeue --noheader --array --jobs $id --format '%K %T %r' 2>&1`;
    return {} if $lines =~ /Invalid job id/;
    return undef if $?;
    my %alive;
    for (split /\n/, $lines) {
        my ($n, $state, $why) = split " ", $_, 3;
        $n = 0 unless defined $job->{name};
        $alive{$n} = [$state, $why // ""] unless $state =~ /^(?:COMPLETED|CANCELLED|FAILED|TIMEOUT|OUT_OF|DEADLINE)/;
    }
    return \%alive;
}

# The status of a job: what it wrote at its end, else what its log says, else "lost".
sub ended_with {
    my ($n) = @_;
    if (open my $file, "<", "$sync.$n") {
        my $status = <$file> // "";
        chomp $status;
        return $status;
    }
    my @last = job::tail($logs[$n], 1);
    return $1 if @last && $last[0] =~ /^# Finished at .* with status (\d+)/;
    my $what = "job $id" . (defined $job->{name} ? "_$n" : "") . " is gone without a word: "
        . "cancelled, killed, or its node failed (see $queue/$label.slurm.log)";
    print STDERR "slurm.pl: $what\n";
    if (open my $log, ">>", $logs[$n]) {
        print $log "# $what\n";
        close $log;
    }
    return "lost";
}

# Ctrl-C.
sub cancel {
    system("scancel", $id);
    print STDERR "slurm.pl: ended by SIG$ending; job $id is cancelled\n";
    unlink glob("\Q$sync\E.*");
    exit 2;
}

# A word for bash, as it is.
sub quoted {
    my ($word) = @_;
    $word =~ s/'/'\\''/g;
    return "'$word'";
}

sub nap { select undef, undef, undef, shift }

sub stop {
    print STDERR "slurm.pl: error: $_[0]\n";
    exit 1;
}
