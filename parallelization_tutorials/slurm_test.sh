#!/bin/bash
#SBATCH --job-name=test
#SBATCH --array=0-4
#SBATCH --cpus-per-task=3
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
#
# A test whose seeds are spread over the array: the index of a task is its seed (the scripts read SLURM_ARRAY_TASK_ID).
#
#   sbatch --array=0-9 parallelization_tutorials/slurm_test.sh [SCRIPT.py] --study NAME [FLAGS...]
#
# SCRIPT.py is test.py if it is not named; STORAGE in the environment is journal:studies.log if it is not set. Only a first
# word that ends in .py names a script: write `erl/__main__.py`, and not `-m erl`, to train one learner.
case "${1-}" in
    *.py) script=$1 && shift ;;
    *) script=test.py ;;
esac
exec bash "${SLURM_SUBMIT_DIR:-.}/parallelization_tutorials/slurm_task.sh" "$script" "$@"
