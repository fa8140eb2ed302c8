# shellcheck shell=bash
# Sourced by the scripts of a recipe: what runs its jobs.
#   train_cmd    data preparation, statistics, scoring
#   cuda_cmd     training
#   decode_cmd   decoding
#
# Every launcher is called as `launcher [options] [JOB=1:N] log command`; see utils/run.pl.

cmd_backend=local # this machine

case $cmd_backend in
    local)
        export train_cmd="utils/run.pl"
        export cuda_cmd="utils/run.pl"
        export decode_cmd="utils/run.pl"
        ;;
    *)
        echo "cmd.sh: error: cmd_backend '$cmd_backend' is unknown; legal: local" >&2
        return 1
        ;;
esac
