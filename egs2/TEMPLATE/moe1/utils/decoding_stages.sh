# shellcheck shell=bash disable=SC2154,SC2046,SC2086,SC2206,SC2207  # options and lists of moe.sh
# Sourced by moe.sh: from trained systems to a scored table.

# name_of SYSTEM: the folder of its results; other experts than the usual ones have their own.
name_of() {
    if listed "$1" baseline $FINETUNED; then
        echo "$1"
    elif [ "$experts_tag" = expert ]; then
        echo "$1$by"
    else
        echo "$1${by}_$experts_tag"
    fi
}

# all_systems: each once.
all_systems() { each '%s\n' $systems $codeswitch_systems | awk '!seen[$0]++'; }

# sets_of SYSTEM: the test sets that it decodes.
sets_of() {
    ! listed "$1" $systems || echo $test_sets
    ! listed "$1" $codeswitch_systems || echo $codeswitch_sets
}

# parts_of SYSTEM: sets what it consists of: `options` of the command line and the `folders` behind.
parts_of() {
    local experts name folder router=$expdir/${routers%% *}$by/router
    options=(--system "$1")
    folders=()
    case $1 in
        finetune_*)
            options=(--system baseline)
            folders=($(each "$expdir/$1_%s/backbone " $langs))
            return
            ;;
        baseline) return ;;
        joint) options=(--system "$joint_strategy") router=$expdir/$joint/router ;;
        frame) router=$expdir/${routers##* }$by/router ;;
    esac
    read_experts
    options+=(--experts)
    for name in "${experts[@]}"; do
        folder=$experts_dir/$experts_tag${by}_$name/expert
        [ "$1" != joint ] || folder=$expdir/$joint/expert_$name
        options+=("$name=$folder")
        folders+=("$folder")
    done
    if [ "$1" != oracle ]; then
        options+=(--router "$router")
        folders+=("$router")
        [ "$1" != hierarchical ] || folders+=($(family_tree))
    elif [ "$experts_by" != language ]; then
        options+=(--utt2experts "$assigned/utt2experts")
        folders+=("$assigned/utt2experts")
    fi
}

# family_tree: the file that the configuration of the decoding names.
family_tree() {
    $python -c 'import sys, yaml; conf = yaml.safe_load(open(sys.argv[1])) or {}
print((conf.get("routing") or {}).get("tree") or "")' "$inference_config"
}

# language_of SET: the one that it has; those of a mixed one.
language_of() { cut -d ' ' -f 2 "$raw/$1/utt2lang" | sort -u | tr '\n' ' '; }

