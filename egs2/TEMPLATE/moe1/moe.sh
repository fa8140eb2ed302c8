#!/usr/bin/env bash
# Mixtures of experts on a frozen speech foundation model, from corpora to scores, a report and a package.
#
# A recipe's run.sh calls this with its options. Stages:
#    1  corpora -> data dirs                   7  router training
#    2  audio formatting                       8  expert training, a job each
#    3  training, development and test sets    9  joint training of router and experts
#    4  shape statistics                      10  decoding, every system and test set
#    5  embeddings of the frozen encoder      11  scoring
#    6  expert assignment                     12  analysis of experts, routing and errors
#                                             13  report, one page of all of it
#                                             14  a package that others can use
#                                             15  upload of it to a hub
# A stage that is done and whose options and inputs have not changed is skipped; removing its stamp
# in .done/ beside its results makes it run again.
# shellcheck disable=SC2034,SC2046,SC2086,SC2207  # lists are words, as in every Kaldi recipe
set -euo pipefail

## Stages
stage=1                         # first stage to run
stop_stage=15                   # last stage to run
skip_stages=                    # stages to leave out, e.g. "2 3"
## Machine
cmd_backend=local               # where jobs run: local or slurm; see cmd.sh and conf/slurm.conf
submit=false                    # hand the stages to SLURM as a chain of jobs, as submit.sh does
max_jobs_run=                   # jobs of an array at a time; empty: as many as there is room for
ngpu=auto                       # GPUs for the training of an expert; auto: 1 where there is one
gpu_inference=true              # decode on a GPU where there is one
nj=$(env -u OMP_NUM_THREADS nproc) # processes of data preparation
inference_nj=2                  # parallel jobs of decoding, for each system
python=python3                  # which Python
## Folders
datadir=data                    # data dirs of the corpora
dumpdir=dump                    # formatted audio
expdir=                         # experts and results; empty: exp/<name of the backbone>
## Data
langs=                          # languages, e.g. "hi it"
sources=                        # the corpora of each language, e.g. "hi:commonvoice,kathbath it:mls"
corpus_dir=                     # where the corpus was unpacked, or corpora in folders of their names; empty: as db.sh says
test_sets=                      # folders of dump/raw; empty: as test_sets_by says
further_tests=                  # more test sets of a corpus, e.g. "kathbath:test_noisy kathbath:test_known"
test_sets_by=language           # test_<language> of all its corpora, or each corpus apart: language or corpus
mix=                            # shares of corpora in training sets, e.g. "kathbath:0.8 commonvoice:0.2"; empty: all of them
mix_by=hours                    # shares of the hours or of the utterances
mix_replacement=false           # repeat utterances of a corpus that has less than its share; else take less of the others
max_train_hours=                # of a language, drawn at random; empty: all
local_data_opts=                # further options of local/data.sh
audio_format=flac               # flac or wav
fs=16k                          # sampling rate
min_wav_duration=0.1            # seconds; shorter utterances are left out
max_wav_duration=30             # seconds; longer utterances are left out
allow_bad_test_audio=false      # leave bad audio out of test sets, instead of an error
codeswitch_config=              # makes code-switched test sets; empty: none, e.g. conf/codeswitch.yaml
## Backbone
backbone=                       # Whisper or OWSM: a folder, a .pt or .zip file, or a hub name
context=variable                # encoder input: variable (its own length) or padded (30 s)
embedding_layer=                # encoder layer of the embeddings that are clustered; empty: first_layer in train_config
embedding_pooling=mean          # mean or mean_std, over the frames of an utterance
## Experts and routers
experts_by=language             # language, or kmeans, gmm, agglomerative, spectral, hdbscan
assign_config=                  # expert assignment; empty: conf/assign_<experts_by>.yaml
train_config=conf/train_expert.yaml # configuration of the experts' training
experts_tag=expert              # an expert is in exp/<experts_tag>_<name>
routers=                        # NAME, trained by conf/train_NAME.yaml; the last one for the system frame
joint_config=                   # joint training; empty: none, e.g. conf/train_joint.yaml
joint_strategy=soft             # strategy of the system joint
experts_from=                   # experiment whose experts are used instead of training some (stage 8)
init_expert=                    # expert of another --expdir that each training starts from, e.g. exp/whisper_mini/expert_hi/expert with --expdir exp/from_hi
only_experts=                   # train these only, e.g. "hi te"; empty: all
use_wandb=false                 # log trainings and scores to wandb; offline, unless WANDB_MODE=online
finetune_config=                # training of a whole base or its decoder, for the systems finetune_*
train_args=                     # further options of every training, e.g. "--max_epoch 4"
## Decoding
systems="baseline oracle"       # and hard soft threshold topk hierarchical fixed joint finetune_full finetune_decoder
codeswitch_systems=             # systems for the code-switched sets; also frame, segment
inference_config=conf/decode_greedy.yaml # configuration of the decoding
inference_tag=                  # name of the results; empty: that of inference_config

