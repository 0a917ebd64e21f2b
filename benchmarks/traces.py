"""Does a version of the code compute what another computed, bit for bit?

    python benchmarks/traces.py record --tree ../old --out traces/old
    python benchmarks/traces.py record --tree . --out traces/new
    python benchmarks/traces.py compare traces/old traces/new

`record` runs small jobs through the public commands of a tree: every script, every kind of learner,
every sampler, a pruner, hidden velocities, runs that are killed or interrupted and continued. Then
it stores what the study databases and the saved models hold, read with Optuna and PyTorch and not
with the tree's own code. `compare` prints every difference and ends with exit code 1 if there is
one. What may differ is declared below. Bits agree on one machine under one setting only.
"""

import argparse
import hashlib
import io
import json
import math
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erl.cli import exit_after
from erl.errors import UserError
from erl.executors.jobs import ONE_THREAD

# -- what may differ --

# Of studies, trials, records and settings, wherever the key stands. Times and versions; who ran a
# trial, and how often it was lost; traces of calls, which hold paths and line numbers.
IGNORED = frozenset(
    {"seconds", "versions", "commit", "traceback", "owner", "lost", "config_version", "uid"}
)
IGNORED_PREFIXES = ("lease:", "dashboard:", "artifacts:")
# A lifetime that is pruned goes on until it hears of it, some steps beyond the point or some more.
# What it was is the same; how far it came is not.
OF_PRUNED = frozenset({"spec"})
# Keys that only the newer version writes, and keys that have another name in it (new: old).
ADDED = frozenset(
    {"kind", "study:metric_names", "intermediate_values"}
    | {"bias", "bias_connectivity", "env_kwargs", "feed_action"}
)
RENAMED: dict[str, str] = {}
# Attributes of trials that version 0.2.0 kept among those of the user.
MOVED = ("lifetime:", "owner", "error")
# A key without a value (null) is as good as none: studies of every kind store the same keys now.
# `auto` may be stored as what it stands for.
ENGINES = {"PPO": "cohort", "ERL-Re2": "cohort"}
OTHER_ENGINE = "sb3"


# -- the jobs --


@dataclass(frozen=True)
class Trace:
    """Commands that run one after the other in a folder of their own.

    Attributes:
        name: of the trace and of its folder.
        commands: script and flags; `erl` stands for `python -m erl`.
        interrupted: the signal that ends the first command in the middle of a lifetime; the command
            is given again then.
        like: the trace before that has the same study, not interrupted.
    """

    name: str
    commands: tuple[str, ...]
    interrupted: signal.Signals | None = None
    like: str | None = None


# The files of settings, which lie in every trace's folder.
FILES = {
    "ppo.yaml": "n_steps: 128\nbatch_size: 64\nn_epochs: 2\n",
    "re2.yaml": "init_steps: 200\nlearning_starts: 150\nbatch_size: 16\ntime_steps: 20\n"
    "theta: 0.5\npr: 8\nsync_period: 1\nfrac_frames_train: 0.1\neval_freq: 500\nbuffer_size: 600\n",
    "td3.yaml": "learning_starts: 100\nbatch_size: 32\npolicy_kwargs: {net_arch: [32, 32]}\n",
}
TEST = "--workers 1 --checkpoint_minutes 0 --h_test t"
SINGLE = f"erl {TEST} --ep_eval 2"
EVOLVE = f"{TEST} --ep_eval 2 --units 12"
PPO = "--learner_config ppo.yaml"
RE2 = "--learner ERL-Re2 --learner_config re2.yaml"
PENDULUM = "--env_id Pendulum-v1"
# Learners that have had an engine of this project since, which `auto` means.
SB3 = f"--engine sb3 --learner_config td3.yaml {PENDULUM}"
# Commands that are also killed.
HALF_CHEETAH = (
    f"evolve_res.py {EVOLVE} {PPO} --env_id HalfCheetah-v4 --sampler Cmaes --training_steps 2048 "
    "--nb_trials 6 --popsize 4 --nb_seeds 2"
)
HOPPER = f"{SINGLE} {RE2} --env_id Hopper-v4 --steps 2500 --nb_seeds 2"

