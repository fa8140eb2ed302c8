# shellcheck shell=bash disable=SC2034,SC2154,SC2046,SC2086,SC2206,SC2207  # options and lists of moe.sh
# Sourced by moe.sh: what the experts learned, and one page of all that has come out.

# words_of ANALYSIS: the options of its command line; sets `from` to what it reads.
words_of() {
    local experts=() name lang words=() tree passes decoded curves
    tree=$(family_tree)
    passes=(--backbone "$backbone" --context "$context" --data $(each "$raw/%s " $test_sets))
    decoded=(--exp "$expdir" --data_root "$raw" --inference_tag "$inference_tag"
        --test_sets $test_sets --systems $(for name in $systems; do name_of "$name"; done))
    parts_of oracle
    for ((name = 0; name < ${#options[@]}; name++)); do
        [[ ${options[name]} != *=* ]] || experts+=("${options[name]}")
    done
    from=("${backbone_files[@]}" "${folders[@]}" $(each "$raw/%s " $test_sets))
    case $1 in
        spectrum)
            words=(--experts "${experts[@]}")
            from=("${folders[@]}")
            ;;
        similarity | transfer)
            words=(--experts "${experts[@]}" "${passes[@]}" ${tree:+--families "$tree"})
            # What grid.sh --grid transfer has found with this base.
            curves=exp/grid/transfer/curves_$backbone_name.tsv
            if [ "$1" = transfer ] && [ -f "$curves" ]; then
                words+=(--curves "$curves")
                from+=("$curves")
            fi
            ;;
        layers | probing) words=(--experts "${experts[@]}" "${passes[@]}") ;;
        significance | errors | routing)
            words=("${decoded[@]}")
            from=("$expdir/results.json")
            ;;
    esac
    case $1 in
        errors) words+=(--train $(for lang in $langs; do echo "$lang=$raw/train_$lang"; done)) ;;
        routing)
            [ -z "$codeswitch_systems" ] || words+=(--codeswitch_sets $codeswitch_sets
                --codeswitch_systems $(for name in $codeswitch_systems; do name_of "$name"; done))
            ;;
    esac
    [ -z "$analysis_utterances" ] || ! listed "$1" similarity layers transfer probing ||
        words+=(--utterances "$analysis_utterances")
    printf '%s\n' "${words[@]}"
}

# has_times: whether times of words or phones came with a test set.
has_times() {
    local set name
    for set in $test_sets; do
        for name in words phones; do [ ! -f "$raw/$set/$name.ctm" ] || return 0; done
    done
    return 1
}

# analyses_of: those asked for, without routing where there is no router, and probing without times.
analyses_of() {
    local name
    for name in $analyses; do
        [ "$name" != routing ] || [ -n "$routers" ] || continue
        [ "$name" != probing ] || has_times || continue
        echo "$name"
    done
}

analysis() { # stage 12
    local pending=() name from options folders
    for name in $(analyses_of); do
        words_of "$name" >"$logs/analyze_$name.args"
        to_do "$expdir/.done/stage12_$name.json" --inputs "${from[@]}" "$logs/analyze_$name.args" \
            --outputs "$expdir/analysis/$name.json" || continue
        # What comes to nothing now must not be told with what an earlier run has found.
        rm -f "$expdir/analysis/$name."* "$expdir/analysis/${name}_"*
        pending+=("$name")
    done
    [ ${#pending[@]} -gt 0 ] || return 0
    # What cannot be analysed is told in the report; that it could not be is the end's exit code.
    $decode_cmd --gpu "$inference_gpus" $throttle ANALYSIS="$(join , "${pending[@]}")" \
        "$logs/analyze_ANALYSIS.log" $python -m espnet_moe.bin.analyze ANALYSIS \
        "@$logs/analyze_ANALYSIS.args" --out "$expdir/analysis" \&\& \
        $python -m espnet_moe.bin.stage commit --stamp "$expdir/.done/stage12_ANALYSIS.json" ||
        incomplete=true
}

report() { # stage 13
    local written=("$expdir"/analysis/*.json)
    [ -e "${written[0]}" ] || written=()
    to_do "$expdir/.done/stage13.json" --inputs "$expdir/results.json" "${written[@]}" \
        --options "$analyses" --outputs "$expdir/report/index.html" || return 0
    # A page that lacks something is a page: it says what.
    $train_cmd "$logs/report.log" $python -m espnet_moe.bin.report --exp "$expdir" --data "$raw" \
        --analyses $(analyses_of) || incomplete=true
    [ $incomplete = true ] || finish "$expdir/.done/stage13.json"
}
