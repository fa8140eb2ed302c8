#!/usr/bin/env bash
# Fetch a corpus where its licence lets a script do so, and unpack it; an interrupted call goes on.
#   local/download.sh --corpus mls --lang it --dir /corpora/mls
#   local/download.sh --corpus kathbath --lang hi --dir /corpora/kathbath      # 90 GB for all languages
#   local/download.sh --corpus commonvoice --lang te --dir /corpora/cv --dataset_id ID
set -euo pipefail

corpus=                         # mls, kathbath or commonvoice
lang=                           # hi, it, pa or te
dir=                            # where to
archive=opus                    # mls: opus (a quarter of the size) or flac
condition=clean                 # kathbath: clean or noisy recordings
dataset_id=                     # commonvoice: end of the dataset's address on mozilladatacollective.com
mirror=                         # another place for the same archives: an address up to their names

. utils/parse_options.sh
. utils/stages.sh

[ -n "$dir" ] || complain "--dir is needed: where to put $corpus"
mkdir -p "$dir"

# fetch ADDRESS ARCHIVE: into $dir, unless it is there whole.
fetch() {
    [ ! -f "$dir/$2" ] || return 0
    log "fetching ${mirror:-$1}/$2 to $dir"
    curl --fail --location --retry 5 --continue-at - --output "$dir/$2.part" "${mirror:-$1}/$2" ||
        complain "$2 could not be fetched; the same call goes on, or give --mirror"
    mv "$dir/$2.part" "$dir/$2"
}

# unpack ARCHIVE [MEMBERS]: once.
unpack() {
    local stamp
    stamp=$dir/.unpacked.$(tr -c 'A-Za-z0-9\n' _ <<<"$*")
    [ ! -f "$stamp" ] || return 0
    log "unpacking $dir/$1"
    tar --extract --file "$dir/$1" --directory "$dir" ${2:+--wildcards "$2"}
    touch "$stamp"
}

case $corpus in
    mls)
        [ "$lang" = it ] || complain "of MLS, this recipe knows it (Italian), not '$lang'"
        [[ $archive =~ ^(opus|flac)$ ]] || complain "--archive is opus or flac, not '$archive'"
        name=mls_italian$([ "$archive" = flac ] || echo _opus).tar.gz
        fetch https://dl.fbaipublicfiles.com/mls "$name" # CC BY 4.0
        unpack "$name"
        ;;
    kathbath)
        case $lang in
            hi) folder=hindi ;;
            pa) folder=punjabi ;;
            te) folder=telugu ;;
            *) complain "of Kathbath, this recipe knows hi, pa and te, not '$lang'" ;;
        esac
        case $condition in
            clean) names="transcripts_n2w train_audio valid_audio testkn_audio testunk_audio" ;;
            noisy) names="transcripts_n2w testkn_audio testunk_audio" ;;
            *) complain "--condition is clean or noisy, not '$condition'" ;;
        esac
        mkdir -p "$dir/$condition"
        for name in $names; do # CC BY 4.0; all languages are in one archive
            fetch https://objectstore.e2enetworks.net/indic-superb/kathbath "$condition/$name.tar"
            unpack "$condition/$name.tar" "*/$folder/*"
        done
        ;;
    commonvoice)
        # CC0, but Mozilla hands it out itself, and asks that nobody else does.
        [ -n "$dataset_id" ] && [ -n "${MDC_API_KEY:-}" ] || complain \
            "Common Voice comes from mozilladatacollective.com only: make an account, accept the terms of the dataset for $lang, and either unpack it in $dir yourself, or set MDC_API_KEY and give --dataset_id, the end of its address"
        python3 -c 'import datacollective' 2>/dev/null ||
            complain "Common Voice is fetched by the package datacollective: pip install datacollective"
        MDC_DOWNLOAD_PATH=$dir python3 -c '
import sys
from datacollective import download_dataset
print(download_dataset(sys.argv[1]))' "$dataset_id"
        for name in "$dir"/*.tar.gz; do
            [ ! -f "$name" ] || unpack "$(basename "$name")"
        done
        ;;
    *) complain "--corpus is mls, kathbath or commonvoice, not '$corpus'" ;;
esac
