#!/usr/bin/env bash
# Pre-train a tiny base that the mini recipes adapt, shaped like Whisper (whisper_mini/) or OWSM
# (owsm_mini/), both of which are committed: on a GPU in minutes, on two cores in an hour or more.
# Interrupted, the next call goes on from the last checkpoint.
set -euo pipefail

shape=whisper     # or owsm
init_dir=         # a finished Whisper to go on from; default: from nothing
mix=              # share of the utterances a language, "it=0.4 hi=0.3 en=0.27 pa=0.015 te=0.015"
language_weight=0.5  # of the loss that asks which language is spoken
language_first=300   # steps of that loss alone; with init_dir of what is thrown away alone
steps=4600        # optimiser steps
lr=1.2e-3         # peak learning rate; less when going on from a finished base
batch_size=32     # utterances a step
num_workers=1     # processes that make speech
eval_steps=500    # steps between validations, which write the checkpoint
expdir=           # checkpoints and log; default: exp/<shape>
export_dir=       # the finished base in fp16; default: <shape>_mini

. "$(dirname "${BASH_SOURCE[0]}")/../../TEMPLATE/moe1/utils/parse_options.sh"
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./path.sh
expdir=${expdir:-exp/${shape}}
export_dir=${export_dir:-${shape}_mini}
OMP_NUM_THREADS=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS

python local/pretrain.py --shape "${shape}" ${init_dir:+--init_dir "${init_dir}"} \
    ${mix:+--mix "${mix}"} --language_weight "${language_weight}" \
    --language_first "${language_first}" \
    --output_dir "${expdir}" --export_dir "${export_dir}" \
    --steps "${steps}" --lr "${lr}" --batch_size "${batch_size}" --num_workers "${num_workers}" \
    --eval_steps "${eval_steps}"
cp "${expdir}/train.log" "${export_dir}/train.log"
