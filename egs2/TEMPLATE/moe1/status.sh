#!/usr/bin/env bash
# How the jobs of submit.sh go: a table of jobs, stages and progress, and the end of failed logs.
set -euo pipefail

expdir=                         # which run; empty: all in exp/
lines=10                        # of a failed log

. "$(dirname "$0")/utils/parse_options.sh"
cd "$(dirname "$0")"

# state_of JOB TASK LOG: what SLURM says, else what the log says.
state_of() {
    local state last
    state=$(awk -v job="$1" -v task="$2" '$1 == job && (task == "" || $2 == task) {print $3; exit}' <<<"$queue")
    last=$(tail -n 1 "$3" 2>/dev/null || true)
    if [ "$queue" = unknown ]; then
        echo unknown
    elif [ -n "$state" ] && [ "$state" != COMPLETING ]; then
        echo "${state,,}"
    elif [[ $last =~ with\ status\ ([0-9]+) ]]; then
        [ "${BASH_REMATCH[1]}" = 0 ] && echo "done" || echo "failed (${BASH_REMATCH[1]})"
    elif [ -f "$3" ]; then
        echo lost
    else
        echo "not run"
    fi
}

# progress_of LOG: the last line of a stage.
progress_of() {
    [ -f "$1" ] || return 0
    grep -v '^#' "$1" | tail -n 1 | cut -c 1-60
}

# option NAME: of the call of submit.sh.
option() { sed -n "s/^$1=\"\(.*\)\"/\1/p" "$folder/options"; }

# names_of: the experts of stage 8's array.
names_of() { option only_experts | grep . || option langs; }

# trainings_of STAGE EXPERT: their logs.
trainings_of() {
    local by name tag
    tag=$(option experts_tag)
    by=$(option experts_by)
    by=$([ "$by" = language ] || echo "_$by")
    case $1 in
        7) for name in $(option routers); do echo "$folder/../$name$by/train.log"; done ;;
        8) echo "$folder/../$tag${by}_${2:-*}/train.log" ;;
        9) echo "$folder/../joint$by$([ "$tag" = expert ] || echo "_$tag")/train.log" ;;
    esac
}

# epochs_of TRAIN_LOG: epoch, loss and WER so far.
epochs_of() {
    local line of
    line=$(grep -h 'epoch results: ' "$1" 2>/dev/null | tail -n 1) || return 0
    of=$(grep -ho '[0-9]*/[0-9]*epoch started' "$1" | tail -n 1 | cut -d e -f 1)
    [[ $line =~ ([0-9]+)epoch\ results ]] && printf 'epoch %s' "${BASH_REMATCH[1]}/${of#*/}"
    [[ $line =~ \[valid\]\ .*loss=([^,]*) ]] && printf ', loss %s' "${BASH_REMATCH[1]}"
    line=$(grep -ho '\[valid\].* wer=[^,]*' "$1" | tail -n 1 | grep -o 'wer=.*' | cut -c 5-) || true
    [ -z "$line" ] || printf ', WER %s' "$line"
}

queue=$(squeue --noheader --array --format '%F %K %T' 2>&1) || {
    echo "$0: SLURM does not answer: $queue" >&2
    queue=unknown
}
found=false
for folder in ${expdir:-exp/*}/submit; do
    [ -f "$folder/jobs" ] || continue
    found=true
    failed=()
    printf '%s\n%-10s %-16s %-12s %s\n' "${folder%/submit}" job stage state progress
    while read -r job stage log; do
        names=('')
        [[ $log != *EXPERT* ]] || read -r -a names < <(names_of)
        for i in "${!names[@]}"; do
            name=${names[i]} task=$([ -z "${names[i]}" ] || echo "$i")
            file=${log/EXPERT/$name}
            state=$(state_of "$job" "$task" "$file")
            progress=
            for training in $(trainings_of "$stage" "$name"); do
                epochs=$(epochs_of "$training")
                [ -z "$epochs" ] ||
                    progress+="${progress:+; }$(basename "$(dirname "$training")"): $epochs"
            done
            printf '%-10s %-16s %-12s %s\n' "$job${task:+_$task}" "$stage${name:+ $name}" \
                "$state" "${progress:-$(progress_of "$file")}"
            [[ $state != failed* && $state != lost ]] || failed+=("$file")
        done
    done <"$folder/jobs"
    for file in ${failed[@]+"${failed[@]}"}; do
        printf '\nend of %s:\n' "$file"
        tail -n "$lines" "$file" | sed 's/^/    /'
    done
done
if [ $found = false ]; then
    echo "$0: error: nothing was submitted: there is no ${expdir:-exp/*}/submit/jobs" >&2
    exit 1
fi
