#!/usr/bin/env bash
# Stop the SLURM that start.sh has started (SLURM_CONF tells which) and remove its folder.
set -uo pipefail
: "${SLURM_CONF:?is not set: nothing that start.sh has started}"
folder=$(dirname "$SLURM_CONF")
[ -d "$folder/munge" ] || { echo "$0: error: $folder is not from start.sh" >&2; exit 1; }

scancel --full --user "$(id -un)" 2>/dev/null
for name in slurmd slurmctld munge/; do
    file=$folder/${name}$([ "$name" = munge/ ] || echo .)pid
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null
done
rm -rf "$folder"
