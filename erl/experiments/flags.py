"""Flags of all scripts, and what their values mean.

Nothing here needs a library that takes long to load: `--help`, and flags that cannot be, are
answered at once.
"""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from erl.cli import option
from erl.errors import UserError
from erl.executors.machines import check_cluster
from erl.files import check_writable, parse_yaml, writing
from erl.learners import AES_RL_FILES, setting_names
from erl.search.choices import check_choice
from erl.studies import DEFAULT_STORAGE

MAX_SEED = 10**6
TRACKERS = ("wandb", "mlflow")

# Sections of the help: title -> flags, whichever of them a command has.
GROUPS: dict[str, tuple[str, ...]] = {
    "task": (
        *("env_id", "env_type", "HP_env_type", "env_ids", "sets", "env_kwargs", "del_obs"),
        *("evolved", "study", "h_test", "steps", "training_steps", "HP_training_steps"),
        *("nb_seeds", "seeds"),
        *("seed", "ep_eval", "arms", "controls", "allow_seen", "published_code"),
    ),
    "reservoirs": (
        *("reservoir", "nb_res", "units", "obs_units", "skip_c", "feed_action", "reset_res"),
        *("fixed_iss", "bias", "bias_connectivity", "context", "context_set"),
    ),
    "search": (
        *("nb_trials", "sampler", "popsize", "fitness", "evolve", "min_sr", "max_sr", "min_lr"),
        *("max_lr", "min_iss", "max_iss", "pruner", "restarts", "use_pruned", "warm_start"),
        *("finalists", "finalist_seeds"),
    ),
    "learner": ("learner", "learner_config", "set", "engine"),
    "CEM-RL and AES-RL": (
        *("actor_workers", "critic_workers", "parallel_critic", "mean_update"),
        *("mean_update_param", "var_update", "fixed_var_n", "rl_ratio", "mean_evaluations"),
        *("actor_executor", "ray_address", "ray_port", "redis_password"),
    ),
    "where it runs": ("workers", "cluster", "max_retries", "checkpoint_minutes", "dry_run"),
    "storage": (
        "storage",
        "results_storage",
        "runs",
        "logs",
        "models",
        "artifacts",
        "video",
        "track",
    ),
}


@dataclass(frozen=True)
class RunFlags:
    """Flags that every script takes: where its study is stored, and how it is computed."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = GROUPS

    storage: str = option(DEFAULT_STORAGE, "study database: any Optuna address, or a journal file")
    workers: int | None = option(
        None, "processes that train at the same time, one core each; by default all cores"
    )
    cluster: str | None = option(
        None,
        "train on a Ray cluster instead of this machine: ray, ray:HOST:PORT or ray://HOST:PORT",
    )
    max_retries: int = option(
        2,
        "how often lifetimes start again after their worker process died, and trials after the "
        "command that ran them died",
    )
    checkpoint_minutes: float = option(
        5.0, "minutes between checkpoints of running lifetimes, for learners that write them"
    )
    dry_run: bool = option(False, "say what would be done and how long it takes, and stop")
    runs: str = option("runs", "folder of checkpoints")
    logs: str = option("logs", "folder of TensorBoard logs")
    track: str | None = option(
        None,
        "send what TensorBoard gets to Weights & Biases or MLflow too",
        choices=TRACKERS,
    )
    artifacts: bool = option(
        True, "attach curve and model of each trial to it, in a folder beside the database"
    )
    published_code: bool = option(
        False,
        "behave like the published code: of ER-MRL, no action in the reservoir, seeds 0, 1, 2, …, "
        "and in an evolution a bias on a tenth of the neurons and scores with the reward of a "
        "random step; of ERL-Re2, CEM-RL, P-CEM-RL, ACEM-RL, (1+1)-ES and AES-RL, the settings in "
        "which it differs",
    )

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_count("workers", self.workers)
        if self.cluster is not None:
            check_cluster(self.cluster)
        check_number("max_retries", self.max_retries)
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise UserError(
                f"--checkpoint_minutes must be a number of at least 0, not "
                f"{self.checkpoint_minutes}"
            )
        check_folder("runs", self.runs)
        check_folder("logs", self.logs)
        if self.track is not None:
            check_tracker(self.track)

    def subject(self) -> str:
        """What the study's name begins with."""
        raise NotImplementedError


