"""Data frames as studies give them, small and with everything in them that occurs."""

import numpy as np
import pandas as pd
import pytest

from erl.studies.data import Axis


@pytest.fixture
def space():
    return {"sr": Axis(1e-4, 1e2, log=True), "lr": Axis(1e-2, 1.0, log=True)}


@pytest.fixture
def trials():
    """Twelve trials in generations of four: nine completed, one pruned, one failed, one running."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "trial": range(12),
            "state": ["COMPLETE"] * 12,
            "sr": 10 ** rng.uniform(-4, 2, 12),
            "lr": 10 ** rng.uniform(-2, 0, 12),
            "fitness": rng.normal(100, 20, 12),
            "generation": np.repeat([0, 1, 2], 4),
        }
    )
    frame.loc[3, ["state", "fitness"]] = ["FAIL", None]
    frame.loc[6, "state"] = "PRUNED"
    frame.loc[11, ["state", "fitness"]] = ["RUNNING", None]
    return frame


@pytest.fixture
def evolved(trials):
    """The lifetimes of those trials, two each, with curves that rise to the trial's fitness."""
    rows = []
    for row in trials[trials.state == "COMPLETE"].itertuples():
        for lifetime in range(2):
            steps = np.arange(1, 41) * 25
            curve = tuple(zip(steps.tolist(), (row.fitness * steps / 1000 + lifetime).tolist()))
            rows.append(
                {"trial": row.trial, "state": "COMPLETE", "lifetime": lifetime, "curve": curve}
            )
    return pd.DataFrame(rows)


@pytest.fixture
def lifetimes():
    """A test: three arms of six seeds, one lifetime failed."""
    rng = np.random.default_rng(1)
    rows = []
    for arm, height in (("PPO", 50.0), ("RES_PPO", 90.0), ("STACK_PPO", 55.0)):
        for seed in range(6):
            end = height + rng.normal(0, 8)
            steps = np.arange(1, 101) * 100
            curve = tuple(zip(steps.tolist(), (end * steps / steps[-1]).tolist()))
            rows.append(
                {
                    "trial": len(rows),
                    "state": "COMPLETE",
                    "lifetime": 0,
                    "arm": arm,
                    "seed": seed,
                    "training_return": end,
                    "final_return": end + 1.0,
                    "curve": curve,
                }
            )
    rows[-1] |= {"state": "FAIL", "training_return": None, "final_return": None, "curve": ()}
    return pd.DataFrame(rows)
