"""A study as a folder for other people, with a model card, and its way to the Hugging Face Hub.

The folder holds no database: that would tell names of machines and folders. It is complete or not
there. What is sent goes through the Hub's own client.
"""

import json
import re
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from erl.cli import Sink, installed
from erl.errors import UserError, one_line
from erl.files import files_below, folder_name, reading, to_yaml, writing
from erl.studies.commands import name_of, with_json
from erl.studies.configuration import EvolutionStudy, SingleStudy, StudyConfig, TestStudy
from erl.studies.flags import PushConfig
from erl.studies.notes import study_note
from erl.studies.records import records, trial_rows
from erl.studies.storage import open_storage
from erl.studies.study import COMMAND, Study
from erl.studies.tables import (
    AgentTable,
    agent_tables,
    few_seeds_of,
    to_frame,
    to_markdown,
    to_text_frame,
)
from erl.studies.winner import TESTED, WINNER, said_of_winner

MODELS = (".zip", ".json", ".pkl", ".mp4")


def push_study(config: PushConfig, sink: Sink) -> int:
    """Write a study into a folder, or upload that to a repository of the Hub.

    Raises:
        UserError: there is no such study, or the Hub does not take it.
    """
    client = None if config.repo is None else _client()
    name = name_of(open_storage(config.storage), config)
    study = Study(config.storage, name)
    if not study.trials("COMPLETE"):
        raise UserError(f"study {name!r} has no successful trial yet")
    models = Path(config.models) / folder_name(name)
    if client is None:
        folder = Path(config.folder or "")
        _write_folder(study, models, folder, None, sink)
        beside = ", ".join(sorted(p.name for p in folder.iterdir() if p.name != "README.md"))
        sink.line(f"{folder}: the model card README.md of {name}, and beside it {beside}")
        words = [installed("hf"), "upload", "USER/NAME", str(folder)]
        words += ["--private"] * config.private
        sink.line(f"upload it with the Hub's own command: {shlex.join(words)}")
        return 0
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "study"
        _write_folder(study, models, folder, config.repo, sink)
        sink.status(f"uploading to {config.repo}")
        try:
            client.create_repo(config.repo, private=config.private, exist_ok=True)
            client.upload_folder(repo_id=config.repo, folder_path=folder, commit_message=name)
        except Exception as e:  # of the network, of the Hub, of who is logged in
            raise UserError(
                f"{config.repo} cannot be uploaded: {one_line(e)}; --folder writes "
                f"the same to a folder"
            ) from e
        finally:
            sink.close()
    sink.line(f"https://huggingface.co/{config.repo}: {name}")
    return 0


