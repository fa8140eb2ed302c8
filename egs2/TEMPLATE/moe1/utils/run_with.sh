#!/usr/bin/env bash
# Call run.sh with the words of a file, a word a line, and further ones.
#   utils/run_with.sh FILE [options of run.sh]
set -euo pipefail
mapfile -t words <"$1"
exec ./run.sh "${words[@]}" "${@:2}"
