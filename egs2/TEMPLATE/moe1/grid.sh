#!/usr/bin/env bash
# Run a grid of experiments that conf/grid.yaml lists, each in exp/grid/<grid>/<name>; what is finished is
# skipped, and the same call goes on after an interruption. What is not looked at are the files that options
# name: after a change of conf/train_expert.yaml, say, remove exp/grid/<grid>/*/options.done.
#   ./grid.sh --grid ranks --run_args "--corpus_dir /corpora"                # one after the other
#   ./grid.sh --grid ranks --cmd_backend slurm --ngpu 1 --max_jobs_run 8     # an array of jobs
#   ./grid.sh --grid ranks --report true                                     # tables and a picture
set -euo pipefail

grid=ranks                      # which one
registry=conf/grid.yaml         # the grids
exp=exp/grid                    # of all experiments
run_args=                       # further options of run.sh for every experiment
report=false                    # tables of the finished experiments, instead of running others
system=oracle                   # whose WER they tell, or several, e.g. "hard soft"
cmd_backend=local               # where experiments run: local or slurm
max_jobs_run=1                  # experiments at a time
ngpu=0                          # GPUs of each

. "$(dirname "$0")/utils/parse_options.sh"
cd "$(dirname "$0")"
. utils/stages.sh
. ./path.sh
. ./cmd.sh

of_grid=(--registry "$registry" --grid "$grid" --exp "$exp")
if [ $report = true ]; then
    exec python3 -m espnet_moe.bin.grid report "${of_grid[@]}" --system $system
fi
names=$(python3 -m espnet_moe.bin.grid list "${of_grid[@]}" "--run_args=$run_args")
if [ -n "$names" ]; then
    log "running $(wc -l <<<"$names") experiments, logs: $exp/$grid/<name>/run.log"
    # The first makes the data that the others share. $cuda_cmd is a command with options.
    # shellcheck disable=SC2086,SC2154
    $cuda_cmd --gpu "$ngpu" --max-jobs-run "$max_jobs_run" NAME="$(join , $names)" \
        "$exp/$grid/NAME/run.log" utils/run_with.sh "$exp/$grid/NAME/options" --ngpu "$ngpu" $run_args \
        \&\& python3 -m espnet_moe.bin.grid finish "${of_grid[@]}" --name NAME \
        "--run_args=$run_args"
fi
python3 -m espnet_moe.bin.grid report "${of_grid[@]}" --system $system
