# shellcheck shell=bash disable=SC2034  # some variables are for the script
# Sourced by scripts of several stages: which ones run, and which are done already.

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') ($(basename "$0")) $*"; }

# wanted STAGE: whether --stage, --stop_stage and --skip_stages ask for it.
wanted() {
    # shellcheck disable=SC2154  # options of the script
    ((stage <= $1 && $1 <= stop_stage)) && [[ " $skip_stages " != *" $1 "* ]]
}

# run_stage NUMBER TITLE FUNCTION: run a stage if it is wanted. Not as a condition of anything: `set -e`
# has to hold inside.
run_stage() {
    wanted "$1" || return 0
    log "Stage $1: $2"
    "$3"
}

# alone_with FOLDER: what comes until together_again is done by one run at a time; experiments on
# several backbones, say, make their data in the same place.
alone_with() {
    mkdir -p "$1"
    exec {lock}>"$1/.lock"
    flock --nonblock "$lock" && return
    log "another run is making $1: waiting for it"
    flock "$lock"
}
together_again() { [ -z "${lock:-}" ] || exec {lock}>&-; }

# listed WORD WORDS ...: whether the first is among the others.
listed() {
    local word
    for word in "${@:2}"; do [ "$word" != "$1" ] || return 0; done
    return 1
}

# each FORMAT WORDS ...: printf, but nothing where there are no words.
# shellcheck disable=SC2059  # the format is the point
each() { [ $# = 1 ] || printf "$@"; }

# join SEPARATOR WORDS ...
join() {
    local IFS=$1
    echo "${*:2}"
}

# to_do STAMP [options of espnet_moe.bin.stage]: whether there is work to do; says why. Sets `begun`
# to whether an earlier run from the same inputs was interrupted.
to_do() {
    local code=0
    begun=false
    "${python:-python3}" -m espnet_moe.bin.stage check --stamp "$1" "${@:2}" || code=$?
    case $code in
        0) return 1 ;;
        4) return 0 ;;
        3) begun=true ;;
        *) exit "$code" ;;
    esac
}

# finish STAMP: call it done.
finish() { "${python:-python3}" -m espnet_moe.bin.stage commit --stamp "$1"; }

# corpora_of LANGUAGE: its corpora in --sources, which reads "hi:commonvoice,kathbath it:mls".
corpora_of() {
    local entry
    # shellcheck disable=SC2154  # an option of the script
    for entry in $sources; do
        [ "${entry%%:*}" != "$1" ] || tr , ' ' <<<"${entry#*:}"
    done
}

# splits_of LANGUAGE FOLDER SPLIT ...: the data dirs of all its corpora.
splits_of() {
    local corpus split
    for corpus in $(corpora_of "$1"); do
        for split in "${@:3}"; do echo "$2/${corpus}_$1_$split"; done
    done
}

# complain PROBLEM ...: end the script with exit code 2 if there are any.
complain() {
    [ $# = 0 ] && return
    printf '%s\n' "${@/#/$0: error: }" >&2
    exit 2
}
