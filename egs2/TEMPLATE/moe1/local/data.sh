#!/usr/bin/env bash
# Stage 1 of the recipes on real corpora: read what was unpacked, check it, write a data dir a split.
set -euo pipefail

sources=                        # the corpora of each language, e.g. "hi:commonvoice,kathbath it:mls"
langs=                          # of these languages; empty: all of them
datadir=data                    # data dirs to write: <datadir>/<corpus>_<language>_<split>
corpus_dir=                     # where the corpus was unpacked, or corpora in folders of their names; empty: as db.sh says
nj=2                            # corpora read at a time
handles=                        # mls: limited supervision, 9hr or 1hr/0 ... 1hr/5; empty: all of it
release=                        # commonvoice: which one, where there are several: 26.0 or 26.0-2026-06-12
train_from=train                # commonvoice: train, or validated without the speakers and sentences of dev and test
further_tests=                  # further test sets of corpora, e.g. "kathbath:test_noisy kathbath:test_known"
probe_audio=false               # decode every file now; stage 2 does it anyway
allow_bad_test_audio=false      # leave bad audio out of test sets, instead of an error

. utils/parse_options.sh
. utils/stages.sh
. ./path.sh
. ./cmd.sh
. ./db.sh

# root_of CORPUS: its folder.
root_of() {
    local name=${1^^}
    if [ -n "$corpus_dir" ] && [ -d "$corpus_dir/$1" ]; then
        echo "$corpus_dir/$1"
    else
        echo "${corpus_dir:-${!name:-}}"
    fi
}

# tests_of CORPUS: its further test sets.
tests_of() {
    local entry
    for entry in $further_tests; do
        [ "${entry%%:*}" != "$1" ] || echo "${entry#*:}"
    done
}

names=() problems=()
corpora=$(tr ' ' '\n' <<<"$sources" | cut -d : -f 2 | tr , '\n')
for entry in $further_tests; do
    if ! [[ $entry =~ ^[a-z]+:test[a-z_]*$ ]]; then
        problems+=("--further_tests is of CORPUS:SPLIT, such as kathbath:test_noisy, not '$entry'")
    elif ! grep -qx "${entry%%:*}" <<<"$corpora"; then
        problems+=("--further_tests: ${entry%%:*} is no corpus of --sources")
    fi
done
complain "${problems[@]}"

mkdir -p "$datadir/log"
for lang in ${langs:-$(tr ' ' '\n' <<<"$sources" | cut -d : -f 1)}; do
    for corpus in $(corpora_of "$lang"); do
        root=$(root_of "$corpus")
        if [ -z "$root" ]; then
            problems+=("$lang: where is $corpus? Give its folder as --corpus_dir, or as ${corpus^^} in db.sh")
            continue
        fi
        names+=("${corpus}_$lang")
        {
            printf '%s\n' --corpus "$corpus" --root "$root" --language "$lang" \
                --out "$datadir/${corpus}_$lang" --probe_audio "$probe_audio" \
                --allow_bad_test_audio "$allow_bad_test_audio"
            [ "$corpus" != mls ] || [ -z "$handles" ] || printf '%s\n' --handles "$handles"
            if [ "$corpus" = commonvoice ]; then
                printf '%s\n' --train_from "$train_from"
                [ -z "$release" ] || printf '%s\n' --release "$release"
            fi
            mapfile -t tests < <(tests_of "$corpus")
            printf '%s\n' --splits train dev test "${tests[@]}"
        } >"$datadir/log/${corpus}_$lang.args"
    done
done
complain "${problems[@]}"

# $train_cmd is a command with options.
# shellcheck disable=SC2154,SC2086
$train_cmd --max-jobs-run "$nj" NAME="$(join , "${names[@]}")" "$datadir/log/NAME.log" \
    python3 -m espnet_moe.bin.prepare_data "@$datadir/log/NAME.args"
