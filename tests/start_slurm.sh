#!/usr/bin/env bash
# Starts SLURM on this machine alone, for tests: one node, one partition, two made-up GPUs. Needs root, slurm-wlm and
# munge; touches nothing outside FOLDER but the daemons' own run files.
# Usage: start_slurm.sh FOLDER     then   export SLURM_CONF=FOLDER/slurm.conf
#        start_slurm.sh FOLDER stop
set -euo pipefail
folder=$(realpath -m "$1")
if [ "${2:-}" = stop ]; then
    for name in slurmd slurmctld munged; do
        [ ! -s "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" 2> /dev/null || true
    done
    exit 0
fi
[ "$(id -u)" = 0 ] || { echo "start_slurm: needs root" >&2; exit 1; }
for program in slurmctld slurmd munged sbatch; do
    PATH=$PATH:/usr/sbin command -v "$program" > /dev/null || { echo "start_slurm: no $program" >&2; exit 1; }
done
PATH=$PATH:/usr/sbin

mkdir -p "$folder"/{state,spool,munge}
host=$(hostname -s)
cpus=$(slurmd -C | grep -o 'CPUs=[0-9]*' | cut -d= -f2)
memory=$(slurmd -C | grep -o 'RealMemory=[0-9]*' | cut -d= -f2)
port=$((20000 + RANDOM % 20000))
# Made-up GPUs: SLURM counts them and sets CUDA_VISIBLE_DEVICES, which is what is tested.
printf 'NodeName=%s Name=gpu File=/dev/zero\nNodeName=%s Name=gpu File=/dev/full\n' "$host" "$host" > "$folder/gres.conf"
cat > "$folder/slurm.conf" << END
ClusterName=iqtflow
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
KillWait=2
MinJobAge=300
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
END
export SLURM_CONF="$folder/slurm.conf"

chmod 0755 "$folder" "$folder/munge"
[ -s "$folder/munge.key" ] || dd if=/dev/urandom of="$folder/munge.key" bs=1 count=1024 status=none
chmod 0400 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
slurmctld -c
slurmd
for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && exit 0
    sleep 0.5
done
echo "start_slurm: the node did not come up: $(tail -n 3 "$folder/slurmd.log" "$folder/slurmctld.log" 2> /dev/null)" >&2
exit 1
