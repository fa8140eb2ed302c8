#!/usr/bin/env bash
# Hand all stages of a recipe to SLURM and go home: a chain of jobs, each of which starts when the one
# before has gone well; experts are an array.
#   ./submit.sh --ngpu 1 [options of run.sh]    # --ngpu 0 where there are none
#   ./status.sh                                 # how it goes
# Every job runs its stage on the node that it gets, as run.sh would, and asks for --ngpu GPUs (stages 5
# and 7 to 10) and --nj cores (all but the experts'); conf/slurm.conf and cmd.sh say what else it asks
# for, and whom SLURM writes to. After a failure the same call again does what is left.
set -euo pipefail
cd "$(dirname "$0")"
exec ./run.sh --submit true "$@"