TRACES = (
    Trace(
        "one_reservoir",
        (
            HALF_CHEETAH,
            f"test.py {TEST} --env_id HalfCheetah-v4 --HP_training_steps 2048 "
            "--training_steps 1024 --nb_seeds 1 --controls",
        ),
    ),
    Trace(
        "several_reservoirs",
        (
            # Without --units, which are searched here.
            f"evolve_multi_res.py {TEST} --ep_eval 2 {PPO} --env_id CartPole-v1 --del_obs True "
            "--nb_res 2 --skip_c True --sampler Tpe --fitness final_eval --training_steps 512 "
            "--nb_trials 14 --nb_seeds 2 --evolve units,bias,learner.learning_rate=1e-4:1e-2:log "
            "--obs_units 8 --reset_res False --seed 3",
            f"test_multi_res.py {TEST} --env_id CartPole-v1 --nb_res 2 "
            "--HP_training_steps 512 --training_steps 1024 --nb_seeds 2",
        ),
    ),
    Trace(
        "generalization",
        (
            f"evolve_generalization.py {EVOLVE} {PPO} --env_ids Hopper-v4,Walker2d-v4 "
            "--nb_res 2 --sampler Random --training_steps 512 --nb_trials 4 --nb_seeds 2 "
            "--published_code True",
            f"test_generalization.py {TEST} --HP_env_type Hopper-v4+Walker2d-v4 "
            "--nb_res 2 --env_id Swimmer-v4 --HP_training_steps 512 --training_steps 2048 "
            "--nb_seeds 2",
        ),
    ),
    Trace(
        "pruned",
        (
            f"evolve_res.py {EVOLVE} {PPO} --env_id CartPole-v1 --del_obs True "
            "--sampler Random --pruner median --training_steps 1280 --nb_trials 16 --popsize 4 "
            "--nb_seeds 2",
            f"evolve_res.py {EVOLVE} {PPO} --h_test warm --env_id CartPole-v1 --del_obs True "
            "--sampler Cmaes --pruner median --warm_start CartPole-v1_t_1k_steps "
            "--training_steps 1280 --nb_trials 12 --popsize 4 --nb_seeds 2 --restarts bipop",
        ),
    ),
    Trace(
        "reservoirs_around_erl_re2",
        (
            f"evolve_res.py {EVOLVE} {PENDULUM} {RE2} --sampler Cmaes "
            "--training_steps 1600 --nb_trials 4 --popsize 4 --nb_seeds 1",
            f"test.py {TEST} {PENDULUM} --HP_training_steps 1600 --training_steps 2000 "
            "--nb_seeds 1",
        ),
    ),
    Trace(
        "single",
        (
            HOPPER,
            f"{SINGLE} --learner PPO {PPO} --env_id HalfCheetah-v4 --steps 3000 --nb_seeds 3",
            f"{SINGLE} --learner PPO {PPO} --engine sb3 --env_id CartPole-v1 --del_obs True "
            "--steps 1024 --nb_seeds 2",
            f"{SINGLE} --learner A2C --env_id CartPole-v1 --steps 500 --nb_seeds 2",
        ),
    ),
    Trace(
        "off_policy",
        (
            f"{SINGLE} --learner TD3 {SB3} --steps 400 --nb_seeds 2",
            f"{SINGLE} --learner SAC {SB3} --steps 400 --nb_seeds 2",
            f"{SINGLE} --learner DQN --learner_config td3.yaml --env_id CartPole-v1 --steps 600 "
            "--nb_seeds 2",
            f"{SINGLE} --learner RecurrentPPO {PPO} --env_id CartPole-v1 --steps 384 --nb_seeds 2",
        ),
    ),
    Trace("killed", (HALF_CHEETAH,), signal.SIGKILL, "one_reservoir"),
    Trace("killed_erl_re2", (HOPPER,), signal.SIGKILL, "single"),
    Trace(
        "interrupted",
        (
            f"evolve_multi_res.py {EVOLVE} {PPO} --env_id Swimmer-v4 --nb_res 2 "
            "--sampler Tpe --training_steps 2048 --nb_trials 6 --popsize 4 --nb_seeds 2",
        ),
        signal.SIGINT,
    ),
)


# -- recording --


