"""Evaluate a saved agent: `erl eval --model models/STUDY/seed_0`.

Whole episodes without exploration, in the world of the agent's lifetime: hidden velocities,
normalisation and its own reservoir.
"""

from pathlib import Path

import numpy as np

from erl.cli import Sink, plural
from erl.errors import UserError, one_line
from erl.files import check_new_file, write_text, writing
from erl.lifetimes.evaluating_flags import EvaluationConfig
from erl.lifetimes.models import find_model, load_model
from erl.statistics import bootstrap_interval, interval_text, number_text
from erl.worlds.evaluation import Evaluation, evaluate_afresh


def evaluate_model(config: EvaluationConfig, sink: Sink) -> int:
    """Run the policy without exploration for whole episodes, and say what it reached.

    Raises:
        UserError: no such model, a file that cannot be written, an environment that fails.
    """
    spec, agent = load_model(find_model(str(config.model)))
    if config.out is not None:
        check_new_file(Path(config.out), config.overwrite)

    def watch(done: int) -> None:
        sink.status(f"evaluating: {done:,} of {plural(config.episodes, 'episode')}")

    try:
        found = evaluate_afresh({"": agent}, spec, config.episodes, config.seed, watch)[""]
    except Exception as e:
        said = one_line(e) or type(e).__name__
        raise UserError(f"{config.model} cannot be evaluated in {spec.task.env_id}: {said}") from e
    finally:
        sink.close()
    if config.out is not None:
        path = Path(config.out)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, _rows(found))
    sink.line(f"{summary(found)}, seed {config.seed}")
    if config.out is not None:
        sink.line(f"{config.out}: {plural(config.episodes, 'row')}")
    return 0


def summary(found: Evaluation) -> str:
    """What a policy reached, in one line."""
    returns = np.asarray(found.returns)
    # As `evaluate_policy` of Stable-Baselines3 gives it.
    spread = number_text(float(returns.std()))
    interval = interval_text(bootstrap_interval(returns, np.mean))
    values = {"median": np.median(returns), "least": returns.min(), "greatest": returns.max()}
    values["mean length"] = np.mean(found.lengths)
    said = ", ".join(f"{name} {number_text(float(value))}" for name, value in values.items())
    return (
        f"mean return {number_text(float(returns.mean()))}, standard deviation {spread}, "
        f"95 % interval of the mean {interval}, {said}; "
        f"{plural(len(returns), 'episode')}, {plural(found.steps, 'step')}"
    )


def _rows(found: Evaluation) -> str:
    """A table: episode, return, length."""
    rows = zip(found.returns, found.lengths)
    lines = [f"{n},{total!r},{length}" for n, (total, length) in enumerate(rows, 1)]
    return "\n".join(["episode,return,length", *lines, ""])
