#!/usr/bin/env bash
# Experts for Hindi, Italian, Punjabi and Telugu on a tiny Whisper, routed and mixed, with the mini
# corpus, which is spoken on this machine. `run.sh --help` lists the options;
# `run.sh --backbone owsm_mini` adapts a tiny OWSM, and `run.sh --experts_by kmeans` (or hdbscan)
# gives every cluster of speech an expert instead.
set -euo pipefail
cd "$(dirname "$0")"

of_base=() # what a base wants besides, wherever its folder is
[[ ! " $* " =~ " --backbone "([^ ]*/)?"owsm_mini " ]] || of_base=(--config conf/owsm_mini.conf)

exec ./moe.sh "${of_base[@]}" \
    --langs "hi it pa te" \
    --sources "hi:commonvoice,kathbath it:commonvoice,mls pa:commonvoice,kathbath te:commonvoice,kathbath" \
    --backbone whisper_mini \
    --train_config conf/train_expert.yaml \
    --finetune_config conf/train_finetune.yaml \
    --inference_config conf/decode_greedy.yaml \
    --embedding_layer 4 \
    --embedding_pooling mean_std \
    --routers "router frame_router" \
    --joint_config conf/train_joint.yaml \
    --codeswitch_config conf/codeswitch.yaml \
    --systems "baseline oracle hard soft threshold topk hierarchical joint" \
    --codeswitch_systems "oracle hard frame segment" \
    --inference_nj 1 \
    --licence ../../../LICENSE \
    "$@"
