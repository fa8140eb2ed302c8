# shellcheck shell=bash disable=SC2154,SC2046,SC2086,SC2207  # options and lists of moe.sh
# Sourced by moe.sh: from corpora to sets and their statistics.

# further_of LANGUAGE: its sets of --further_tests.
further_of() {
    local entry
    for entry in $further_tests; do
        ! listed "${entry%%:*}" $(corpora_of "$1") || echo "${entry%%:*}_$1_${entry#*:}"
    done
}

corpora_to_data_dirs() { # stage 1
    local pending=() made lang
    for lang in $langs; do
        made=($(splits_of "$lang" "$datadir" train dev test)
            $(each "$datadir/%s " $(further_of "$lang")))
        to_do "$datadir/.done/stage1_$lang.json" \
            --inputs local/data.sh $([ ! -f db.sh ] || echo db.sh) \
            --options "corpora=$(corpora_of "$lang")" "corpus_dir=$corpus_dir" \
            "opts=$local_data_opts" "bad=$allow_bad_test_audio" \
            --outputs "${made[@]/%//wav.scp}" || continue
        pending+=("$lang")
    done
    [ ${#pending[@]} -gt 0 ] || return 0
    local/data.sh --datadir "$datadir" --langs "${pending[*]}" --sources "$sources" --nj "$nj" \
        --allow_bad_test_audio "$allow_bad_test_audio" ${corpus_dir:+--corpus_dir "$corpus_dir"} \
        ${further_tests:+--further_tests "$further_tests"} \
        $local_data_opts
    for lang in "${pending[@]}"; do finish "$datadir/.done/stage1_$lang.json"; done
}

# sets_to_test: the test sets that --test_sets_by asks for.
sets_to_test() {
    local lang
    for lang in $langs; do
        if [ "$test_sets_by" = language ]; then
            echo "test_$lang"
        else
            splits_of "$lang" "" test | cut -c 2-
        fi
        further_of "$lang"
    done
}

audio_formatting() { # stage 2
    local from into lang
    for lang in $langs; do
        from=($(splits_of "$lang" "$datadir" train dev test)
            $(each "$datadir/%s " $(further_of "$lang")))
        into=("${from[@]/#"$datadir"/$raw}")
        to_do "$dumpdir/.done/stage2_$lang.json" --inputs "${from[@]}" \
            --listed "${from[@]/%//wav.scp}" --outputs "${into[@]/%//wav.scp}" --options \
            "$audio_format" "$min_wav_duration" "$max_wav_duration" "$allow_bad_test_audio" ||
            continue
        $train_cmd --num-threads "$nj" "$logs/format_$lang.log" \
            $python -m espnet_moe.bin.format_audio --in "${from[@]}" --out "$raw" --nj "$nj" \
            --audio_format "$audio_format" --min_wav_duration "$min_wav_duration" \
            --max_wav_duration "$max_wav_duration" --allow_bad_audio "$allow_bad_test_audio"
        finish "$dumpdir/.done/stage2_$lang.json"
    done
}

# shares_of LANGUAGE: what --mix says of its corpora; nothing where it has but one.
shares_of() {
    local corpora=($(corpora_of "$1")) corpus entry shares=()
    [ ${#corpora[@]} -gt 1 ] || return 0
    for corpus in "${corpora[@]}"; do
        for entry in $mix; do
            [ "${entry%%:*}" != "$corpus" ] || shares+=("${entry##*:}")
        done
    done
    echo "${shares[*]}"
}

sets_of_languages() { # stage 3
    local from lang shares
    for lang in $langs; do
        from=($(splits_of "$lang" "$raw" train dev test))
        to_do "$dumpdir/.done/stage3_$lang.json" --inputs "${from[@]}" \
            --options "hours=$max_train_hours" "mix=$mix $mix_by $mix_replacement" \
            --outputs "$raw"/{train,dev,test}"_$lang" || continue
        $train_cmd SPLIT=dev,test "$logs/combine_$lang.SPLIT.log" \
            $python -m espnet_moe.bin.combine_data --in $(splits_of "$lang" "$raw" SPLIT) \
            --out "$raw/SPLIT_$lang"
        shares=$(shares_of "$lang")
        [ -z "$shares" ] || shares="--shares $shares --mix_by $mix_by --replacement $mix_replacement"
        $train_cmd "$logs/combine_$lang.train.log" \
            $python -m espnet_moe.bin.combine_data --in $(splits_of "$lang" "$raw" train) \
            --out "$raw/train_$lang" ${max_train_hours:+--max_hours "$max_train_hours"} \
            $shares
        finish "$dumpdir/.done/stage3_$lang.json"
    done
    [ -n "$codeswitch_config" ] || return 0
    local tests=($(each "$raw/test_%s " $langs))
    to_do "$dumpdir/.done/stage3_codeswitch.json" --inputs "$codeswitch_config" "${tests[@]}" \
        --outputs $(each "$raw/%s/wav.scp " $codeswitch_sets) || return 0
    $train_cmd "$logs/codeswitch.log" $python -m espnet_moe.bin.make_codeswitch \
        --data "${tests[@]}" --config "$codeswitch_config" --out "$raw"
    finish "$dumpdir/.done/stage3_codeswitch.json"
}

shape_statistics() { # stage 4
    local lang
    for lang in $langs; do
        to_do "$expdir/.done/stage4_$lang.json" --inputs "$raw"/{train,dev}"_$lang" \
            --outputs "$expdir/stats"/{train,dev}"_$lang/speech_shape" || continue
        $train_cmd SPLIT=train,dev "$logs/shapes_$lang.SPLIT.log" \
            $python -m espnet_moe.bin.collect_shapes --data "$raw/SPLIT_$lang" \
            --out "$expdir/stats/SPLIT_$lang"
        finish "$expdir/.done/stage4_$lang.json"
    done
}
