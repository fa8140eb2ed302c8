# shellcheck shell=bash disable=SC2154,SC2046,SC2086  # options and lists of moe.sh
# Sourced by moe.sh for submit.sh: the stages as a chain of SLURM jobs.
# $expdir/submit/ keeps the options, the logs, and `jobs`: a line "job stage log" for each job.

submit_stages() {
    local folder=$expdir/submit number after='' ended='' log array
    refuse_a_second_chain "$folder/jobs"
    mkdir -p "$folder"
    write_options >"$folder/options"
    rm -f "$folder"/*.log
    : >"$folder/jobs"
    for number in $STAGES; do
        ! wanted "$number" || [ -z "$(work_of "$number")" ] || submit_stage "$number"
    done
    echo "./status.sh --expdir $expdir shows how it goes; scancel$(each ' %s' $(cut -d ' ' -f 1 "$folder/jobs")) ends it"
}

# work_of STAGE: empty where there is nothing to do in any case.
work_of() {
    case $1 in
        7) echo "$routers" ;;
        8) [ -n "$experts_from" ] && [ -z "$(finetuned_systems)" ] || echo yes ;;
        9) echo "$joint_config" ;;
        12 | 13) [ "$skip_analysis" = true ] || echo yes ;;
        14) echo "$licence" ;;
        15) echo "$hf_repo" ;;
        *) echo yes ;;
    esac
}

# submit_stage STAGE: a job, or an array of them, that starts when the one before has gone well.
submit_stage() {
    local words=() options=(--detach true --name "$(basename "$expdir")_stage$1") id launcher=$train_cmd
    log=$folder/stage$1.log array=''
    if listed "$1" 5 7 8 9 10 12; then
        options+=(--gpu "$ngpu")
        launcher=$(listed "$1" 10 12 && echo "$decode_cmd" || echo "$cuda_cmd")
    fi
    if [ "$1" = 8 ] && [ "$experts_by" = language ]; then
        # An expert a language; how many clusters there will be is not known yet.
        array=EXPERT=$(join , ${only_experts:-$langs})
        log=$folder/stage8_EXPERT.log
        words=(--only_experts EXPERT)
    else
        options+=(--num-threads "$nj")
    fi
    [ -z "$after$ended" ] || options+=(--after "$(join , $after ${ended:+any:$ended})")
    [ -z "$max_jobs_run" ] || options+=(--max-jobs-run "$max_jobs_run")
    id=$($launcher "${options[@]}" $array "$log" \
        ./moe.sh --config "$folder/options" --stage "$1" --stop_stage "$1" "${words[@]}")
    echo "$id $1 $log" >>"$folder/jobs"
    echo "job $id: stage $1${array:+, an array over ${only_experts:-$langs}}$(each ', after %s' ${ended:-$after})"
    # What could not be analysed is told by the report; neither keeps a model from being packed.
    if listed "$1" 12 13; then ended=$id; else after=$id ended=''; fi
}

# write_options: what every job of the chain has in common, for --config.
write_options() {
    local name
    for name in $_option_names; do
        case $name in
            stage | stop_stage | skip_stages | submit | cmd_backend) ;;
            *) printf '%s="%s"\n' "$name" "${!name//$'\n'/ }" ;;
        esac
    done
}

# refuse_a_second_chain JOBS: two of them would write to the same files.
refuse_a_second_chain() {
    local jobs open
    [ -s "$1" ] || return 0
    jobs=$(cut -d ' ' -f 1 "$1")
    open=$(squeue --noheader --format %F 2>&1) ||
        complain "SLURM does not say whether jobs of an earlier call are under way: $open"
    open=$(sort -u <<<"$open" | grep -Fx "$jobs" | tr '\n' ' ') || true
    [ -z "$open" ] || complain "jobs of an earlier call are under way: $open; scancel $open ends them"
}
