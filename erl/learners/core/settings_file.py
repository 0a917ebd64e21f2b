"""Learner settings as files spell them, in plain form or in the SB3 Zoo's."""

import ast
import json
from typing import Any, NamedTuple

from erl.errors import UserError, nearest, one_line
from erl.files import read_mapping

# Keys of the SB3 Zoo's files that configure its own training script. They do not apply here and are
# left out, with a note, instead of being refused.
ZOO_ONLY = frozenset(
    {
        "n_timesteps",
        "env_wrapper",
        "vec_env_wrapper",
        "callback",
        "frame_stack",
        "monitor_kwargs",
    }
)
# Settings that are mappings themselves, so that a file which holds nothing else has no sections.
_MAPPINGS = frozenset(
    {
        "policy_kwargs",
        "normalize",
        "replay_buffer_kwargs",
        "rollout_buffer_kwargs",
        "env_kwargs",
        "monitor_kwargs",
    }
)


class SettingsFile(NamedTuple):
    """What a file of settings has for one environment.

    Attributes:
        settings: of the learner.
        env_kwargs: keyword arguments of the environment; empty where the file has none.
        notes: lines for the user: which section was taken, and what was left out.
    """

    settings: dict[str, Any]
    env_kwargs: dict[str, Any]
    notes: tuple[str, ...]


def load_settings(path: str | None, env_id: str) -> SettingsFile:
    """Read a learner's settings.

    Args:
        path: a file (see `read_mapping`): keyword arguments, or sections of them named after
            environments, as in the SB3 Zoo. A section `default` is for environments that have none.
            None for no file and no settings.
        env_id: the environment whose section is taken; `module:Name-v0` has the section `Name-v0`
            unless there is one under its full name.

    Raises:
        UserError: the file cannot be read, names a key twice, or has no section for the
            environment.
    """
    if path is None:
        return SettingsFile({}, {}, ())
    data = read_mapping(path, "the learner's settings")
    notes: list[str] = []
    if data and all(isinstance(v, dict) and k not in _MAPPINGS for k, v in data.items()):
        section = _section(path, data, env_id)
        if section == "default":
            notes.append(f"{path} has no section for {env_id}: its section default is taken")
        data = data[section]
    data = {str(k): v for k, v in data.items()}
    env_kwargs = parse_value(data.pop("env_kwargs", None)) or {}
    if not isinstance(env_kwargs, dict):
        raise UserError(f"{path}: env_kwargs must be names and values, not {env_kwargs!r}")
    if left_out := sorted(ZOO_ONLY & data.keys()):
        notes.append(
            f"{path}: these settings do not apply here and are ignored: {', '.join(left_out)}"
        )
    settings = {k: v for k, v in data.items() if k not in ZOO_ONLY}
    try:
        json.dumps([settings, env_kwargs])
    except (TypeError, ValueError) as e:
        raise UserError(f"{path}: {e}") from e
    return SettingsFile(settings, env_kwargs, tuple(notes))


def _section(path: str, sections: dict[Any, Any], env_id: str) -> str:
    for name in (env_id, env_id.rpartition(":")[2], "default"):
        if name in sections:
            return name
    raise UserError(f"{path} has no section for {env_id}{nearest(env_id, map(str, sections))}")


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
        text = one_line(value)
        raise UserError(f"cannot understand {text[:200]!r}: {e or type(e).__name__}") from e


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
    if not isinstance(name, str):
        raise UserError(f"activation_fn is the name of a class in torch.nn, not {name!r}")
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
