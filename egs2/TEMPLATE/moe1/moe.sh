#!/usr/bin/env bash
# Language experts on a frozen speech foundation model, from corpora to a scored table.
#
# A recipe's run.sh calls this with its options. Stages:
#    1  corpora -> data dirs                   8  expert training, a job each
#    2  audio formatting                      10  decoding, every system and test set
#    3  training, development and test sets   11  scoring
#    4  shape statistics
# A stage that is done and whose options and inputs have not changed is skipped; removing its stamp
# in .done/ beside its results makes it run again.
# shellcheck disable=SC2046,SC2086,SC2207  # lists are words, as in every Kaldi recipe
set -euo pipefail

## Stages
stage=1                         # first stage to run
stop_stage=15                   # last stage to run
skip_stages=                    # stages to leave out, e.g. "2 3"
## Machine
ngpu=auto                       # GPUs for the training of an expert; auto: 1 where there is one
gpu_inference=true              # decode on a GPU where there is one
nj=$(env -u OMP_NUM_THREADS nproc) # processes of data preparation
inference_nj=2                  # parallel jobs of decoding, for each system
python=python3                  # which Python
## Folders
datadir=data                    # data dirs of the corpora
dumpdir=dump                    # formatted audio
expdir=exp                      # experts and results
## Data
langs=                          # languages, e.g. "hi it"
sources=                        # the corpora of each language, e.g. "hi:commonvoice,kathbath it:mls"
test_sets=                      # folders of dump/raw; empty: test_<language> for each language
local_data_opts=                # options of local/data.sh
audio_format=flac               # flac or wav
fs=16k                          # sampling rate
min_wav_duration=0.1            # seconds; shorter utterances are left out
max_wav_duration=30             # seconds; longer utterances are left out
allow_bad_test_audio=false      # leave bad audio out of test sets, instead of an error
## Experts
backbone=                       # folder, .pt file or hub name of a Whisper model
context=variable                # encoder input: variable (its own length) or padded (30 s)
train_config=conf/train_expert.yaml # configuration of the training
train_args=                     # further options of the training, e.g. "--max_epoch 4"
experts_tag=expert              # an expert is in exp/<experts_tag>_<language>
## Decoding
systems="baseline oracle"       # baseline: no expert; oracle: the expert of the true language
inference_config=conf/decode_greedy.yaml # configuration of the decoding
inference_tag=                  # name of the results; empty: that of inference_config

. "$(dirname "$0")/utils/parse_options.sh"
. "$(dirname "$0")/utils/stages.sh"
cd "$(dirname "$0")"

STAGES="1 2 3 4 8 10 11"

