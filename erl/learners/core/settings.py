"""Learner settings as files spell them: YAML or JSON, in plain form or in the SB3 Zoo's."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from erl.errors import UserError, nearest

Schedule = Callable[[float], float]

# Arguments of Stable-Baselines3's algorithms that this project sets itself.
OURS = frozenset(
    {
        "env",
        "seed",
        "tensorboard_log",
        "verbose",
        "device",
        "_init_setup_model",
        "stats_window_size",
    }
)

# Keys of the SB3 Zoo's files that speak of its own training script. They do not apply here and are
# left out, with a note, instead of being refused.
ZOO_ONLY = frozenset(
    {
        "n_timesteps",
        "env_wrapper",
        "vec_env_wrapper",
        "callback",
        "frame_stack",
        "env_kwargs",
        "monitor_kwargs",
    }
)


def load_settings(path: str, env_id: str) -> tuple[dict[str, Any], list[str]]:
    """Read a learner's settings.

    Args:
        path: a YAML or JSON file: keyword arguments, or sections of them named after environments
            (SB3 Zoo).
        env_id: whose section to take.

    Returns:
        The settings, and the names of the Zoo's keys that were left out.

    Raises:
        UserError: the file cannot be read, or has no section for the environment.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the learner's settings: {e}") from e
    except (yaml.YAMLError, ValueError) as e:  # ValueError: a date that is none, bad JSON
        raise UserError(f"{path} is not valid: {' '.join(str(e).split())}") from e
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds no settings: expected names and values, found a {type(data).__name__}"
        )
    if data and all(
        isinstance(v, dict)
        and k not in ("policy_kwargs", "normalize", "normalize_kwargs", "replay_buffer_kwargs")
        for k, v in data.items()
    ):
        if env_id not in data:
            raise UserError(f"{path} has no section for {env_id}{nearest(env_id, data)}")
        data = data[env_id]
    data = {str(k): v for k, v in data.items()}
    left_out = sorted(ZOO_ONLY & data.keys())
    settings = {k: v for k, v in data.items() if k not in ZOO_ONLY}
    try:
        json.dumps(settings)
    except TypeError as e:
        raise UserError(f"{path}: {e}") from e
    return settings, left_out


def parse_value(value: Any) -> Any:
    """Evaluate the small expressions of the Zoo's files,
    `dict(net_arch=[64], activation_fn=nn.ReLU)`; others stay.

    Only literals, `dict(...)`, `list(...)` and the names of `torch.nn` are understood; nothing is
    executed.

    Raises:
        UserError: anything else in an expression.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(
        ("dict(", "list(", "[", "{", "nn.")
    ):
        return value
    try:
        return _evaluate(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as e:
        said = " ".join(value.split())
        raise UserError(f"cannot understand {said[:200]!r}: {e or type(e).__name__}") from e


def _evaluate(node: ast.AST) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(
            k.arg for k in keywords
        ):
            return {k.arg: _evaluate(k.value) for k in keywords}
        case ast.Call(func=ast.Name(id="list"), args=[inner], keywords=[]):
            return list(_evaluate(inner))
        case ast.Attribute(value=ast.Name(id="nn"), attr=name):
            return activation(name)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_evaluate(e) for e in elements]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_evaluate(k): _evaluate(v) for k, v in zip(keys, values) if k}
        case _:
            return ast.literal_eval(node)


def activation(name: Any) -> Any:
    """The activation of `torch.nn` of this name (`ReLU`, `nn.ReLU`, `tanh` …); a class stays."""
    from torch import nn  # a second that `--help` and bad flags need not wait for

    if isinstance(name, type):
        return name
    known = {
        k.casefold(): v
        for k, v in vars(nn).items()
        if isinstance(v, type) and issubclass(v, nn.Module)
    }
    found = known.get(name.removeprefix("torch.").removeprefix("nn.").casefold())
    if found is None:
        raise UserError(
            f"unknown activation {name!r}{nearest(name, [v.__name__ for v in known.values()])}"
        )
    return found


def schedule(value: Any) -> float | Schedule:
    """A number, or the Zoo's `lin_3e-4`: linear to zero over the remaining progress (1 at the
    start, 0 at the end).
    """
    if isinstance(value, str):
        kind, _, initial = value.rpartition("_")
        try:
            start = float(initial)
        except ValueError as e:
            raise UserError(
                f"cannot understand the schedule {value!r}: a number, or lin_NUMBER"
            ) from e
        if kind == "lin":
            return LinearSchedule(start)
        if kind:
            raise UserError(f"unknown schedule {value!r}: a number, or lin_NUMBER")
        return start
    return value


class LinearSchedule:
    """`start` times the remaining progress."""

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, progress_remaining: float) -> float:
        """Value at this remaining progress, 1 at the start and 0 at the end."""
        return self.start * progress_remaining
