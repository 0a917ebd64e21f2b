"""Journals as ER-MRL's scripts leave them: parameters and values, no configuration."""

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def journal(n, fail=False, name="optuna-journal_Toy-v0_main_1k_steps.log"):
    """A journal in this folder, of `n` trials: their values depend on `sr`, or all failed."""
    study = optuna.create_study(
        study_name="Toy-v0_main_1k_steps",
        storage=JournalStorage(JournalFileBackend(name)),
        direction="maximize",
    )
    rng = np.random.default_rng(0)
    for _ in range(n):
        trial = study.ask()
        sr = trial.suggest_float("sr", 1e-4, 1e2, log=True)
        trial.suggest_float("lr", 1e-2, 1.0, log=True)
        if fail:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, -((np.log10(sr) + 1) ** 2) + 0.01 * rng.normal())
    return name