# bases_of SYSTEM: of its base, or its bases, "base set set ...", a line each.
bases_of() {
    local lang set own
    if ! listed "$1" $FINETUNED; then
        echo "$backbone" $(sets_of "$1")
        return
    fi
    for lang in $langs; do
        own=()
        for set in $(sets_of "$1"); do [ "$(language_of "$set")" != "$lang " ] || own+=("$set"); done
        [ ${#own[@]} = 0 ] || echo "$expdir/$1_$lang/backbone" "${own[@]}"
    done
}

# require_bases SYSTEM: a base that was fine-tuned is of one language, and so are its sets.
require_bases() {
    local set
    listed "$1" $FINETUNED || return 0
    for set in $(sets_of "$1"); do
        listed "$(language_of "$set" | tr -d ' ')" $langs ||
            complain "$1 cannot decode $set, whose languages are $(language_of "$set")"
    done
}

# write_shares SYSTEM: the options of its jobs; adds them to `shares`.
write_shares() {
    local base sets job place=0 places
    places=$(($(bases_of "$1" | wc -l) * inference_nj))
    while read -r base sets; do
        for ((job = 1; job <= inference_nj; job++)); do
            place=$((place + 1))
            shares+=("$(name_of "$1").$place")
            printf '%s\n' --backbone "$base" --context "$context" "${options[@]}" \
                --data $(each "$raw/%s " $sets) --config "$inference_config" --out "$out" \
                --job "$job" --num_jobs "$inference_nj" --place "$place/$places" \
                >"$logs/decode_$inference_tag.$(name_of "$1").$place.args"
        done
    done < <(bases_of "$1")
}

decoding() { # stage 10
    local system out sets shares=() pending=() options folders failed=0
    for system in $(all_systems); do
        require_bases "$system"
        parts_of "$system"
        sets=($(sets_of "$system"))
        out=$expdir/$(name_of "$system")/$inference_tag
        to_do "$(decode_stamp "$system")" --inputs "$inference_config" "${backbone_files[@]}" \
            "${folders[@]}" $(each "$raw/%s " "${sets[@]}") --options "$backbone" \
            "context=$context" "system=${options[*]}" --outputs $(each "$out/%s/text " "${sets[@]}") ||
            continue
        # The same folder serves every selection of sets: what stamps of others say no longer holds.
        find "$expdir/.done" -name "stage10_$(name_of "$system")_${inference_tag}_*.json" -delete
        # No share of an earlier run with more jobs may stay; other sets' results do.
        rm -rf "$out/logdir" $(each "$out/%s " "${sets[@]}")
        mkdir -p "$out/logdir"
        write_shares "$system"
        pending+=("$system")
    done
    [ ${#pending[@]} -gt 0 ] || return 0
    # All shares of all systems are one array; a system whose shares all went well is done.
    $decode_cmd --gpu "$inference_gpus" $throttle SHARE="$(join , "${shares[@]}")" \
        "$logs/decode_$inference_tag.SHARE.log" $python -m espnet_moe.bin.decode \
        "@$logs/decode_$inference_tag.SHARE.args" || failed=$?
    for system in "${pending[@]}"; do merge_shares "$system" || [ $failed != 0 ] || failed=1; done
    [ $failed = 0 ] || exit "$failed"
}

decode_stamp() {
    local sets
    sets=$(sets_of "$1" | tr '\n' ' ')
    echo "$expdir/.done/stage10_$(name_of "$1")_${inference_tag}_$(cksum <<<"$sets" | cut -d ' ' -f 1).json"
}

# merge_shares SYSTEM: one text a set from those of the jobs.
merge_shares() {
    local set out
    out=$expdir/$(name_of "$1")/$inference_tag
    [ "$(find "$out/logdir" -name 'output.*.json' | wc -l)" = \
        $(($(bases_of "$1" | wc -l) * inference_nj)) ] || return 1
    for set in $(sets_of "$1"); do
        cat "$out/$set"/logdir/output.*/text | sort >"$out/$set/text"
        if [ "$(wc -l <"$out/$set/text")" != "$(wc -l <"$raw/$set/text")" ]; then
            log "error: $out/$set/text and $raw/$set/text differ in length" >&2
            return 1
        fi
    done
    finish "$(decode_stamp "$1")"
}

scoring() { # stage 11
    local texts=() names=() codeswitch=() system set out
    for system in $(all_systems); do
        out=$expdir/$(name_of "$system")/$inference_tag
        texts+=("$out/logdir" $(each "$out/%s/text " $(sets_of "$system")))
    done
    for system in $systems; do names+=("$(name_of "$system")"); done
    if [ -n "$codeswitch_systems" ]; then
        codeswitch=(--codeswitch_sets $codeswitch_sets --codeswitch_systems)
        for system in $codeswitch_systems; do codeswitch+=("$(name_of "$system")"); done
    fi
    if to_do "$expdir/.done/stage11$by.json" --inputs "${texts[@]}" \
        $(each "$raw/%s " $test_sets $codeswitch_sets) --options "$inference_tag" \
        --outputs "$expdir"/{results.json,RESULTS.md,results.manifest.json,summary.txt}; then
        $train_cmd "$logs/score.log" $python -m espnet_moe.bin.score --exp "$expdir" \
            --data "$raw" --test_sets $test_sets --systems "${names[@]}" "${codeswitch[@]}" \
            --inference_tag "$inference_tag" --use_wandb "$use_wandb" \> "$expdir/summary.txt"
        finish "$expdir/.done/stage11$by.json"
    fi
    cat "$expdir/summary.txt"
}
