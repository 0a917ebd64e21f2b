"""Films of trained agents, beside their models and in the dashboard."""

import os
from pathlib import Path

from erl.cli import Sink, command
from erl.errors import UserError
from erl.experiments.flags import AgentFlags
from erl.lifetimes.models import load_model
from erl.statistics import number_text
from erl.studies.records import middle_trials
from erl.studies.study import Study

# Width of a frame, in pixels: a panel of the same width stands beside it.
WIDTH = 400


def model_name(params: dict[str, object]) -> str:
    """Where the model of a trial lies, below the folder of its study: `ARM/seed_0`, `seed_0`."""
    seed = f"seed_{params['seed']}"
    return f"{params['arm']}/{seed}" if "arm" in params else seed


def film_command(flags: AgentFlags, folder: str, params: dict[str, object]) -> str:
    """The command that films the agent of a trial with these parameters."""
    return command("film", "--model", f"{flags.models}/{folder}/{model_name(params)}")


def say_film(study: Study, flags: AgentFlags, folder: str, arm: str | None, sink: Sink) -> None:
    """Say how to film an agent: of an arm, or of all, the one with the middle training return."""
    middle = middle_trials(study)
    chosen = [t for t in middle if arm is None or t.params.get("arm") == arm]
    for trial in chosen[:1] or middle[:1]:
        line = film_command(flags, folder, trial.params)
        if os.path.isfile(Path(flags.models) / folder / f"{model_name(trial.params)}.zip"):
            sink.line(f"film it:  {line}")


def film_agents(study: Study, flags: AgentFlags, folder: str, sink: Sink) -> None:
    """Film one agent of each arm: the one with the middle training return, neither the best nor a
    chosen one. What cannot be filmed is said.

    Args:
        study: a test, or a training of one learner.
        flags: name the folder of models.
        folder: the study's, below it.
        sink: for lines and progress.
    """
    from erl.lifetimes.film import film_agent

    for trial in middle_trials(study):
        name = model_name(trial.params)
        path = Path(flags.models) / folder / f"{name}.mp4"
        try:
            spec, agent = load_model(path.with_name(path.stem))
            episode = film_agent(spec, agent, path, panel=True, width=WIDTH, sink=sink)
            sink.line(f"film:     {path}, return {number_text(float(episode.rewards.sum()))}")
            if flags.artifacts:
                study.attach(path, trial_id=trial._trial_id)
        except (UserError, OSError) as e:
            sink.line(f"no film of trial {trial.number}, {name}: {e}")
