#!/usr/bin/env bash
# An expert for Italian on Multilingual LibriSpeech. `run.sh --help` lists the options.
#   ./run.sh --corpus_dir /corpora/mls_italian                    # Whisper small, all of it
#   ./run.sh --local_data_opts "--handles 9hr"                    # limited supervision: 9 hours
set -euo pipefail
cd "$(dirname "$0")"
size=$(utils/backbone_size.sh "$@")
# Whisper and OWSM have learned with 30 s of context; without it their baseline would be none.
context=$([ "$size" = mini ] && echo variable || echo padded)

exec ./moe.sh \
    --langs "it" \
    --sources "it:mls" \
    --backbone openai/whisper-small \
    --context "$context" \
    --train_config "conf/train_expert_$size.yaml" \
    --finetune_config "conf/train_finetune_$size.yaml" \
    --systems "baseline oracle" \
    --inference_config conf/decode_beam5.yaml \
    "$@"
