#!/usr/bin/env bash
# A temporary SLURM of four emulated nodes on this machine, on loopback only, without accounting.
#
#   cluster.sh can DIR      prints nothing if it can start here; else prints the reason in one line and exits with 1
#   cluster.sh start DIR    installs missing packages (apt, as root), starts the daemons, writes DIR/env.sh
#   cluster.sh stop DIR     cancels the jobs and ends the daemons
#
# Partitions: main (default), high, and low. A job of high preempts jobs of low: SIGUSR2, then a requeue 10 s later.
# PORT (default 27800) is the first of about thirty TCP ports. Every wait here has a time limit.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,9p' "$0"; exit 2; }
mkdir -p "$2"
verb=$1 dir=$(cd "$2" && pwd -P) port=${PORT:-27800} me=$(id -un) nodes=4
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin LC_ALL=C

# runs PIDFILE NAME: succeeds if the process of the pid file runs and is this program.
runs() { [ -s "$1" ] && grep -q "^Name:[[:space:]]*$2$" "/proc/$(cat "$1")/status" 2>/dev/null &&
    ! grep -q '^State:[[:space:]]*Z' "/proc/$(cat "$1")/status"; }
within() { local tenths=$1; shift; until "$@" >/dev/null 2>&1; do ((tenths-- > 0)) || return 1; sleep 0.1; done; }

if [ "$verb" = stop ]; then
    if runs "$dir/run/slurmctld.pid" slurmctld; then
        timeout 20 scancel -u "$me" || true
        within 100 sh -c '[ -z "$(squeue -h)" ]' || true
    fi
    # End the step daemons of this cluster that a killed slurmd has left.
    for process in /proc/[0-9]*; do
        if grep -q '^Name:[[:space:]]*slurmstepd' "$process/status" 2>/dev/null &&
            tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF"; then
            kill -9 "${process#/proc/}" 2>/dev/null || true
        fi
    done
    for name in slurmd slurmctld munged; do
        for file in "$dir"/run/"$name"*.pid; do
            runs "$file" $name || continue
            pid=$(cat "$file")
            kill "$pid"
            within 100 sh -c "! kill -0 $pid || grep -q '^State:[[:space:]]*Z' /proc/$pid/status" || kill -9 "$pid"
        done
    done
    exit 0
fi
case $verb in start | can) ;; *) sed -n '2,9p' "$0"; exit 2 ;; esac
loopback() { case $(getent ahostsv4 "$(uname -n)" | head -1) in 127.*) ;; *) false ;; esac; }

# --- packages ---
missing=()
for pair in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ "$verb" = can ]; then
    no() { echo "no SLURM can be started here: $1"; exit 1; }
    loopback || unshare --uts true 2>/dev/null || no "the host name does not resolve to 127.0.0.1, and it cannot be changed"
    [ ${#missing[@]} -gt 0 ] || exit 0
    [ "$(id -u)" = 0 ] || no "not installed: ${missing[*]}, and only root can install them"
    command -v apt-get >/dev/null || no "not installed: ${missing[*]}, and there is no apt"
    timeout 300 apt-get update -qq >/dev/null 2>&1 || true
    timeout 60 apt-get install --simulate -qq "${missing[@]}" >/dev/null 2>&1 || no "not installed: ${missing[*]}, and apt does not have them"
    exit 0
fi
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "cluster.sh: install ${missing[*]} first (as root)" >&2; exit 1; }
    guard=/usr/sbin/policy-rc.d   # stops the packages from starting daemons
    if [ ! -e $guard ]; then printf '#!/bin/sh\nexit 101\n' >$guard; chmod +x $guard; trap 'rm -f $guard' EXIT; fi
    timeout 300 apt-get update -qq
    DEBIAN_FRONTEND=noninteractive timeout 900 apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "${missing[@]}" >"$dir/apt.log"
    rm -f $guard
fi

# --- loopback: the daemons listen on the address of the host name ---
if ! loopback; then
    [ -z "${RENAMED:-}" ] || { echo "cluster.sh: 'localhost' does not resolve to 127.0.0.1" >&2; exit 1; }
    RENAMED=1 exec unshare --uts sh -c 'hostname localhost && exec bash "$0" start "$1"' "$0" "$dir"
fi

# --- configuration ---
mkdir -p "$dir"/{run,log,state,spool,gpus}
[ -s "$dir/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$dir/munge.key")
[ -s "$dir/first" ] || echo $(($(date +%s) % 50000000 + 1)) >"$dir/first"   # job ids are never used twice
for i in 0 1 2 3; do ln -sfn /dev/null "$dir/gpus/nvidia$i"; done          # jobs request a device; none is used
echo "NodeName=node[1-$nodes] Name=gpu File=$dir/gpus/nvidia[0-3] Flags=nvidia_gpu_env" >"$dir/gres.conf"
echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"                          # else slurmd looks for a mounted cgroup
cat >"$dir/slurm.conf" <<CONF
ClusterName=throwaway
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
# A requeued job waits for the lifetime of a credential. If this is shorter than its steps need to end, SLURM drains the
# node.
AuthInfo=socket=$dir/run/munge.socket,cred_expire=10
KillWait=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
FirstJobId=$(cat "$dir/first")
MinJobAge=3600
MaxArraySize=20
SlurmdTimeout=30
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=node[1-$nodes] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=4 RealMemory=4000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" >"$dir/env.sh"

# --- daemons ---
trap 'echo "cluster.sh: a daemon did not start:" >&2; tail -n 3 "$dir"/log/*.err >&2' ERR
# --force: else munged requires that every user can enter the folders above its socket. Here only one user needs it.
runs "$dir/run/munged.pid" munged || { rm -f "$dir"/run/munge.socket*; munged --force --key-file="$dir/munge.key" \
    --socket="$dir/run/munge.socket" --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" \
    --seed-file="$dir/munge.seed" 2>>"$dir/log/munged.err"; }
runs "$dir/run/slurmctld.pid" slurmctld || slurmctld 2>>"$dir/log/slurmctld.err"
within 100 scontrol ping
for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$dir/spool/node$i"
    runs "$dir/run/slurmd-node$i.pid" slurmd || slurmd -N node$i 2>>"$dir/log/slurmd-node$i.err"
done
ready() { [ "$(sinfo -h -N -p main -t idle,mix,alloc -o %N | sort -u | wc -l)" = $nodes ]; }
within 300 ready || { sinfo -N -l; echo "cluster.sh: the nodes are not ready, see $dir/log" >&2; exit 1; }
echo "four nodes are ready:  . $dir/env.sh"
