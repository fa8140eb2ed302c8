# shellcheck shell=bash
# Sourced by the scripts of a recipe: what runs its jobs.
#   train_cmd    data preparation, statistics, scoring
#   cuda_cmd     training
#   decode_cmd   decoding
#
# Every launcher is called as `launcher [options] [JOB=1:N] log command`; see utils/run.pl. Options
# that all jobs of a kind shall have may stand here, e.g. cuda_cmd="utils/slurm.pl --time 24:0:0".

cmd_backend=${cmd_backend:-local} # local: this machine; slurm: conf/slurm.conf tells how

case $cmd_backend in
    local) _launcher=utils/run.pl ;;
    slurm) _launcher=utils/slurm.pl ;;
    *)
        echo "cmd.sh: error: cmd_backend '$cmd_backend' is unknown; legal: local slurm" >&2
        return 1
        ;;
esac
export train_cmd="$_launcher"
export cuda_cmd="$_launcher"
export decode_cmd="$_launcher"
unset _launcher
