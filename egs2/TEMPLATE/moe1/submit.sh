#!/usr/bin/env bash
# Hand all stages of a recipe to SLURM and go home: a chain of jobs, each of which starts when the one
# before has gone well; experts are an array.
#   ./submit.sh [options of run.sh]      # such as --max_jobs_run 4, --ngpu 1
#   ./status.sh                          # how it goes
# Every job runs its stage on the node that it gets, as run.sh would. conf/slurm.conf says what a job
# asks for, and whom SLURM writes to. After a failure the same call again does what is left.
set -euo pipefail
cd "$(dirname "$0")"
exec ./run.sh --submit true "$@"