def record(arguments: argparse.Namespace) -> int:
    """Run the jobs and store what became of them."""
    tree, out = Path(arguments.tree).resolve(), Path(arguments.out).resolve()
    if not (tree / "evolve_res.py").is_file():
        raise UserError(f"{tree} is no tree of this project: it has no evolve_res.py")
    chosen = [t for t in TRACES if not arguments.only or t.name in arguments.only.split(",")]
    out.mkdir(parents=True, exist_ok=True)
    traces: dict[str, Any] = {}
    for trace in chosen:
        folder = out / trace.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start, before = time.perf_counter(), _processor_seconds()
        live(trace, tree, folder)
        print(
            f"{trace.name:28s} {time.perf_counter() - start:6.1f} s, "
            f"{_processor_seconds() - before:6.1f} s of a processor",
            flush=True,
        )
        traces[trace.name] = {"studies": read_studies(folder), "models": read_models(folder)}
        if trace.like in traces:
            for name, study in traces[trace.name]["studies"].items():
                whole = traces[trace.like]["studies"][name]
                for line in differences(whole, study, f"{trace.name} and {trace.like}: {name}"):
                    print(line)
    text = json.dumps({"machine": machine(), "traces": traces}, indent=1)
    for folder, name in ((out, "OUT"), (tree, "TREE")):
        text = text.replace(str(folder), name)
    (out / "traces.json").write_text(text, encoding="utf-8")
    print(f"{_processor_seconds():.0f} s of a processor in all: {out}/traces.json")
    return 0


def live(trace: Trace, tree: Path, folder: Path) -> None:
    """Run the commands of a trace in its folder."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for position, command in enumerate(trace.commands):
        script, *flags = shlex.split(command)
        if script.startswith("evolve") and _has_finals(tree):
            # Some versions held them by default. Others tested the trial with the highest fitness.
            flags += ["--finalists", "0"]
            # With this one, reservoirs have a bias since there are finals.
            if "--published_code" in flags:
                flags += ["--bias", "0"]
        program = ["-m", "erl"] if script == "erl" else [str(tree / script)]
        words = [sys.executable, *program, *flags]
        if position == 0 and trace.interrupted is not None:
            interrupt(words, tree, folder, trace.interrupted)
        with (folder / "output.txt").open("a") as output:
            done = subprocess.run(
                words, cwd=folder, env=environment(tree), stdout=output, stderr=output
            )
        if done.returncode:
            raise SystemExit(
                f"exit code {done.returncode} of {shlex.join(words)}: see {folder}/output.txt"
            )


def _has_finals(tree: Path) -> bool:
    return (tree / "erl/experiments/finals.py").exists()


def environment(tree: Path) -> dict[str, str]:
    """Variables of a command that shall use this tree, on one core."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return {**kept, **ONE_THREAD, "PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"}


def interrupt(words: list[str], tree: Path, folder: Path, number: signal.Signals) -> None:
    """Start a command, and send it and its workers a signal while a lifetime is lived that has a
    checkpoint.
    """
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment(tree),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    # A lifetime's third checkpoint: some way into it.
    seen: dict[Path, set[int]] = {}
    while process.poll() is None and max(map(len, seen.values()), default=0) < 3:
        for path, written in _written(folder / "runs"):
            seen.setdefault(path, set()).add(written)
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.wait(timeout=60)
    unfinished = [
        trial["number"]
        for study in read_studies(folder).values()
        for trial in study["trials"]
        if trial["state"] in ("RUNNING", "WAITING")
    ]
    if not unfinished or not list(_written(folder / "runs")):
        raise SystemExit(f"{folder.name}: the command ended before it could be interrupted")


