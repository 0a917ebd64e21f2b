#!/bin/bash
#SBATCH --job-name=evolution
#SBATCH --array=0-2
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
#
# Several coordinators on one study: `--nb_trials` is the study's total, whoever runs its trials. Each takes whole
# generations, so the sampler learns only if coordinators x --popsize is much less than --nb_trials.
#
#   sbatch parallelization_tutorials/slurm_evolution.sh [SCRIPT.py] [FLAGS...]
#
# SCRIPT.py is evolve_res.py if it is not named; STORAGE in the environment is journal:studies.log if it is not set.
case "${1-}" in
    *.py) script=$1 && shift ;;
    *) script=evolve_res.py ;;
esac
exec bash "${SLURM_SUBMIT_DIR:-.}/parallelization_tutorials/slurm_task.sh" "$script" "$@"
