#!/bin/bash
#SBATCH --job-name=ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
#
# One coordinator, whose lifetimes run on all nodes of this job through Ray.
#
#   sbatch parallelization_tutorials/slurm_ray.sh SCRIPT.py [FLAGS...]
#
# STORAGE in the environment is journal:studies.log if it is not set.
set -u

fail() {
    echo "slurm_ray.sh: $1" >&2
    exit "${2:-1}"
}

[ $# -gt 0 ] || fail "which script? sbatch slurm_ray.sh SCRIPT.py [FLAGS...]" 2
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
bin=$PWD/.venv/bin
[ -x "$bin/ray" ] || bin=$(dirname "$(command -v ray || echo /)")
[ -x "$bin/ray" ] || fail 'Ray is missing: pip install "ray[client]"' 2
export RAY_USAGE_STATS_ENABLED=0
# Whoever reaches a cluster without a token can run code on it.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$("$bin/python" -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<<"$nodes")
on_head=(srun --nodes=1 --ntasks=1 --nodelist="$head" --cpus-per-task="$SLURM_CPUS_PER_TASK")
# Some nodes name a loopback address first, which the others cannot reach.
address=$("${on_head[@]}" hostname --all-ip-addresses | tr ' ' '\n' | grep -v '^127\.' | head -n 1)
[ -n "$address" ] || fail "$head has no address that other nodes can reach"
# Two ports of this job, below those that the system gives to others. Ray's own, 6379 and 10001, may be
# taken on a node that is shared.
port=$((20000 + 2 * (SLURM_JOB_ID % 6000)))

"${on_head[@]}" --overlap "$bin/ray" start --head --block --node-ip-address="$address" --port="$port" \
    --ray-client-server-port=$((port + 1)) --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false &
ray=$!
answers() { "$bin/python" -c "import socket; socket.create_connection(('$address', $port), 1)" 2>/dev/null; }
while sleep 1 && kill -0 $ray 2>/dev/null && ! answers; do :; done
kill -0 $ray 2>/dev/null || fail "Ray did not start on $head"
others=$((SLURM_JOB_NUM_NODES - 1))
if [ $others -gt 0 ]; then
    srun --nodes=$others --ntasks=$others --exclude="$head" --cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap \
        "$bin/ray" start --block --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" &
    # The coordinator counts the CPUs once, when it begins.
    "$bin/python" - "$address:$port" "$SLURM_JOB_NUM_NODES" <<'END' || fail "not all nodes joined within 5 minutes"
import sys
import time

import ray

ray.init(address=sys.argv[1], log_to_driver=False)
end = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    if time.monotonic() > end:
        sys.exit(1)
    time.sleep(1)
END
fi

export CLUSTER="ray:$address:$port"
exec bash "${SLURM_SUBMIT_DIR:-.}/parallelization_tutorials/slurm_task.sh" "$@"
