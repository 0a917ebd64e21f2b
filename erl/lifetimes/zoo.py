"""Saved agents in the RL Baselines3 Zoo: a folder that its `enjoy` script plays.

The Zoo makes the environment by its name and wraps it with what `env_wrapper` in `config.yml`
names. `as_trained` is that wrapper for agents of this project: deleted velocities, stacked frames
and the agent's own reservoir.
"""

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from erl.errors import UserError
from erl.files import to_yaml, write_text, writing
from erl.learners import zoo_name
from erl.lifetimes.models import load_model
from erl.worlds.specification import LifetimeSpec, from_json, to_json

WRAPPER = "erl.lifetimes.zoo.as_trained"


def as_trained(env: gym.Env, lifetime: Mapping[str, Any]) -> gym.Env:
    """The environment as the policy of a saved agent sees it; the Zoo's `env_wrapper`.

    Args:
        env: made by Gymnasium, of the task on which the agent was trained.
        lifetime: the specification of its lifetime, as it lies beside the model.

    Raises:
        UserError: `env` is another environment, or the specification is of another version.
    """
    spec = from_json(LifetimeSpec, lifetime)
    made = None if env.spec is None else env.spec.id
    if made != _env_id(spec):
        raise UserError(f"the agent was trained in {_env_id(spec)}, and this is {made}")
    return spec.wrap_env(env)


def export(model: str | Path, folder: str | Path) -> str:
    """Write a saved agent as the Zoo keeps its own, so that `rl_zoo3.enjoy` plays it.

    Args:
        model: path of the model, with or without `.zip`.
        folder: the Zoo's folder of agents; `{folder}/{algorithm}/{env_id}_{n}` is new in it.

    Returns:
        The command that plays the agent.

    Raises:
        UserError: there is no such model, the Zoo does not know its algorithm, or the folder
            cannot be written.
    """
    spec, _ = load_model(model)  # it can be read
    algorithm = zoo_name(spec)
    stem, name = str(model).removesuffix(".zip"), _env_id(spec).replace("/", "-")
    statistics = Path(f"{stem}.vecnormalize.pkl")
    kwargs = to_json(spec.task.kwargs)  # which of the two files is read depends on the script
    settings = {
        "env_wrapper": [{WRAPPER: {"lifetime": to_json(spec)}}],
        "env_kwargs": kwargs,
        "normalize": {"norm_obs": True, "norm_reward": False} if statistics.is_file() else False,
    }
    texts = {
        "config.yml": to_yaml(settings),
        "args.yml": to_yaml(
            {"env": _env_id(spec), "algo": algorithm, "env_kwargs": kwargs or None}
        ),
    }
    with writing(folder):
        number = _new_number(Path(folder) / algorithm, name)
        target = Path(folder) / algorithm / f"{name}_{number}"
        (target / name).mkdir(parents=True)
        for file, text in texts.items():
            write_text(target / name / file, text)
        if statistics.is_file():
            shutil.copyfile(statistics, target / name / "vecnormalize.pkl")
        shutil.copyfile(f"{stem}.zip", target / f"{name}.zip")  # last: it is what the Zoo looks for
    module = spec.task.env_id.rpartition(":")[0]
    words = [
        "--algo",
        algorithm,
        "--env",
        _env_id(spec),
        "-f",
        str(folder),
        "--exp-id",
        str(number),
    ]
    words += ["--gym-packages", module] if module else []
    return shlex.join(["python", "-m", "rl_zoo3.enjoy", *words])


def _env_id(spec: LifetimeSpec) -> str:
    """Gymnasium's name of the environment, without the module in front of it."""
    return spec.task.env_id.rpartition(":")[2]


def _new_number(folder: Path, name: str) -> int:
    """The first number from 1 that no agent of this environment has."""
    number = 1
    while (folder / f"{name}_{number}").exists():
        number += 1
    return number