def env_kwargs_option(where: str = "") -> Any:
    """The flag `--env_kwargs` of scripts that make environments."""
    return option(
        None,
        "arguments of the environment in YAML or JSON, such as '{max_episode_steps: 100}', or a "
        f".yaml, .toml or .json file of them{where}",
        holds="mapping",
    )


def context_option() -> Any:
    """The flag `--context`."""
    return option(None, "a context of yours in place of reservoirs, MODULE:CLASS")


def context_set_option() -> Any:
    """The flag `--context_set`."""
    return option(None, "settings of that context, NAME=VALUE,…", holds="settings")


@dataclass(frozen=True)
class AgentFlags(RunFlags):
    """Flags of scripts whose trained agents are kept."""

    models: str = option("models", "folder of trained models")
    video: bool = option(
        False, "at the end, film the agent of each kind whose training return is the middle one"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder("models", self.models)


# -- values --


def check_folder(name: str, folder: str) -> None:
    """Refuse a folder that cannot be written."""
    with writing(f"--{name} {folder!r}"):
        check_writable(folder)


def check_tracker(name: str) -> None:
    """Refuse a service that is unknown, or whose package is not installed."""
    check_choice("--track", name, TRACKERS)
    found = find_spec(name)
    if found is None or found.origin is None:  # the folder wandb/ of its runs is no package
        raise UserError(f"--track {name} needs the package {name}: pip install {name}")


def check_name(name: str) -> None:
    """Refuse a name that could lead out of the run folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name) or ".." in name:
        raise UserError(
            f"--h_test {name!r} is not a valid name: use at most 100 letters, digits and "
            f"_ . + = -, first a letter, a digit or _, and no two dots side by side"
        )


def check_count(name: str, value: int) -> None:
    """Refuse zero and negative counts."""
    if value < 1:
        raise UserError(f"--{name} must be at least 1, not {value}")


def check_number(name: str, value: int) -> None:
    """Refuse negative numbers."""
    if value < 0:
        raise UserError(f"--{name} must be at least 0, not {value}")


def check_seeds(seed: int | None, nb_seeds: int) -> None:
    """Refuse a negative root seed, and more seeds than have numbers."""
    check_number("seed", seed or 0)
    if nb_seeds > MAX_SEED:
        raise UserError(f"--nb_seeds must be at most {MAX_SEED}, not {nb_seeds}")


def seed_indices(nb_seeds: int) -> list[int]:
    """Numbers of the seeds of a command that repeats lifetimes: in a SLURM array the task's own,
    else the first so many.

    Raises:
        UserError: the array's index is no such number.
    """
    task_id = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task_id is None:
        return list(range(nb_seeds))
    if not (re.fullmatch("[0-9]{1,7}", task_id) and int(task_id) <= MAX_SEED):
        raise UserError(
            f"SLURM_ARRAY_TASK_ID must be a seed number from 0 to {MAX_SEED}, not {task_id!r}"
        )
    return [int(task_id)]


def more_seeds() -> str:
    """How a command that repeats lifetimes gets more of them, as the end of a line; in a SLURM
    array other tasks have them.
    """
    return "" if "SLURM_ARRAY_TASK_ID" in os.environ else "; raise --nb_seeds for more"


def study_name(subject: str, h_test: str, training_steps: int) -> str:
    """ER-MRL's: `{env_id}_{h_test}_{thousands of steps}k_steps`, with the number of reservoirs
    behind the environment or set.
    """
    return f"{subject}_{h_test}_{thousands(training_steps)}_steps"


def thousands(steps: int) -> str:
    """`300k`; ER-MRL rounds down, which says nothing below one thousand."""
    return f"{steps // 1000}k" if steps >= 1000 else f"{steps / 1000:g}k"


def read_settings(
    path: str | None,
    env_kwargs: str | None,
    env_ids: Sequence[str],
    note: Callable[[str], None],
    learner: str,
    given: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The learner's settings from `--learner_config`, and the environments' arguments from
    `--env_kwargs` or else from that file.

    Args:
        path: of the file; None for no settings.
        env_kwargs: the flag; None where it is not given.
        env_ids: the environments that they are for.
        note: is given a line for each thing that a user should know.
        learner: whom they are for.
        given: settings that flags give, which go before the file.

    Raises:
        UserError: there is no such environment, something cannot be read, the file has different
            settings or arguments for these environments, or it is of AES-RL's published code and
            for another learner.
    """
    from erl.learners.core.settings_file import load_settings
    from erl.worlds.arguments import Arguments, parse_arguments, refuse_rendering
    from erl.worlds.tasks import find

    for env_id in env_ids:  # one that is misspelt has no section either
        find(env_id)
    files = [load_settings(path, env_id) for env_id in env_ids]
    if any(file.settings != files[0].settings for file in files):
        raise UserError(
            f"{path} has different settings for {' and '.join(env_ids)}, but a trial has one "
            f"learner"
        )
    for line in dict.fromkeys(line for file in files for line in file.notes):
        note(line)
    settings = files[0].settings
    mine = learner in AES_RL_FILES
    if settings.get("algorithm") in AES_RL_FILES or (mine and "algorithm" in settings):
        from erl.learners.core.aes_rl_files import adopt

        settings, notes = adopt(learner, settings, setting_names(learner) if mine else (), given)
        for line in notes:
            note(f"{path}: {line}")
    arguments = [Arguments(file.env_kwargs) for file in files]
    if env_kwargs is not None:
        if any(arguments):
            note(f"{path}: --env_kwargs goes before its env_kwargs")
        return settings, dict(parse_arguments(env_kwargs))
    if any(each != arguments[0] for each in arguments):
        raise UserError(
            f"{path} has different env_kwargs for {', '.join(env_ids)}; --env_kwargs gives all of "
            f"them the same"
        )
    refuse_rendering(arguments[0])
    if arguments[0]:
        note(f"{path}: environments are made with its env_kwargs {arguments[0]}")
    return settings, dict(arguments[0])


def parse_settings(text: str | None, flag: str = "--set") -> dict[str, Any]:
    """Settings as `--set` spells them: `NAME=VALUE,NAME=VALUE`, values as in YAML; commas in
    brackets and quotes belong to a value. A mapping in YAML or JSON, `{NAME: VALUE}`, means the
    same, and may stand for a part.

    Raises:
        UserError: something has no name or two values, or a value cannot be read.
    """
    settings: dict[str, Any] = {}
    parts = _parts(text or "")
    if (text or "").lstrip().startswith("{"):
        with suppress(ValueError):  # quotes within YAML may mean something else than here
            parse_yaml(text or "")
            parts = [text or ""]
    for part in parts:
        found = _mapping(part, flag) if part.lstrip().startswith("{") else _setting(part, flag)
        for name in found:
            if name in settings:
                raise UserError(f"{flag} gives {name} twice")
        settings |= found
    return settings


def _mapping(text: str, flag: str) -> dict[str, Any]:
    """Settings written as `{NAME: VALUE}`."""
    try:
        settings: dict[str, Any] = parse_yaml(text)
        json.dumps(settings)  # what cannot be stored, such as a date, is no setting
    except (TypeError, ValueError) as e:
        raise UserError(f"{flag} does not understand {text!r}: {e}") from e
    for key in settings:
        if not (isinstance(key, str) and key.isidentifier()):
            raise UserError(f"{flag} takes {{NAME: VALUE}}, and {key!r} is not a name")
    return settings


def _setting(part: str, flag: str) -> dict[str, Any]:
    """A setting written as `NAME=VALUE`."""
    name, equals, value = (word.strip() for word in part.partition("="))
    if not equals or not name.isidentifier():
        raise UserError(f"{flag} takes NAME=VALUE,NAME=VALUE, and does not understand {part!r}")
    try:
        settings = {name: parse_yaml(value)}
        json.dumps(settings)
    except (TypeError, ValueError) as e:
        raise UserError(f"{flag} does not understand the value of {part!r}: {e}") from e
    return settings


def _parts(text: str) -> list[str]:
    """Cut a text at its commas, but for those within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def check_context(context: str | None, context_set: str | None) -> None:
    """Refuse a context that names no class, and settings without a context."""
    if context is None and context_set is not None:
        raise UserError("--context_set needs --context")
    if context is not None and not re.fullmatch(r"[\w.]+:\w+", context):
        raise UserError(f"--context must be MODULE:CLASS, not {context!r}")
    parse_settings(context_set, "--context_set")
