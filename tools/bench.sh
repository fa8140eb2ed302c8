#!/usr/bin/env bash
# All benchmarks of speed and memory against peers, one after the other; tables on stdout, JSON in a
# folder. Needs the environment (tools/setup.sh).
#   tools/bench.sh --quick           small shapes, under 5 minutes: that everything runs, no figures
#   tools/bench.sh                   real shapes, an hour on 2 cores
#   OUT=/tmp/figures tools/bench.sh  the JSON goes there instead of exp/benchmarks
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PATH="$PWD/tools/venv/bin:$PATH" PYTHONPATH="$PWD"

out=${OUT:-exp/benchmarks}
failed=()
for name in mixture feed_forward mixed_batch expert_loading expert_count training_step \
    short_utterances decoding embedding clustering launching; do
    python "benchmarks/$name.py" --out "$out/$name.json" "$@" || failed+=("$name")
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "tools/bench.sh: failed: ${failed[*]}" >&2
    exit 1
fi
