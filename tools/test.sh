#!/usr/bin/env bash
# Set everything up, check, and run all tests that this machine can run. Arguments go to pytest:
#   tools/test.sh                   everything, those of the recipes beside all others
#   tools/test.sh -k datadir -x     some
#   tools/test.sh -m gpu            those for a GPU
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
tools/setup.sh || exit 1
export PATH="$PWD/tools/venv/bin:$PATH"
# The recipes' tests start hundreds of processes that import the same packages: where the variable is
# set (many images do), each would compile them anew, which takes longer than its work.
unset PYTHONDONTWRITEBYTECODE
# Tests are small: threads would only wait for each other.
export OMP_NUM_THREADS=1

status=0
tools/check.sh || status=1
pytest=(python -m pytest -m "not gpu" --durations=10)
if [ $# -gt 0 ]; then
    "${pytest[@]}" "$@" || status=1
    exit $status
fi

# The recipes' tests start processes and wait for them, the others calculate: at once they take
# little more than half of the time.
log=$(mktemp)
"${pytest[@]}" test/recipes > "$log" 2>&1 &
recipes=$!
trap 'kill "$recipes" 2>/dev/null; rm -f "$log"' EXIT
"${pytest[@]}" --ignore=test/recipes || status=1
echo "tools/test.sh: waiting for the recipes' tests"
wait "$recipes" || status=1
cat "$log"
exit $status
