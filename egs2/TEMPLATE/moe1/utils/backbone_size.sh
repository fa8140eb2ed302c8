#!/usr/bin/env bash
# Which configurations suit the base that the options of a recipe name: mini, small, medium or large.
#   size=$(utils/backbone_size.sh "$@")
# A base whose name does not tell its size gets those for small, with a word on stderr.
set -euo pipefail

backbone='' from_file=''
while [ $# -gt 0 ]; do
    case $1 in
        --backbone) backbone=${2:-} ;;
        --config) from_file=$(sed -n 's/^backbone=["'"'"']\{0,1\}\([^"'"'"']*\)["'"'"']\{0,1\}$/\1/p' "${2:-}" | tail -n 1) ;;
    esac
    shift
done
backbone=${backbone:-${from_file:-openai/whisper-small}}
while [[ $backbone == */ ]]; do backbone=${backbone%/}; done
case ${backbone##*/} in
    *mini* | *tiny*) echo mini ;;
    *small* | *base*) echo small ;;
    *medium* | owsm_v3.1_ebf | owsm_v3.1_ebf.zip | *_1B*) echo medium ;;
    *large* | *turbo*) echo large ;;
    *)
        echo "$0: the size of $backbone is not known by its name: configurations for small ones" >&2
        echo small
        ;;
esac