def _client() -> Any:
    """The Hub's own client.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("huggingface_hub").HfApi()
    except ImportError:
        raise UserError(
            "--repo needs the package huggingface_hub: pip install huggingface_hub; --folder does "
            "not"
        ) from None


def _write_folder(study: Study, models: Path, folder: Path, repo: str | None, sink: Sink) -> None:
    """Write the folder of a study, whole or not at all.

    Raises:
        UserError: it is there already, it cannot be written, or the agents cannot be read.
    """
    with writing(folder):
        if folder.exists():
            raise UserError(f"{folder} exists: name a new folder")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".erl-") as parent:
            part = Path(parent) / folder.name
            part.mkdir()
            agents = _copy_models(models, part)
            if not agents and isinstance(study.config, TestStudy | SingleStudy):
                sink.line(
                    f"no trained agents in {models}: --models names the folder above; agents of a "
                    f"study that was renamed or copied are in a folder of its old name: rename it"
                )
            tables = agent_tables(study)
            _write_tables(study, tables, part)
            card = model_card(study, tables, agents, repo)
            (part / "README.md").write_text(card, encoding="utf-8")
            part.replace(folder)


def _copy_models(models: Path, folder: Path) -> list[str]:
    """Copy the agents of a study; the names of their files, without the ending.

    Raises:
        UserError: one of them cannot be read.
    """
    paths = [p for p in files_below(models) if p.suffix in MODELS]
    for path in paths:
        with reading(path):
            content = path.read_bytes()
        if path.suffix == ".json":
            content = without_machines(content.decode()).encode()
        target = folder / path.relative_to(models)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    # Agents that were saved beside another, seed_0.rl.zip, have no specification of their own.
    return [
        p.relative_to(models).with_suffix("").as_posix()
        for p in paths
        if p.suffix == ".zip" and p.with_suffix(".json").exists()
    ]


def _write_tables(study: Study, tables: list[AgentTable], folder: Path) -> None:
    """Write what the study holds, as tables, and its configuration."""
    lifetimes = records(study.address, study.name)
    with_json(lifetimes).to_csv(folder / "lifetimes.csv", index=False)
    trial_rows(study.trials()).to_csv(folder / "trials.csv", index=False)
    if tables:
        to_frame(tables).to_csv(folder / "arms.csv", index=False)
    attrs = study.optuna.user_attrs
    names = ["config", "versions", "commit", COMMAND, WINNER]
    names += [k for k in attrs if k.startswith(TESTED)]
    kept = {k: attrs[k] for k in names if k in attrs}
    text = json.dumps({"name": study.name, **kept}, indent=1, ensure_ascii=False)
    (folder / "study.json").write_text(without_machines(text) + "\n", encoding="utf-8")


# -- the card --


def model_card(study: Study, tables: list[AgentTable], agents: list[str], repo: str | None) -> str:
    """The text of README.md: what was run, its seeds, tables, commands and versions.

    Args:
        study: what it is about.
        tables: of its agents; none for an evolution.
        agents: names of saved agents in the folder.
        repo: the repository of the Hub; None where the folder stays here.
    """
    attrs, config = study.optuna.user_attrs, study.config
    parts = [f"---\n{to_yaml(_metadata(config, tables))}---", f"# {study.name}"]
    parts += ["Made with erl, which evolves reservoirs around agents that learn by reinforcement."]
    if config is not None:
        commit, winner = attrs.get("commit"), said_of_winner(study)
        parts += ["## What was run", study_note(config, study.trials(), commit, winner=winner)]
    parts += ["## Seeds", _seeds(study, config)]
    if tables:
        titles = [f"- {each.score.replace('_', ' ')}: {each.title}" for each in tables]
        parts += ["## Results", "\n".join(titles), to_markdown(to_text_frame(tables)).rstrip()]
        parts += ["*IQM* is the mean of the middle half of the seeds, *P* the share of pairs of "]
        parts[-1] += "seeds in which an agent beats the first one."
        if remark := few_seeds_of(tables):
            parts[-1] += f" {remark[0].upper()}{remark[1:]}."
    if agents:
        parts += ["## Run an agent", _snippet(agents, repo)]
    parts += ["## Commands", _commands(study, config)]
    parts += ["## Files", _files(tables, agents), "## Versions", _versions(attrs)]
    return "\n\n".join(parts) + "\n"


def _metadata(config: StudyConfig | None, tables: list[AgentTable]) -> dict[str, Any]:
    """What the Hub reads at the head of a card: tags, and the returns of each agent."""
    env_ids = () if config is None else config.environments
    found: dict[str, Any] = {
        "library_name": "erl",
        "tags": ["reinforcement-learning", "deep-reinforcement-learning", *env_ids],
    }
    # Of the final policies, if they were evaluated: the last table.
    if tables and len(env_ids) == 1:
        dataset = {"name": env_ids[0], "type": env_ids[0]}
        task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        found["model-index"] = [
            {
                "name": arm.name,
                "results": [
                    {
                        "task": task,
                        "dataset": dataset,
                        "metrics": [
                            {
                                "type": "mean_reward",
                                "name": "mean return",
                                "value": _mean(arm.scores),
                            }
                        ],
                    }
                ],
            }
            for arm in tables[-1].arms
        ]
    return found


def _mean(scores: Any) -> str:
    """`51.20 +/- 3.40`, as the Hub's cards of reinforcement learning have it: mean and standard
    deviation over seeds.
    """
    return f"{np.mean(scores):.2f} +/- {np.std(scores):.2f}"


def _seeds(study: Study, config: StudyConfig | None) -> str:
    """Which seeds the lifetimes had."""
    numbers = sorted({t.params["seed"] for t in study.trials("COMPLETE") if "seed" in t.params})
    if numbers:
        which = f"The numbers of the seeds are {', '.join(map(str, numbers))}."
    elif isinstance(config, EvolutionStudy):
        which = f"Every trial has the seeds 0 to {config.nb_seeds - 1} of the evolution."
    else:
        which = "They are not stored."
    return f"{which} All seeds of a lifetime are in `lifetimes.csv` and beside each model."


def _snippet(agents: list[str], repo: str | None) -> str:
    lines = ["```python", "from erl.lifetime import load_model"]
    folder = "."
    if repo is not None:
        lines.insert(1, "from huggingface_hub import snapshot_download")
        lines += ["", f'folder = snapshot_download("{repo}")']
        folder = "{folder}"
    path = f'{"f" * (repo is not None)}"{folder}/{agents[0]}"'
    lines += ["", f"spec, agent = load_model({path})"]
    lines += ["env = spec.make_env()  # seen through the agent's own reservoir, if it has one"]
    lines += ["observation, _ = env.reset(seed=1)"]
    lines += ["action, _ = agent.predict(observation, deterministic=True)", "```"]
    more = "" if len(agents) == 1 else f"\n\nThe folder has {len(agents)} agents."
    return "\n".join(lines) + more


def _commands(study: Study, config: StudyConfig | None) -> str:
    """The command that began the study, and that of the evolution that it tests."""
    found = []
    if isinstance(config, TestStudy):
        found.append(_evolution_command(study))
    found.append(study.optuna.user_attrs.get(COMMAND))
    known = [without_machines(command) for command in found if command]
    if not known:
        return "The study does not store its command. `study.json` has its whole configuration."
    return "\n".join(["```sh", *known, "```"])


def without_machines(text: str) -> str:
    """A command, or JSON, in which no server and no cluster is named."""
    # Not files, as in sqlite:///studies.db, and not the study behind the address.
    text = re.sub(
        r"\b(?!https?:)[\w+]+://[^/\s,#\"'][^\s,#\"']*|\bray:[\w.-]+:\d+", "ADDRESS", text
    )
    setting = r"(ray[_-]address[\"']?\s*[=: ]\s*[\"']?)(?!null)[^\s,\"'}]+"
    return re.sub(setting, r"\1ADDRESS", text)


def _evolution_command(study: Study) -> str | None:
    """The command of the evolution that a test is of, if that is in the same storage."""
    name = re.split(r"_(?:trial|mean)_\d+_", study.name)[0]
    with suppress(UserError):
        evolution = Study(study.address, name)
        if isinstance(evolution.config, EvolutionStudy):
            return evolution.optuna.user_attrs.get(COMMAND)
    return None


def _files(tables: list[AgentTable], agents: list[str]) -> str:
    rows = {"`study.json`": "the whole configuration, versions and commit"}
    rows["`trials.csv`, `lifetimes.csv`"] = "every trial, and every lifetime with its curve"
    if tables:
        rows["`arms.csv`"] = "the tables above, in full"
    if agents:
        rows["`….zip`, `….json`"] = "agents, and the specifications of their lifetimes"
    return "\n".join(
        ["| file | what it is |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    )


def _versions(attrs: Mapping[str, Any]) -> str:
    found = {**attrs.get("versions", {}), "commit of erl": attrs.get("commit") or "not stored"}
    return "\n".join(f"- {name} {value}" for name, value in found.items())