def _written(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.glob("*/checkpoints/*.pkl"):
        try:
            yield path, path.stat().st_mtime_ns
        except FileNotFoundError:
            continue


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> str:
    """What the bits depend on beside the code."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    settings = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
    chosen = [f"{s}={os.environ[s]}" for s in settings if s in os.environ]
    return ", ".join([names[0] if names else platform.machine(), *chosen])


def read_studies(folder: Path) -> dict[str, Any]:
    """All studies of a folder's database, as Optuna reads them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not (folder / "studies.db").exists():
        return {}
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/studies.db")
    studies = {}
    for study in storage.get_all_studies():
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
        studies[study.study_name] = {
            "directions": [d.name for d in study.directions],
            "user_attrs": study.user_attrs,
            "system_attrs": study.system_attrs,
            "trials": [
                {
                    "number": t.number,
                    "state": t.state.name,
                    "values": t.values,
                    "params": t.params,
                    "distributions": {k: repr(d) for k, d in t.distributions.items()},
                    "intermediate_values": {str(k): v for k, v in t.intermediate_values.items()},
                    "user_attrs": t.user_attrs
                    | {k: v for k, v in t.system_attrs.items() if k.startswith(MOVED)},
                    "system_attrs": {
                        k: v for k, v in t.system_attrs.items() if not k.startswith(MOVED)
                    },
                }
                for t in trials
            ],
        }
    storage.engine.dispose()
    return studies


def read_models(folder: Path) -> dict[str, Any]:
    """SHA-256 of every tensor in every saved model, and the specifications beside them."""
    models: dict[str, Any] = {}
    for path in sorted((folder / "models").rglob("*.*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            models[name] = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".zip":
            models[name] = dict(tensors_of(path))
    return models


def tensors_of(path: Path) -> Iterator[tuple[str, str]]:
    """Name and SHA-256 of each tensor of a model, its optimisers' included."""
    import torch

    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".pth"):
                content = io.BytesIO(archive.read(name))
                loaded = torch.load(content, map_location="cpu", weights_only=True)
                for place, tensor in _tensors(loaded, name):
                    raw = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
                    about = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
                    yield place, hashlib.sha256(about + raw.tobytes()).hexdigest()


def _tensors(thing: Any, place: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(thing, torch.Tensor):
        yield place, thing
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from _tensors(value, f"{place}/{key}")
    elif isinstance(thing, list | tuple):
        for position, value in enumerate(thing):
            yield from _tensors(value, f"{place}/{position}")


# -- comparing --


def compare(arguments: argparse.Namespace) -> int:
    """Print how two recordings differ."""
    a, b = (
        json.loads((Path(folder) / "traces.json").read_text(encoding="utf-8"))
        for folder in (arguments.old, arguments.new)
    )
    if a["machine"] != b["machine"]:
        print(f"recorded on different machines: {a['machine']} and {b['machine']}")
    found = 0
    for name in sorted(a["traces"].keys() | b["traces"].keys()):
        old, new = a["traces"].get(name), b["traces"].get(name)
        if old is None or new is None:
            print(f"{name}: only in one of them")
            found += 1
            continue
        differing = list(differences(old, new, name))
        for line in differing[: arguments.show]:
            print(line)
        if len(differing) > arguments.show:
            print(f"… and {len(differing) - arguments.show} more")
        found += len(differing)
        print(f"{name}: {contents(new)}: {len(differing) or 'no'} differences")
    print(f"{found or 'no'} differences")
    return 1 if found else 0


def contents(trace: dict[str, Any]) -> str:
    """How much there is to compare."""
    trials = [t for study in trace["studies"].values() for t in study["trials"]]
    records = sum(k.startswith("lifetime:") for t in trials for k in t["user_attrs"])
    tensors = sum(len(m) for n, m in trace["models"].items() if n.endswith(".zip"))
    return (
        f"{len(trace['studies'])} studies, {len(trials)} trials, {records} records, "
        f"{tensors} tensors"
    )


def differences(a: Any, b: Any, place: str) -> Iterator[str]:
    """Where two parts of recordings differ, beside what may."""
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = _comparable(a), _comparable(b)
        for key in sorted(a.keys() | b.keys()):
            if key not in a:
                if key not in ADDED:
                    yield f"{place}/{key}: only in the new one"
            elif key not in b:
                yield f"{place}/{key}: only in the old one"
            elif key != "engine" or not _same_engine(a, b):
                yield from differences(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{place}: {len(a)} and {len(b)} entries"
        for position, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{place}/{position}")
    elif not (a == b or _both_nan(a, b)):
        yield f"{place}: {a!r} and {b!r}"


def _comparable(part: dict[str, Any]) -> dict[str, Any]:
    """A dictionary without what may differ, under the older names."""
    kept = {
        RENAMED.get(k, k): v
        for k, v in part.items()
        if v is not None
        and not (k == "intermediate_values" and not v)
        and k not in IGNORED
        and not k.startswith(IGNORED_PREFIXES)
    }
    if kept.get("state") == "PRUNED" and "user_attrs" in kept:
        attributes = kept["user_attrs"]
        kept["user_attrs"] = {
            k: {f: v[f] for f in OF_PRUNED} if k.startswith("lifetime:") else v
            for k, v in attributes.items()
        }
    return kept


def _same_engine(a: dict[str, Any], b: dict[str, Any]) -> bool:
    learner = a.get("learner") or a.get("name") or a.get("evolution", {}).get("learner")
    return a["engine"] == "auto" and b["engine"] == ENGINES.get(str(learner), OTHER_ENGINE)


def _both_nan(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="run the jobs of a tree")
    recording.add_argument("--tree", required=True, help="folder of the code")
    recording.add_argument("--out", required=True, help="folder of the recording")
    recording.add_argument("--only", help=f"of {', '.join(t.name for t in TRACES)}")
    recording.set_defaults(run=record)
    comparing = commands.add_parser("compare", help="print how two recordings differ")
    comparing.add_argument("old")
    comparing.add_argument("new")
    comparing.add_argument("--show", type=int, default=20, help="differences of a trace to print")
    comparing.set_defaults(run=compare)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    exit_after(main)
