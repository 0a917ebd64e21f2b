#!/bin/bash
# What one task of a SLURM array does: one coordinator of a shared study, on the cores that it was given, or on the
# cluster that CLUSTER names.
#
#   slurm_task.sh SCRIPT.py [FLAGS...]
#
# Before its time is over (SIGUSR1, see --signal in the scripts that call this) the coordinator gives its trials back, and
# the task goes to the end of the queue. When it is cancelled or preempted (SIGTERM) the coordinator gives them back too.
set -u

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
python=.venv/bin/python
[ -x "$python" ] || python=$(command -v python3)
"${python:-python3}" -c 'import rich' 2>/dev/null || {
  echo "slurm_task.sh: no environment here: run make setup in this folder, or activate one before sbatch" >&2
  exit 2
}

script=$1
shift
# Without a cluster the coordinator has as many workers as fit on the cores of the task.
"$python" "$script" --storage "${STORAGE:-journal:studies.log}" ${CLUSTER:+--cluster "$CLUSTER"} "$@" &
coordinator=$!

time_is_over=
trap 'time_is_over=yes; kill -TERM $coordinator' USR1
trap 'kill -TERM $coordinator' TERM
# A signal ends `wait`, and the coordinator needs a moment after it.
while kill -0 $coordinator 2>/dev/null; do wait $coordinator; done
wait $coordinator
code=$?

# 143: the signal came while Python was still starting.
if [ -n "$time_is_over" ] && { [ $code -eq 130 ] || [ $code -eq 143 ]; }; then
    echo "the time is over: task ${SLURM_ARRAY_TASK_ID:-} goes on later"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
