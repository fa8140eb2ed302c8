# shellcheck shell=bash disable=SC2154,SC2046,SC2086,SC2207  # options and lists of moe.sh
# Sourced by moe.sh: what others can use.

# packed_parts: the words of bin.pack for the system that is packed; sets `options`, `folders` too.
packed_parts() {
    parts_of "$packed_system"
    printf '%s\n' --backbone "$backbone" --context "$context" "${options[@]:2}" \
        --config "$inference_config" --licence "$licence" --results "$expdir/RESULTS.md"
    [ "${options[1]}" = oracle ] || printf '%s\n' --strategy "${options[1]}"
}

packing() { # stage 14
    local options folders package
    [ -n "$licence" ] || return 0
    package=$expdir/packed/$(name_of "$packed_system").zip
    packed_parts >"$logs/pack.args"
    to_do "$expdir/.done/stage14_$(name_of "$packed_system").json" --inputs "${backbone_files[@]}" "${folders[@]}" \
        "$licence" "$inference_config" "$expdir/RESULTS.md" "$logs/pack.args" \
        --outputs "$package" || return 0
    rm -f "$package"
    mkdir -p "$expdir/packed"
    $decode_cmd --gpu "$inference_gpus" "$logs/pack.log" $python -m espnet_moe.bin.pack model \
        "@$logs/pack.args" --out "$package"
    finish "$expdir/.done/stage14_$(name_of "$packed_system").json"
    log "packed: $package"
}

uploading() { # stage 15
    local options folders
    [ -n "$hf_repo" ] || return 0
    packed_parts >"$logs/pack.args"
    if to_do "$expdir/.done/stage15.json" --inputs "${backbone_files[@]}" "${folders[@]}" \
        "$licence" "$inference_config" "$expdir/RESULTS.md" "$logs/pack.args" --options "$hf_repo" \
        --outputs "$expdir/packed/hub/README.md"; then
        rm -rf "$expdir/packed/hub"
        mkdir -p "$expdir/packed"
        $decode_cmd --gpu "$inference_gpus" "$logs/pack_hub.log" $python -m espnet_moe.bin.pack hub \
            "@$logs/pack.args" --name "$hf_repo" --out "$expdir/packed/hub"
        finish "$expdir/.done/stage15.json"
    fi
    $python -m espnet_moe.bin.upload "$expdir/packed/hub" --name "$hf_repo" \
        --upload "$upload"
}
