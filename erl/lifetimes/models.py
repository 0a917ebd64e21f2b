"""Saved models: a trained agent as a zip, and beside it the specification of its lifetime."""

import json
import os
from pathlib import Path

from erl.errors import UserError, one_line
from erl.files import files_below, is_folder, write_text, writing
from erl.learners import Agent, load_agent
from erl.worlds.specification import LifetimeSpec, from_json, to_json

# How many agents of a folder an error lists at most.
SHOWN_AGENTS = 12


def save_model(path: Path, spec: LifetimeSpec, agent: Agent) -> None:
    """Write an agent and the specification of its lifetime.

    Args:
        path: without ending: `{path}.zip` and `{path}.json` are written.
        spec: of the lifetime.
        agent: as it was trained.

    Raises:
        UserError: they cannot be written.
    """
    text = json.dumps(to_json(spec), indent=1)
    with writing(path):
        agent.save(path.parent, path.name)
        write_text(path.parent / f"{path.name}.json", text)


def find_model(name: str) -> str:
    """The path without ending of the model that a user names.

    Raises:
        UserError: it is a folder, and the message names the agents in it; or it cannot be read.
    """
    model = name.removesuffix(".zip").removesuffix(".json")
    if not is_folder(model) or os.path.isfile(f"{model}.zip"):
        return model
    found = [str(p.with_suffix("")) for p in files_below(Path(model)) if p.suffix == ".zip"]
    if not found:
        raise UserError(f"{model} is a folder without saved agents")
    more = f" and {len(found) - SHOWN_AGENTS} more" if len(found) > SHOWN_AGENTS else ""
    raise UserError(
        f"{model} is a folder; --model takes one of {', '.join(found[:SHOWN_AGENTS])}{more}"
    )


def load_model(path: str | Path) -> tuple[LifetimeSpec, Agent]:
    """A saved agent, and the specification of its lifetime, which makes its environment:
    `spec.make_env()`.

    Args:
        path: of the model, with or without `.zip`; the specification lies beside it.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    stem = str(path).removesuffix(".zip")
    # Agents that were saved beside another have its specification: seed_0.rl.zip, seed_0.json.
    beside = [Path(f"{s}.json") for s in (stem, stem.rpartition(".")[0])]
    try:
        described = next((p for p in beside if p.is_file()), None)
        if described is None or not Path(f"{stem}.zip").is_file():
            missing = f"its specification {beside[0].name} beside it"
            raise UserError(f"no model {stem}.zip with {missing}")
        spec = _specification(described)
        return spec, load_agent(spec, Path(stem))
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"the model {stem}.zip cannot be read: {one_line(e)}") from e


def _specification(path: Path) -> LifetimeSpec:
    """The specification in a file.

    Raises:
        UserError: it holds something else.
    """
    try:
        return from_json(LifetimeSpec, json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, AttributeError, ValueError) as e:
        raise UserError(f"{path}, beside the model, does not say what its lifetime was") from e
