# shellcheck shell=bash disable=SC2154,SC2046,SC2086,SC2206,SC2207  # options and lists of moe.sh
# Sourced by moe.sh: from embeddings to trained experts and routers.

# embedded_as NAME: the sets whose embeddings one job makes.
embedded_as() {
    if [ "$1" = codeswitch ]; then
        echo $codeswitch_sets
    else
        echo {train,dev,test}"_$1"
    fi
}

# to_embed: names for embedded_as. Code-switched sets are among them where experts are clusters: what
# expert they belong to (the oracle) cannot be told from their languages.
to_embed() {
    echo $langs
    [ "$experts_by" = language ] || [ -z "$codeswitch_sets" ] || echo codeswitch
}

embeddings() { # stage 5
    local pending=() name sets
    for name in $(to_embed); do
        sets=($(embedded_as "$name"))
        to_do "$expdir/.done/stage5_$name.json" --inputs "${backbone_files[@]}" \
            "${sets[@]/#/$raw/}" --options "$backbone" "context=$context" \
            "layer=$embedding_layer" "pooling=$embedding_pooling" \
            --outputs $(each "$expdir/embeddings/%s/embeddings.json " "${sets[@]}") || continue
        printf '%s\n' --data "${sets[@]/#/$raw/}" >"$logs/embed_$name.args"
        pending+=("$name")
    done
    [ ${#pending[@]} -gt 0 ] || return 0
    # Every job alone calls its work done: what one loses, the others keep.
    $decode_cmd --gpu "$inference_gpus" $throttle NAME="$(join , "${pending[@]}")" \
        "$logs/embed_NAME.log" $python -m espnet_moe.bin.embed "@$logs/embed_NAME.args" \
        --backbone "$backbone" --context "$context" --layer "$embedding_layer" \
        --pooling "$embedding_pooling" --out "$expdir/embeddings" \&\& \
        $python -m espnet_moe.bin.stage commit --stamp "$expdir/.done/stage5_NAME.json"
}

expert_assignment() { # stage 6
    local names=($(for name in $(to_embed); do embedded_as "$name"; done)) from=()
    if [ "$experts_by" != language ]; then
        from=(--embeddings "$expdir/embeddings" --layer "$embedding_layer")
    fi
    to_do "$expdir/.done/stage6_$experts_by.json" --inputs "$assign_config" "${names[@]/#/$raw/}" \
        $([ ${#from[@]} = 0 ] || each "$expdir/embeddings/%s " "${names[@]}") \
        --options "$experts_by" --outputs "$assigned/experts.json" || return 0
    $train_cmd "$logs/assign_$experts_by.log" $python -m espnet_moe.bin.assign_experts \
        --experts_by "$experts_by" --config "$assign_config" "${from[@]}" \
        --train $(each "$raw/train_%s " $langs) --dev $(each "$raw/dev_%s " $langs) \
        --test $(each "$raw/%s " $(printf '%s\n' "${names[@]}" | grep ^test_)) --out "$assigned"
    finish "$expdir/.done/stage6_$experts_by.json"
}

# What all trainings have in common.
common() {
    echo "--backbone_conf path=$backbone --backbone_conf context=$context" \
        "$several_gpus --ngpu $ngpu --use_wandb $use_wandb"
}

# read_experts: sets `experts` to their names, which the assignment has told.
read_experts() {
    [ -f "$assigned/experts.json" ] ||
        complain "$assigned/experts.json is missing; run the stages before (6)"
    experts=($($python -c 'import json, sys; print(*json.load(open(sys.argv[1]))["experts"])' \
        "$assigned/experts.json"))
}

# sets_for TRAIN DEV: the options that name a training's sets.
sets_for() {
    echo "--train_dir $assigned/data/$1 --train_stats $assigned/stats/$1" \
        "--valid_dir $assigned/data/$2 --valid_stats $assigned/stats/$2"
}

# to_train STAMP FOLDER OUTPUT INPUT ...: to_do for a training. An interrupted one goes on; one with
# other options or data starts anew: what was finished is kept aside, what never was is not worth it.
to_train() {
    local stamp=$1 folder=$2 output=$3
    to_do "$stamp" --inputs "${backbone_files[@]}" "${@:4}" --outputs "$output" \
        --options "$backbone" "context=$context" "args=$train_args" || return 1
    if [ "$begun" = false ] && [ -e "$output" ]; then
        rm -rf "$folder.old"
        mv "$folder" "$folder.old"
    elif [ "$begun" = false ]; then
        rm -rf "$folder"
    fi
}

router_training() { # stage 7
    local pending=() experts name
    [ -n "$routers" ] || return 0
    read_experts
    for name in $routers; do
        if to_train "$expdir/.done/stage7_$name$by.json" "$expdir/$name$by" \
            "$expdir/$name$by/router/router.json" "conf/train_$name.yaml" \
            "$assigned"/{data,stats}/{train,dev}_router; then
            pending+=("$name")
        fi
    done
    [ ${#pending[@]} -gt 0 ] || return 0
    $cuda_cmd --gpu "$ngpu" $throttle ROUTER="$(join , "${pending[@]}")" "$expdir/ROUTER$by/train.log" \
        $python -m espnet_moe.bin.train --config conf/train_ROUTER.yaml --phase router \
        --experts "${experts[@]}" --languages $langs $(common) \
        $(sets_for train_router dev_router) --output_dir "$expdir/ROUTER$by" $train_args \&\& \
        $python -m espnet_moe.bin.stage commit --stamp "$expdir/.done/stage7_ROUTER$by.json"
}

expert_training() { # stage 8
    local pending=() experts name
    read_experts
    for name in "${experts[@]}"; do
        [ -z "$only_experts" ] || listed "$name" $only_experts || continue
        if to_train "$expdir/.done/stage8_$experts_tag${by}_$name.json" \
            "$expdir/$experts_tag${by}_$name" "$expdir/$experts_tag${by}_$name/expert/expert.json" \
            "$train_config" "$assigned"/{data,stats}/{train,dev}"_$name" $init_expert; then
            pending+=("$name")
        fi
    done
    [ ${#pending[@]} -gt 0 ] || return 0
    $cuda_cmd --gpu "$ngpu" $throttle EXPERT="$(join , "${pending[@]}")" \
        "$expdir/$experts_tag${by}_EXPERT/train.log" \
        $python -m espnet_moe.bin.train --config "$train_config" --phase expert \
        --experts EXPERT ${init_expert:+--init_experts EXPERT="$init_expert"} $(common) \
        $(sets_for train_EXPERT dev_EXPERT) --output_dir "$expdir/$experts_tag${by}_EXPERT" \
        $train_args \&\& \
        $python -m espnet_moe.bin.stage commit \
        --stamp "$expdir/.done/stage8_$experts_tag${by}_EXPERT.json"
}

# finetuned_systems: those of --systems.
finetuned_systems() {
    local system
    for system in $systems; do ! listed "$system" $FINETUNED || echo "$system"; done
}

base_training() { # stage 8, to compare experts with: a base a language
    local pending lang system
    for system in $(finetuned_systems); do
        pending=()
        for lang in $langs; do
            [ -z "$only_experts" ] || listed "$lang" $only_experts || continue
            if to_train "$expdir/.done/stage8_${system}_$lang.json" "$expdir/${system}_$lang" \
                "$expdir/${system}_$lang/backbone/finetuned.json" "$finetune_config" \
                "$raw"/{train,dev}"_$lang" "$expdir/stats"/{train,dev}"_$lang"; then
                pending+=("$lang")
            fi
        done
        [ ${#pending[@]} -gt 0 ] || continue
        $cuda_cmd --gpu "$ngpu" $throttle LANGUAGE="$(join , "${pending[@]}")" \
            "$expdir/${system}_LANGUAGE/train.log" \
            $python -m espnet_moe.bin.train --config "$finetune_config" --phase finetune \
            --finetune_conf "part=${system#finetune_}" $(common) \
            --train_dir "$raw/train_LANGUAGE" --train_stats "$expdir/stats/train_LANGUAGE" \
            --valid_dir "$raw/dev_LANGUAGE" --valid_stats "$expdir/stats/dev_LANGUAGE" \
            --output_dir "$expdir/${system}_LANGUAGE" $train_args \&\& \
            $python -m espnet_moe.bin.stage commit \
            --stamp "$expdir/.done/stage8_${system}_LANGUAGE.json"
    done
}

joint_training() { # stage 9
    local experts folders init
    [ -n "$joint_config" ] || return 0
    read_experts
    folders=($(each "$experts_dir/$experts_tag${by}_%s/expert " "${experts[@]}"))
    init=($(paste -d = <(printf '%s\n' "${experts[@]}") <(printf '%s\n' "${folders[@]}")))
    to_train "$expdir/.done/stage9_$joint.json" "$expdir/$joint" \
        "$expdir/$joint/router/router.json" "$joint_config" "${folders[@]}" \
        "$expdir/${routers%% *}$by/router" "$assigned"/{data,stats}/{train,dev}_joint || return 0
    # One training, so it has all the cores.
    $cuda_cmd --gpu "$ngpu" --num-threads "$nj" "$expdir/$joint/train.log" \
        env OMP_NUM_THREADS="$nj" $python -m espnet_moe.bin.train --config "$joint_config" \
        --phase joint --experts "${experts[@]}" --languages $langs $(common) \
        --init_router "$expdir/${routers%% *}$by/router" \
        --init_experts "${init[@]}" $(sets_for train_joint dev_joint) \
        --output_dir "$expdir/$joint" $train_args
    finish "$expdir/.done/stage9_$joint.json"
}
