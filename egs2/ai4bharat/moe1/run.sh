#!/usr/bin/env bash
# Experts for Hindi, Punjabi and Telugu on AI4Bharat's Kathbath. `run.sh --help` lists the options.
#   ./run.sh --corpus_dir /corpora/kathbath                       # Whisper small
#   ./run.sh --backbone openai/whisper-medium --ngpu 1 --cmd_backend slurm
set -euo pipefail
cd "$(dirname "$0")"
size=$(utils/backbone_size.sh "$@")
# Whisper and OWSM have learned with 30 s of context; without it their baseline would be none.
context=$([ "$size" = mini ] && echo variable || echo padded)

exec ./moe.sh \
    --langs "hi pa te" \
    --sources "hi:kathbath pa:kathbath te:kathbath" \
    --backbone openai/whisper-small \
    --context "$context" \
    --train_config "conf/train_expert_$size.yaml" \
    --finetune_config "conf/train_finetune_$size.yaml" \
    --routers "router_$size" \
    --joint_config "conf/train_joint_$size.yaml" \
    --codeswitch_config conf/codeswitch.yaml \
    --systems "baseline oracle hard soft threshold topk hierarchical joint" \
    --codeswitch_systems "oracle hard segment" \
    --inference_config conf/decode_beam5.yaml \
    "$@"