## Analysis and report
skip_analysis=false             # leave out stages 12 and 13
analyses="similarity spectrum layers transfer probing errors significance routing" # of stage 12
analysis_utterances=            # of each language, where an analysis runs the base; empty: its default

## Package and upload
licence=                        # file with the terms of use of what is packed; empty: no package
packed_system=hard              # whose experts and router are packed
hf_repo=                        # OWNER/MODEL on the hub (stage 15); empty: none
upload=false                    # really upload; else tell what would be

. "$(dirname "$0")/utils/parse_options.sh"
. "$(dirname "$0")/utils/stages.sh"
. "$(dirname "$0")/utils/data_stages.sh"
. "$(dirname "$0")/utils/training_stages.sh"
. "$(dirname "$0")/utils/decoding_stages.sh"
. "$(dirname "$0")/utils/analysis_stages.sh"
. "$(dirname "$0")/utils/packing_stages.sh"
cd "$(dirname "$0")"

STAGES="1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"
SYSTEMS="baseline oracle hard soft threshold topk hierarchical fixed joint"
FINETUNED="finetune_full finetune_decoder"
ANALYSES="similarity spectrum layers transfer probing errors significance routing"
CLUSTERERS="kmeans gmm agglomerative spectral hdbscan"

check_options() {
    local problems=() number lang name
    for number in "$stage" "$stop_stage" $skip_stages; do
        [[ $number =~ ^[0-9]+$ ]] || problems+=("stage '$number' is not a number; there are $STAGES")
    done
    [[ $ngpu =~ ^([0-9]+|auto)$ ]] || problems+=("--ngpu is a number or auto, not '$ngpu'")
    [[ $fs =~ ^(16k|16000)$ ]] || problems+=("--fs is 16k for every backbone, not '$fs'")
    [ $submit = false ] || [ "$ngpu" != auto ] ||
        problems+=("submitted jobs need --ngpu, the GPUs that a training asks for (0: none)")
    [ -n "$langs" ] || problems+=("--langs names no language")
    for number in nj inference_nj ${max_jobs_run:+max_jobs_run}; do
        [[ ${!number} =~ ^[1-9][0-9]*$ ]] || problems+=("--$number is at least 1, not '${!number}'")
    done
    [[ $embedding_layer =~ ^[0-9]*$ ]] ||
        problems+=("--embedding_layer is 0 or more, not '$embedding_layer'")
    listed "$test_sets_by" language corpus ||
        problems+=("--test_sets_by is language or corpus, not '$test_sets_by'")
    [[ $mix_by =~ ^(hours|utterances)$ ]] || problems+=("--mix_by is hours or utterances, not '$mix_by'")
    for name in $mix; do
        [[ $name =~ ^[a-z0-9_]+:[0-9]*\.?[0-9]+$ ]] ||
            problems+=("--mix is of CORPUS:SHARE, such as kathbath:0.8, not '$name'")
        listed "${name%%:*}" $(each '%s ' $sources | sed 's/[a-z]*://g; s/,/ /g') ||
            problems+=("--mix: ${name%%:*} is no corpus of --sources $sources")
    done
    for name in $further_tests; do
        [[ $name =~ ^[a-z0-9_]+:test_[a-z0-9_]+$ ]] ||
            problems+=("--further_tests is of CORPUS:SET, such as kathbath:test_noisy, not '$name'")
        listed "${name%%:*}" $(each '%s ' $sources | sed 's/[a-z]*://g; s/,/ /g') ||
            problems+=("--further_tests: ${name%%:*} is no corpus of --sources $sources")
    done
    for name in $(each '%s\n' $mix | cut -d : -f 1 | sort | uniq -d); do
        problems+=("--mix: $name has two shares")
    done
    [ -n "$mix" ] || [ $mix_replacement = false ] ||
        problems+=("--mix_replacement repeats what --mix asks for: give it, too")
    for lang in $langs; do
        name=$(shares_of "$lang")
        [ -z "$name" ] || [ "$(wc -w <<<"$name")" = "$(wc -w <<<"$(corpora_of "$lang")")" ] ||
            problems+=("--mix tells some corpora of $lang, but not all: $(corpora_of "$lang" | tr '\n' ' ')")
    done
    [[ $max_train_hours =~ ^([0-9]+(\.[0-9]+)?)?$ ]] ||
        problems+=("--max_train_hours is a number, not '$max_train_hours'")
    listed "$experts_by" language $CLUSTERERS ||
        problems+=("--experts_by is language or one of $CLUSTERERS, not '$experts_by'")
    for name in $systems; do
        listed "$name" $SYSTEMS $FINETUNED ||
            problems+=("--systems: '$name' is none of $SYSTEMS $FINETUNED")
        [ -n "$finetune_config" ] || ! listed "$name" $FINETUNED ||
            problems+=("the system $name needs --finetune_config")
    done
    for name in $codeswitch_systems; do
        listed "$name" $SYSTEMS frame segment ||
            problems+=("--codeswitch_systems: '$name' is none of $SYSTEMS frame segment")
    done
    for name in $systems $codeswitch_systems; do
        if [ "$name" = joint ] && [ -z "$joint_config" ]; then
            problems+=("the system joint needs --joint_config")
        elif ! listed "$name" baseline oracle $FINETUNED && [ -z "$routers" ]; then
            problems+=("the system $name needs a router: --routers NAME, of conf/train_NAME.yaml")
        fi
    done
    if [ "$experts_by" != language ]; then
        [ -z "$further_tests" ] || ! listed oracle $systems ||
            problems+=("the oracle of clusters knows no --further_tests: leave it, or them, out")
        [ -z "$experts_from" ] ||
            problems+=("--experts_from is for experts by language: others' clusters are not one's own")
        [ -z "$licence" ] || [ "$packed_system" != oracle ] ||
            problems+=("the oracle of clusters cannot be packed: nobody else has its assignment")
    fi
    [ -z "$experts_from" ] || [ -d "$experts_from" ] ||
        problems+=("--experts_from $experts_from does not exist: train the experts there first")
    [ -z "$init_expert" ] || [ -f "$init_expert/expert.json" ] ||
        problems+=("--init_expert $init_expert holds no expert: train it first")
    # Stage 8 moves what was trained with other options away before it trains.
    [ -z "$init_expert" ] || [[ $(realpath -m "$init_expert")/ != "$(realpath -m "$expdir")"/* ]] ||
        problems+=("--init_expert $init_expert is in $expdir, whose experts are trained anew: give another --expdir")
    [ -z "$init_expert" ] || [ -z "$experts_from" ] ||
        problems+=("--init_expert starts trainings, --experts_from does without: give one of them")
    [ -z "$licence" ] || [ -f "$licence" ] || problems+=("--licence $licence does not exist")
    if [ -n "$licence" ]; then
        listed "$packed_system" oracle hard soft threshold topk hierarchical joint ||
            problems+=("--packed_system is one of oracle hard soft threshold topk hierarchical joint")
        [ -n "$routers" ] || [ "$packed_system" = oracle ] ||
            problems+=("--packed_system $packed_system needs a router; without one pack the oracle's experts")
    fi
    [ -z "$hf_repo" ] || [ -n "$licence" ] || problems+=("--hf_repo needs --licence")
    for name in $analyses; do
        listed "$name" $ANALYSES || problems+=("--analyses: '$name' is none of $ANALYSES")
    done
    [[ $analysis_utterances =~ ^[0-9]*$ ]] ||
        problems+=("--analysis_utterances is a number, not '$analysis_utterances'")
    [ -z "$codeswitch_systems" ] || [ -n "$codeswitch_config" ] ||
        problems+=("--codeswitch_systems needs sets to decode: --codeswitch_config")
    [ -z "$joint_config" ] || [ -n "$routers" ] ||
        problems+=("--joint_config starts from a router: --routers NAME")
    [[ $context =~ ^(variable|padded)$ ]] || problems+=("--context is variable or padded, not '$context'")
    for name in "$train_config" "$inference_config" "$assign_config" $joint_config $finetune_config \
        $codeswitch_config $(each 'conf/train_%s.yaml ' $routers); do
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
        if [ -z "$backbone" ] && { wanted 5 || wanted 7 || wanted 8 || wanted 9 || wanted 10; }; then
            problems+=("--backbone is needed: a folder, a .pt or .zip file, or a hub name")
        fi
    fi
    complain "${problems[@]}"
}

# leave_out_what_takes_two: one language has nothing to switch to, and its one expert needs no router.
leave_out_what_takes_two() {
    local name kept=()
    codeswitch_config='' codeswitch_systems=''
    [ "$experts_by" = language ] || return 0
    for name in $systems; do
        ! listed "$name" baseline oracle $FINETUNED || kept+=("$name")
    done
    [ ${#kept[@]} -gt 0 ] ||
        complain "--systems '$systems': $langs alone needs no router; there are baseline, oracle and finetune_*"
    [ -z "$routers$joint_config" ] ||
        log "$langs alone needs no router and no joint training; its systems are ${kept[*]}"
    systems=${kept[*]} routers='' joint_config='' packed_system=oracle
}

assign_config=${assign_config:-conf/assign_$experts_by.yaml}
# What routers read, too: the last layer that is the same with and without experts.
[ -n "$embedding_layer" ] || [ ! -f "$train_config" ] ||
    embedding_layer=$(sed -n 's/^ *first_layer: *\([0-9]*\).*/\1/p' "$train_config")
embedding_layer=${embedding_layer:-0}
# A backbone has its own experts and results: the same recipe with another leaves them alone.
backbone_name=$(basename "$backbone")
backbone_name=${backbone_name%.pt}
backbone_name=${backbone_name%.zip} # as espnet_moe.tracking.backbone_name
expdir=${expdir:-exp/$backbone_name}
check_options
log "$command_line"
if [ "$(wc -w <<<"$langs")" -lt 2 ]; then leave_out_what_takes_two; fi
. ./path.sh
[ $submit = false ] || cmd_backend=slurm
. ./cmd.sh
if [ $submit = true ]; then
    . utils/submit_stages.sh
    submit_stages
    exit 0
fi
# SLURM's warnings of the time limit and of a preemption are for what runs below, and reach it: a
# training writes its checkpoint, its launcher ends (with status 75 at the time limit), then this does.
trap : USR1
trap 'exit 143' TERM

throttle=${max_jobs_run:+--max-jobs-run $max_jobs_run}
raw=$dumpdir/raw
logs=$expdir/log
test_sets=${test_sets:-$(sets_to_test)}
codeswitch_sets=
[ -z "$codeswitch_config" ] ||
    codeswitch_sets=$($python -m espnet_moe.bin.make_codeswitch --names --config "$codeswitch_config")
inference_tag=${inference_tag:-$(basename "$inference_config" .yaml)}
# Experts by language are the usual ones; the names of others tell where they come from.
by=$([ "$experts_by" = language ] || echo "_$experts_by")
experts_dir=${experts_from:-$expdir}
assigned=$expdir/assign_$experts_by
joint=$(name_of joint) # of its model and of its results
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
several_gpus=$([ "$ngpu" -le 1 ] || echo "--multiprocessing_distributed true")
inference_gpus=$([ $has_gpu = true ] && [ "$gpu_inference" = true ] && echo 1 || echo 0)

mkdir -p "$expdir/log"
if wanted 1 || wanted 2 || wanted 3; then alone_with "$datadir"; fi
run_stage 1 "corpora to data dirs in $datadir" corpora_to_data_dirs
run_stage 2 "audio of $datadir to $raw" audio_formatting
run_stage 3 "sets of each language in $raw" sets_of_languages
together_again
run_stage 4 "statistics in $expdir/stats" shape_statistics
run_stage 5 "embeddings of layer $embedding_layer in $expdir/embeddings" embeddings
run_stage 6 "experts by $experts_by in $assigned" expert_assignment
run_stage 7 "routers: ${routers:-none}" router_training
[ -n "$experts_from" ] ||
    run_stage 8 "experts, logs: $expdir/$experts_tag${by}_*/train.log" expert_training
[ -z "$(finetuned_systems)" ] ||
    run_stage 8 "bases, logs: $expdir/finetune_*/train.log" base_training
run_stage 9 "joint training: ${joint_config:-none}" joint_training
run_stage 10 "decoding of $(each '%s ' $test_sets $codeswitch_sets)" decoding
run_stage 11 "scores in $expdir/results.json and $expdir/RESULTS.md" scoring
incomplete=false
if [ "$skip_analysis" = false ]; then
    run_stage 12 "analyses in $expdir/analysis" analysis
    run_stage 13 "report in $expdir/report/index.html" report
fi
run_stage 14 "package: $([ -n "$licence" ] && echo "in $expdir/packed" || echo none)" packing
run_stage 15 "upload: ${hf_repo:-none}" uploading

log "done in $SECONDS seconds"
[ $incomplete = false ] || complain "the report is not complete: $expdir/report/index.html tells what is missing"
