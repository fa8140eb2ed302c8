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
for corpus in commonvoice kathbath mls; do
    languages=()
    for entry in $sources; do
        [[ -z $langs || " $langs " == *" ${entry%%:*} "* ]] || continue
        [[ ",${entry#*:}," != *",$corpus,"* ]] || languages+=("${entry%%:*}")
    done
    [ ${#languages[@]} -gt 0 ] || continue
    # A language alone gets all processes, several share them.
    each=$((nj > ${#languages[@]} ? nj / ${#languages[@]} : 1))

    # $train_cmd is a command with options.
    # shellcheck disable=SC2154,SC2086
    $train_cmd --max-jobs-run "$nj" LANGUAGE="$(IFS=, && echo "${languages[*]}")" \
        "$datadir/log/$corpus.LANGUAGE.log" \
        python3 -m espnet_moe.bin.make_mini_corpus --out "$corpus_dir/$corpus" --layout "$corpus" \
        --lang LANGUAGE --size "$size" --dev_size "$dev_size" --test_size "$test_size" \
        --seed "$seed" --nj "$each" \&\& \
        python3 -m espnet_moe.bin.prepare_data --corpus "$corpus" --root "$corpus_dir/$corpus" \
        --language LANGUAGE --out "$datadir/${corpus}_LANGUAGE" \
        --allow_bad_test_audio "$allow_bad_test_audio"
done
