#!/usr/bin/env bash
# Experts for Hindi, Italian, Punjabi and Telugu on Common Voice. `run.sh --help` lists the options.
#   ./run.sh --corpus_dir /corpora/cv-corpus-26.0-2026-06-12  # Whisper small
#   ./run.sh --backbone openai/whisper-medium --ngpu 1 --cmd_backend slurm
set -euo pipefail
cd "$(dirname "$0")"
size=$(utils/backbone_size.sh "$@")
# Whisper and OWSM have learned with 30 s of context; without it their baseline would be none.
context=$([ "$size" = mini ] && echo variable || echo padded)

exec ./moe.sh \
    --langs "hi it pa te" \
    --sources "hi:commonvoice it:commonvoice pa:commonvoice te:commonvoice" \
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
