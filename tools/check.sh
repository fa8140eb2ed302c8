#!/usr/bin/env bash
# The static checks: form, types and syntax. Needs the environment (tools/setup.sh).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PATH="$PWD/tools/venv/bin:$PATH"

failed=()
step() {
    echo "== $1 $2"
    "$@" || failed+=("$1")
}

# Every script of the house, by its first line or its ending; links are checked where they lead.
scripts() {
    find tools egs2 .ci -name venv -prune -o -type f -print | sort | while IFS= read -r file; do
        case $file in
            *"$1") echo "$file" ;;
            *) if [ -x "$file" ] && head -n 1 "$file" | grep -q "$2"; then echo "$file"; fi ;;
        esac
    done
}

mapfile -t shell < <(scripts .sh bash)
mapfile -t perl < <(scripts .pl perl; find egs2 -name '*.pm' -type f)

step ruff check .
step ruff format --check --quiet .
step mypy espnet_moe
if command -v shellcheck >/dev/null; then
    step shellcheck -x -P SCRIPTDIR:SCRIPTDIR/.. "${shell[@]}"
else
    echo "== shellcheck is not installed: left out" >&2
fi
for file in "${perl[@]}"; do
    step perl -c "$file"
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "tools/check.sh: failed: ${failed[*]}" >&2
    exit 1
fi
