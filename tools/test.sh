#!/usr/bin/env bash
# Set everything up, check, and run all tests that this machine can run. Arguments go to pytest:
#   tools/test.sh                   everything
#   tools/test.sh -k datadir -x     some
#   tools/test.sh -m gpu            those for a GPU
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
tools/setup.sh || exit 1
export PATH="$PWD/tools/venv/bin:$PATH"
# Tests are small: threads would only wait for each other.
export OMP_NUM_THREADS=1

status=0
tools/check.sh || status=1
python -m pytest -m "not gpu" --durations=10 "$@" || status=1
exit $status
