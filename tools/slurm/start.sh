#!/usr/bin/env bash
# Start a real SLURM of one node on this machine, for tests: munged, slurmctld and slurmd by hand,
# without systemd, with all state in one folder.
#   eval "$(tools/slurm/start.sh [FOLDER])"    # sets SLURM_CONF; FOLDER: a new temporary one
#   tools/slurm/stop.sh
# Debian's packages slurm-wlm and munge are installed where they are missing and the caller is root.
# Exit status 3: SLURM cannot be had here, with the reason on stderr.
set -euo pipefail

cannot() {
    echo "$0: no SLURM here: $*" >&2
    exit 3
}
missing() { ! command -v slurmctld slurmd munged sbatch >/dev/null; }

if missing; then
    [ "$(id -u)" = 0 ] || cannot "slurm-wlm and munge are not installed, and only root could install them"
    command -v apt-get >/dev/null || cannot "slurm-wlm and munge are not installed, and there is no apt-get"
    {
        apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes \
            --no-install-recommends slurm-wlm munge
    } >&2 || cannot "slurm-wlm and munge could not be installed"
    missing && cannot "slurm-wlm and munge were installed, but something of them is missing"
fi
[ "$(id -u)" = 0 ] || cannot "slurmd starts jobs for others, which only root may"

folder=${1:-$(mktemp -d -t slurm.XXXXXX)}
mkdir -p "$folder"/{state,spool,munge}
folder=$(cd "$folder" && pwd)
chmod 755 "$folder"
host=$(hostname -s)
cores=$(env -u OMP_NUM_THREADS nproc)
memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
# Ports of its own: another SLURM on this machine stays as it is.
read -r controller node < <(python3 -c '
import socket
free = [socket.socket() for _ in range(2)]
for s in free: s.bind(("", 0))
print(*(s.getsockname()[1] for s in free))')

head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 700 "$folder/munge"
chmod 600 "$folder/munge/key"
munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" \
    --pid-file "$folder/munge/pid" --log-file "$folder/munge/log" \
    --seed-file "$folder/munge/seed" >&2

cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SchedulerType=sched/backfill
MinJobAge=5
KillWait=5
ReturnToService=2
JobRequeue=1
MaxArraySize=10001
MaxJobCount=20000
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld -c >&2
slurmd -c >&2
for _ in $(seq 100); do
    if [ "$(sinfo --noheader --format %t 2>/dev/null)" = idle ]; then
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.2
done
tail -n 5 "$folder"/slurm{ctld,d}.log >&2
SLURM_CONF=$folder/slurm.conf "$(dirname "$0")/stop.sh"
cannot "slurmctld or slurmd did not come up; their last lines are above"
