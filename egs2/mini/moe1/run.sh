#!/usr/bin/env bash
# Experts for Hindi, Italian, Punjabi and Telugu on a tiny Whisper, with the mini corpus, which is
# spoken on this machine. `run.sh --help` lists the options.
set -euo pipefail
cd "$(dirname "$0")"

./moe.sh \
    --langs "hi it pa te" \
    --sources "hi:commonvoice,kathbath it:commonvoice,mls pa:commonvoice,kathbath te:commonvoice,kathbath" \
    --backbone ../base1/whisper_mini \
    --train_config conf/train_expert.yaml \
    --inference_config conf/decode_greedy.yaml \
    --systems "baseline oracle" \
    "$@"
