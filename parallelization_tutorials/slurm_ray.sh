#!/bin/bash
#SBATCH --job-name=ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#
# One coordinator, whose lifetimes run on all nodes of this job through Ray.
#
#   sbatch parallelization_tutorials/slurm_ray.sh SCRIPT.py [FLAGS...]
set -u

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
bin=$PWD/.venv/bin
[ -x "$bin/ray" ] || bin=$(dirname "$(command -v ray)")
export RAY_USAGE_STATS_ENABLED=0
# Whoever reaches a cluster without a token can run code on it.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$("$bin/python" -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<<"$nodes")
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap "$bin/ray" start --head --block \
    --node-ip-address="$address" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false &
until "$bin/python" -c "import socket; socket.create_connection(('$address', $port), 1)" 2>/dev/null; do sleep 1; done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ $others -gt 0 ]; then
    srun --nodes=$others --ntasks=$others --exclude="$head" --overlap "$bin/ray" start --block \
        --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" &
    sleep 20 # their CPUs count when the coordinator asks for them
fi

script=$1
shift
"$bin/python" "$script" --cluster "ray:$address:$port" "$@"
