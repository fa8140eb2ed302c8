#!/usr/bin/env bash
# Stage 1 of the mini recipe: speak the mini corpus in the real corpora's layouts, and read it back.
set -euo pipefail

sources="hi:commonvoice,kathbath it:commonvoice,mls" # the corpora of each language
langs=                          # of these languages; empty: all of them
datadir=data                    # data dirs to write: <datadir>/<corpus>_<language>_<split>
corpus_dir=downloads/mini       # where the corpora are made, in a folder each
nj=2                            # processes
size=600                        # training sentences of a corpus in a language
dev_size=40                     # development sentences
test_size=100                   # test sentences
seed=0                          # of voices and sentences
allow_bad_test_audio=false      # leave bad audio out of test sets, instead of an error

. utils/parse_options.sh
. utils/stages.sh
. ./path.sh
. ./cmd.sh

log "$0: the mini corpus in $corpus_dir, its data dirs in $datadir"
mkdir -p "$datadir/log"
names=()
for corpus in kathbath commonvoice mls; do # those that take longest first
    for lang in ${langs:-$(tr ' ' '\n' <<<"$sources" | cut -d : -f 1)}; do
        # shellcheck disable=SC2046
        listed "$corpus" $(corpora_of "$lang") || continue
        name=${corpus}_$lang
        names+=("$name")
        printf '%s\n' --layout "$corpus" --lang "$lang" --out "$corpus_dir/$corpus" \
            >"$datadir/log/$name.speak.args"
        printf '%s\n' --corpus "$corpus" --language "$lang" --root "$corpus_dir/$corpus" \
            --out "$datadir/$name" >"$datadir/log/$name.prepare.args"
    done
done
[ ${#names[@]} -gt 0 ] ||
    complain "--sources $sources: the mini corpus is made as kathbath, commonvoice or mls"
each=$((nj > ${#names[@]} ? nj / ${#names[@]} : 1)) # processes of a job

# $train_cmd is a command with options.
# shellcheck disable=SC2154,SC2086
$train_cmd --max-jobs-run "$nj" NAME="$(join , "${names[@]}")" "$datadir/log/NAME.log" \
    python3 -m espnet_moe.bin.make_mini_corpus "@$datadir/log/NAME.speak.args" --size "$size" \
    --dev_size "$dev_size" --test_size "$test_size" --seed "$seed" --nj "$each" \&\& \
    python3 -m espnet_moe.bin.prepare_data "@$datadir/log/NAME.prepare.args" \
    --allow_bad_test_audio "$allow_bad_test_audio"
