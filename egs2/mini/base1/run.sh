#!/usr/bin/env bash
# Pre-train the tiny Whisper-shaped base that the mini recipes adapt, and write it to whisper_mini/.
# The base is committed: this recipe is for making it again, on a GPU in minutes or on two cores in
# about an hour. Interrupted, the next call goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

steps=4600        # optimiser steps
batch_size=32     # utterances a step
num_workers=1     # processes that make speech
eval_steps=500    # steps between validations, which write the checkpoint
expdir=exp        # checkpoints and log
export_dir=whisper_mini  # the finished base, a transformers folder in fp16

. ../../TEMPLATE/moe1/utils/parse_options.sh
. ./path.sh
OMP_NUM_THREADS=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS

python local/pretrain.py \
    --output_dir "${expdir}" --export_dir "${export_dir}" \
    --steps "${steps}" --batch_size "${batch_size}" --num_workers "${num_workers}" \
    --eval_steps "${eval_steps}"
cp "${expdir}/train.log" "${export_dir}/train.log"
