# shellcheck shell=bash
# Sourced by the scripts of a recipe, from the recipe's folder or any other: the environment.
_recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MAIN_ROOT=$(cd "$_recipe/../../.." && pwd)
export MAIN_ROOT

"$MAIN_ROOT/tools/setup.sh" || return 1

export PATH="$MAIN_ROOT/tools/venv/bin:$PATH"
export LC_ALL=C # the order of sort is the order of Kaldi's files
export PYTHONIOENCODING=UTF-8
unset PYTHONDONTWRITEBYTECODE # or every job compiles the packages anew: twice the time to start
export OMP_NUM_THREADS=1 # jobs run side by side, a core each

# What this recipe needs besides.
if [ -f "$_recipe/local/path.sh" ]; then
    # shellcheck source=/dev/null
    . "$_recipe/local/path.sh"
fi
unset _recipe