check_options() {
    local problems=() number lang name
    for number in "$stage" "$stop_stage" $skip_stages; do
        [[ $number =~ ^[0-9]+$ ]] || problems+=("stage '$number' is not a number; there are $STAGES")
    done
    [[ $ngpu =~ ^([0-9]+|auto)$ ]] || problems+=("--ngpu is a number or auto, not '$ngpu'")
    [[ $fs =~ ^(16k|16000)$ ]] || problems+=("--fs is 16k for every backbone, not '$fs'")
    [ -n "$langs" ] || problems+=("--langs names no language")
    for number in nj inference_nj; do
        [[ ${!number} =~ ^[1-9][0-9]*$ ]] || problems+=("--$number is at least 1, not '${!number}'")
    done
    for name in $systems; do
        [[ $name =~ ^(baseline|oracle)$ ]] || problems+=("--systems: '$name' is neither baseline nor oracle")
    done
    [[ $context =~ ^(variable|padded)$ ]] || problems+=("--context is variable or padded, not '$context'")
    for name in "$train_config" "$inference_config"; do
        [ -f "$name" ] || problems+=("the configuration $name does not exist")
    done
    for lang in $langs; do
        [ -n "$(corpora_of "$lang")" ] || problems+=("--sources names no corpus for $lang")
    done
    if [ ${#problems[@]} = 0 ]; then
        for number in $STAGES none; do
            if [ "$number" = none ]; then
                problems+=("there is no stage to run; this version has the stages $STAGES")
            elif wanted "$number"; then
                break
            fi
        done
        if [ -z "$backbone" ] && { wanted 8 || wanted 10; }; then
            problems+=("--backbone is needed: a folder, a .pt file or a hub name")
        fi
    fi
    complain "${problems[@]}"
}

# name_of SYSTEM: the folder of its results; other experts than the usual ones have their own.
name_of() {
    if [ "$1" = baseline ] || [ "$experts_tag" = expert ]; then
        echo "$1"
    else
        echo "$1_$experts_tag"
    fi
}

check_options
log "$command_line"
. ./path.sh
. ./cmd.sh

raw=$dumpdir/raw
logs=$expdir/log
test_sets=${test_sets:-$(printf 'test_%s ' $langs)}
inference_tag=${inference_tag:-$(basename "$inference_config" .yaml)}
# A hub name is no file whose change could be seen.
backbone_files=()
[ ! -e "$backbone" ] || backbone_files=("$backbone")
has_gpu=false
# A GPU counts where torch sees it; without a driver there is no need to ask.
if [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && nvidia-smi -L 2>/dev/null | grep -q ^GPU &&
    [ "$($python -c 'import torch; print(torch.cuda.device_count())')" -gt 0 ]; then
    has_gpu=true
fi
[ "$ngpu" != auto ] || ngpu=$([ $has_gpu = true ] && echo 1 || echo 0)

if wanted 1; then
    log "Stage 1: corpora to data dirs in $datadir"
    made=()
    for lang in $langs; do made+=($(splits_of "$lang" "$datadir" train dev test)); done
    if to_do "$datadir/.done/stage1.json" --inputs local/data.sh --outputs "${made[@]/%//wav.scp}" \
        --options "sources=$sources" "opts=$local_data_opts" "bad=$allow_bad_test_audio"; then
        local/data.sh --datadir "$datadir" --sources "$sources" --nj "$nj" \
            --allow_bad_test_audio "$allow_bad_test_audio" $local_data_opts
        finish "$datadir/.done/stage1.json"
    fi
fi

if wanted 2; then
    log "Stage 2: audio of $datadir to $raw"
    for lang in $langs; do
        from=($(splits_of "$lang" "$datadir" train dev test))
        into=($(splits_of "$lang" "$raw" train dev test))
        if to_do "$dumpdir/.done/stage2_$lang.json" --inputs "${from[@]}" \
            --listed "${from[@]/%//wav.scp}" --outputs "${into[@]/%//wav.scp}" --options \
            "$audio_format" "$min_wav_duration" "$max_wav_duration" "$allow_bad_test_audio"; then
            $train_cmd --num-threads "$nj" "$logs/format_$lang.log" \
                $python -m espnet_moe.bin.format_audio --in "${from[@]}" --out "$raw" --nj "$nj" \
                --audio_format "$audio_format" --min_wav_duration "$min_wav_duration" \
                --max_wav_duration "$max_wav_duration" --allow_bad_audio "$allow_bad_test_audio"
            finish "$dumpdir/.done/stage2_$lang.json"
        fi
    done
fi

if wanted 3; then
    log "Stage 3: sets of each language in $raw"
    for lang in $langs; do
        from=($(splits_of "$lang" "$raw" train dev test))
        if to_do "$dumpdir/.done/stage3_$lang.json" --inputs "${from[@]}" \
            --outputs "$raw"/{train,dev,test}"_$lang"; then
            $train_cmd SPLIT=train,dev,test "$logs/combine_$lang.SPLIT.log" \
                $python -m espnet_moe.bin.combine_data --in $(splits_of "$lang" "$raw" SPLIT) \
                --out "$raw/SPLIT_$lang"
            finish "$dumpdir/.done/stage3_$lang.json"
        fi
    done
fi

if wanted 4; then
    log "Stage 4: statistics in $expdir/stats"
    for lang in $langs; do
        if to_do "$expdir/.done/stage4_$lang.json" --inputs "$raw"/{train,dev}"_$lang" \
            --outputs "$expdir/stats"/{train,dev}"_$lang/speech_shape"; then
            $train_cmd SPLIT=train,dev "$logs/shapes_$lang.SPLIT.log" \
                $python -m espnet_moe.bin.collect_shapes --data "$raw/SPLIT_$lang" \
                --out "$expdir/stats/SPLIT_$lang"
            finish "$expdir/.done/stage4_$lang.json"
        fi
    done
fi

if wanted 8; then
    log "Stage 8: experts in $expdir, logs: $expdir/${experts_tag}_*/train.log"
    pending=()
    for lang in $langs; do
        folder=$expdir/${experts_tag}_$lang
        if to_do "$expdir/.done/stage8_${experts_tag}_$lang.json" --inputs "$train_config" \
            "${backbone_files[@]}" "$raw"/{train,dev}"_$lang" "$expdir/stats"/{train,dev}"_$lang" \
            --options "$backbone" "context=$context" "args=$train_args" --outputs "$folder/expert/expert.json"; then
            pending+=("$lang")
            # An interrupted training goes on; one with other options or data starts anew.
            # What was finished is kept aside, what never was is not worth it.
            if [ "$begun" = false ] && [ -e "$folder/expert/expert.json" ]; then
                rm -rf "$folder.old"
                mv "$folder" "$folder.old"
            elif [ "$begun" = false ]; then
                rm -rf "$folder"
            fi
        fi
    done
    several_gpus=$([ "$ngpu" -le 1 ] || echo "--multiprocessing_distributed true")
    if [ ${#pending[@]} -gt 0 ]; then
        $cuda_cmd --gpu "$ngpu" EXPERT="$(IFS=, && echo "${pending[*]}")" \
            "$expdir/${experts_tag}_EXPERT/train.log" \
            $python -m espnet_moe.bin.train --config "$train_config" --phase expert \
            --experts EXPERT --backbone whisper --backbone_conf "path=$backbone" \
            --backbone_conf "context=$context" $several_gpus --train_dir "$raw/train_EXPERT" --train_stats "$expdir/stats/train_EXPERT" \
            --valid_dir "$raw/dev_EXPERT" --valid_stats "$expdir/stats/dev_EXPERT" \
            --ngpu "$ngpu" --output_dir "$expdir/${experts_tag}_EXPERT" $train_args \&\& \
            $python -m espnet_moe.bin.stage commit \
            --stamp "$expdir/.done/stage8_${experts_tag}_EXPERT.json"
    fi
fi

if wanted 10; then
    log "Stage 10: decoding of $test_sets"
    gpus=$([ $has_gpu = true ] && [ "$gpu_inference" = true ] && echo 1 || echo 0)
    sets=($(printf "$raw/%s " $test_sets))
    for system in $systems; do
        out=$expdir/$(name_of "$system")/$inference_tag
        stamp=$expdir/.done/stage10_$(name_of "$system")_${inference_tag}_$(tr ' ' + <<<"${test_sets% }").json
        texts=($(printf "$out/%s/text " $test_sets))
        experts=()
        if [ "$system" != baseline ]; then
            experts+=(--experts)
            for lang in $langs; do experts+=("$lang=$expdir/${experts_tag}_$lang/expert"); done
        fi
        if to_do "$stamp" --inputs "$inference_config" "${backbone_files[@]}" "${sets[@]}" \
            $(printf '%s\n' "${experts[@]:1}" | cut -d = -f 2) --options "$backbone" \
            "context=$context" --outputs "${texts[@]}"; then
            # No share of an earlier run with more jobs may stay; other sets' results do.
            rm -rf "$out/logdir" $(printf "$out/%s " $test_sets)
            $decode_cmd --gpu "$gpus" JOB=1:"$inference_nj" "$out/logdir/decode.JOB.log" \
                $python -m espnet_moe.bin.decode --backbone "$backbone" --context "$context" --system "$system" \
                "${experts[@]}" --data "${sets[@]}" --config "$inference_config" \
                --out "$out" --job JOB --num_jobs "$inference_nj"
            for set in $test_sets; do
                cat "$out/$set"/logdir/output.*/text | sort >"$out/$set/text"
                if [ "$(wc -l <"$out/$set/text")" != "$(wc -l <"$raw/$set/text")" ]; then
                    log "error: $out/$set/text and $raw/$set/text differ in length" >&2
                    exit 1
                fi
            done
            finish "$stamp"
        fi
    done
fi

if wanted 11; then
    log "Stage 11: scores in $expdir/results.json and $expdir/RESULTS.md"
    sets=($(printf "$raw/%s " $test_sets))
    texts=()
    names=()
    for system in $systems; do
        name=$(name_of "$system")
        names+=("$name")
        texts+=("$expdir/$name/$inference_tag/logdir")
        texts+=($(printf "$expdir/$name/$inference_tag/%s/text " $test_sets))
    done
    if to_do "$expdir/.done/stage11.json" --inputs "${texts[@]}" "${sets[@]}" \
        --outputs "$expdir"/{results.json,RESULTS.md,summary.txt}; then
        $train_cmd "$logs/score.log" $python -m espnet_moe.bin.score --exp "$expdir" \
            --data "$raw" --test_sets $test_sets --systems "${names[@]}" \
            --inference_tag "$inference_tag" \> "$expdir/summary.txt"
        finish "$expdir/.done/stage11.json"
    fi
    cat "$expdir/summary.txt"
fi

log "done in $SECONDS seconds"
