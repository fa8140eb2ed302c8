#!/usr/bin/env bash
# Experts for Hindi, Punjabi and Telugu on Kathbath and Common Voice, and for Italian on Multilingual
# LibriSpeech and Common Voice; each corpus has its own test sets. `run.sh --help` lists the options.
#   ./run.sh                                     # folders of the corpora: db.sh
#   ./run.sh --corpus_dir /corpora               # with kathbath/, commonvoice/ and mls/ in it
set -euo pipefail
cd "$(dirname "$0")"
size=$(utils/backbone_size.sh "$@")
# Whisper and OWSM have learned with 30 s of context; without it their baseline would be none.
context=$([ "$size" = mini ] && echo variable || echo padded)

exec ./moe.sh \
    --langs "hi it pa te" \
    --sources "hi:kathbath,commonvoice it:mls,commonvoice pa:kathbath,commonvoice te:kathbath,commonvoice" \
    --test_sets_by corpus \
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
