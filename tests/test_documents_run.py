"""Every shell block and every Python block of README, docs and tutorials runs, at a tiny budget.

Bash runs each block, so that variables, `&&` and quotes mean what they mean to a reader. Programs
on its path are stand-ins that note how they were called. What the block calls Python with then runs
in this process, with the words of the page: the real script, flags and study names. Only budgets
are smaller: episodes of 40 steps, lifetimes of a few of them, few trials. Lines that need a
cluster, a server, somebody's address or a package that is not installed are parsed.
"""

import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import servers
from documents import DOCUMENTS, ROOT, blocks, parsed, section, text

from erl import commands
from erl.figures import report
from erl.worlds.reservoirs import ReservoirParams, memory_profile
from erl.worlds.specification import LifetimeSpec

PAGES = [d for d in DOCUMENTS if d == "README.md" or re.match("docs/|parallel", d)]
RUN = [d for d in PAGES if blocks(d)]
PROJECT = ("erl", "benchmarks", "examples", "parallelization_tutorials", "Makefile")
# Programs that only note their call. `parallelization_tutorials/postgresql.sh` has a test below.
STANDINS = ("python", "erl", "make", "pip", "tensorboard", "optuna-dashboard", "postgresql.sh")
STANDINS += ("sbatch", "ray", "sinfo", "slurmctld", "slurmd", "setpriv", "chown", "mkdir")
STANDIN = """#!{bash}
printf '%s\\037' "${{0##*/}}" "$@" >> "$CALLS"; printf '\\036' >> "$CALLS"
case "$*" in *--parsable*) echo 17;; esac
"""
GIT = """#!{bash}
{mkdir} -p "$3/.venv/bin" && : > "$3/.venv/bin/activate"
"""
MAIN_STUDY = "HalfCheetah-v4_main_300k_steps"
# Words of somebody's own network or files: such lines are parsed and not run.
ELSEWHERE = re.compile(r"NAME|node1|@host|--cluster")
# What needs a package that `make setup` does not install.
POPGYM = re.compile(r"memory_tasks\.py")
# Smaller than the defaults, and no part of a study's name.
SMALL = {
    "evolve": "--nb_trials 4 --popsize 4 --nb_seeds 1 --units 5 --workers 1",
    "test": "--nb_seeds 1 --workers 1",
    "single": "--nb_seeds 1 --workers 1",
    "eval": "--episodes 2",
    "plot": "--formats png",
    "erl.figures": "--formats png",
}
STEPS = {"ERL-Re2": 800, "DERL": 3000, "AES-RL": 4500, "CEM-RL": 2500}
SETTINGS = {
    "PPO": {"n_steps": 60, "batch_size": 60, "n_epochs": 1},
    "SAC": {"learning_starts": 100, "batch_size": 8, "train_freq": 50},
    "TD3": {"learning_starts": 100, "batch_size": 8, "train_freq": 50},
    "ERL-Re2": {
        "init_steps": 60,
        "learning_starts": 50,
        "batch_size": 16,
        "pr": 8,
        "frac_frames_train": 0.05,
        "time_steps": 5,
        "eval_freq": 0,
    },
    "AES-RL": {"learning_starts": 60, "batch_size": 8, "hidden": [8], "mean_evaluations": 1},
    "CEM-RL": {"learning_starts": 60, "batch_size": 8, "hidden": [8]},
    "DERL": {
        "population_size": 2,
        "num_episodes_per_iter": 1,
        "learning_starts": 100,
        "updates_per_step": 0.05,
        "batch_size": 8,
    },
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the project in it, and stand-ins for programs."""
    for name in (*PROJECT, *(p.name for p in ROOT.glob("*.py"))):
        if name not in ("erl", "benchmarks"):
            (tmp_path / name).symlink_to(ROOT / name)
    # Folders of their own, since the stand-in for git and the benchmarks write into them.
    for name in ("erl", "benchmarks"):
        (tmp_path / name).mkdir()
        for path in (ROOT / name).iterdir():
            (tmp_path / name / path.name).symlink_to(path)
    (tmp_path / "benchmarks/results").unlink()
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    programs = tmp_path / "programs"
    programs.mkdir()
    bash = shutil.which("bash")
    for name in STANDINS:
        (programs / name).write_text(STANDIN.format(bash=bash))
    (programs / "git").write_text(GIT.format(bash=bash, mkdir=shutil.which("mkdir")))
    for path in programs.iterdir():
        path.chmod(0o755)
    (programs / "cat").symlink_to(shutil.which("cat"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    (tmp_path / ".erl-password").write_text("word\n")
    return tmp_path


@pytest.fixture
def small(inline, monkeypatch):
    """Short episodes and lifetimes, whatever a command asks for."""
    for spec in gym.registry.values():
        if spec.max_episode_steps and str(spec.entry_point).startswith("gymnasium."):
            monkeypatch.setattr(spec, "max_episode_steps", 40)
    whole = LifetimeSpec.__init__

    def init(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        config = SETTINGS.get(self.learner.name, {}) | self.learner.config
        object.__setattr__(self, "steps", min(self.steps, STEPS.get(self.learner.name, 130)))
        object.__setattr__(self.learner, "config", config)
        object.__setattr__(self, "ep_eval", min(self.ep_eval, 2))

    start = subprocess.run

    def run_here(command, *args, **kwargs):
        """Python that a command starts would know nothing of the small budgets."""
        if command[:3] != [sys.executable, "-m", "erl"]:
            return start(command, *args, **kwargs)
        words = [*command[1:]]
        if "--seeds" in words:
            at = words.index("--seeds") + 1
            words[at] = words[at].split(",")[0]
        with monkeypatch.context() as patch:
            return subprocess.CompletedProcess(command, run_python(words, patch))

    class Started(subprocess.Popen):
        """No script of the project either: it would run at full size."""

        def __init__(self, command, *args, **kwargs):
            if command[0] == sys.executable and command[1:2] and command[1].endswith(".py"):
                pytest.fail(f"a block starts {shlex.join(command)}")
            super().__init__(command, *args, **kwargs)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(subprocess, "run", run_here)
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(LifetimeSpec, "__init__", init)
    monkeypatch.setattr("erl.search.samplers.MIN_SOURCE", 2)
    monkeypatch.setattr(report, "memory_figure", partial(report.memory_figure, n=2))
    # A page asks for hundreds of profiles; here they are all that of one small reservoir.
    profile = cache(partial(memory_profile, ReservoirParams(units=5), 0))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr("evidence_tables.memory_profile", lambda params, seed, lags: profile(lags))


def calls(block, folder):
    """Run a block in bash; the calls of programs in it, as lists of words."""
    noted = folder / "calls"
    noted.write_text("")
    programs = folder / "programs"
    environment = {"PATH": str(programs), "CALLS": str(noted), "HOME": str(folder)}
    for script in re.findall(r"^(\S+/)(\w+\.sh) ", block, re.M):  # a script of the project's
        block = block.replace("".join(script), script[1])
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{block}{done.stderr}"
    return [call.split("\037")[:-1] for call in noted.read_text().split("\036")[:-1]]


def proxy(code, monkeypatch):
    """The line that starts Optuna's proxy: its names exist, and its arguments fit."""
    asked = []

    def stand_in(name):
        fits = inspect.signature(getattr(optuna.storages, name)).bind
        return lambda *args, **kwargs: asked.append((name, fits(*args, **kwargs)))

    names = ["RDBStorage", "run_grpc_proxy_server"]
    with monkeypatch.context() as patch:
        for name, replacement in [(name, stand_in(name)) for name in names]:
            patch.setattr(optuna.storages, name, replacement)
        exec(code, {})
    assert [name for name, _ in asked] == names


def small_budget(kind, words):
    """The flags of a small budget; there is no number of neurons to set where there is a context of
    one's own, or where it is searched. Two agents are filmed, which take the time of a page.
    """
    flags = SMALL.get(kind, "")
    if kind == "test" and "--video" in words and "--arms" not in words:
        flags += " --arms PPO,RES_PPO_0.0003"
    if "--context" in words or any(word.startswith("units") for word in words):
        flags = flags.replace("--units 5", "")
    return flags.split()


def run_python(words, monkeypatch):
    """What `python WORDS` does, in this process; its exit code."""
    name = words[1] if words[0] == "-m" else words[0]
    flags = [w.replace("trial_42", _best_trial()) for w in words[1 + (words[0] == "-m") :]]
    kind = {"erl": "single"}.get(name, name.partition("_")[0].removesuffix(".py"))
    flags += small_budget(kind, words) if "--seeds" not in flags else ["--workers", "1"]
    monkeypatch.setattr(sys, "argv", [name, *flags])
    try:
        if words[0] == "-m":
            package = "erl.studies.__main__" if name == "erl.studies" else name
            package = "erl.__main__" if name == "erl" else package
            runpy.run_module(package, run_name="__main__")
        else:
            monkeypatch.syspath_prepend(str((ROOT / name).parent))  # as Python does
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as e:
        return e.code
    return 0


def run_erl(words, monkeypatch):
    """What `erl WORDS` does, in this process; its exit code."""
    kind = {"train": "single"}.get(words[0], words[0].partition("-")[0])
    flags = [w.replace("trial_42", _best_trial()) for w in words] + small_budget(kind, words)
    monkeypatch.setattr(sys, "argv", ["erl", *flags])
    with pytest.raises(SystemExit) as e:
        commands.main()
    return e.value.code


def _best_trial():
    """The name of the trial that was tested, for the page's `trial_42`."""
    found = [re.search(rf"{MAIN_STUDY}_(trial_\d+)_test", p.name) for p in Path("models").glob("*")]
    return next((match.group(1) for match in found if match), "trial_42")


def follow(call, monkeypatch):
    """Do what a call of a program means, or check that it could be done."""
    program, *words = call
    line = shlex.join(call)
    if program == "python" and words[0] == "-c":
        proxy(words[1], monkeypatch)
    elif (program == "python" and ELSEWHERE.search(line)) or (
        program == "python" and POPGYM.search(line) and find_spec("popgym") is None
    ):
        parsed(line)
    elif program == "python":
        parsed(line)
        assert run_python(words, monkeypatch) == 0, line
    elif program == "erl":
        parsed(line)
        assert run_erl(words, monkeypatch) == 0, line
    elif program == "make":
        recipe = make_recipe(words[0])
        if recipe is not None and words[0] == "evolve":
            follow(["python", *shlex.split(recipe)], monkeypatch)
    elif program == "sbatch":
        submitted(words)


def make_recipe(target):
    """The words after python in a target's recipe; None if it does not call a script."""
    (rule,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+|\n)", (ROOT / "Makefile").read_text(), re.M)
    found = re.search(r"\$\(BIN\)/python (\w+\.py .*)", rule)
    return found and found.group(1)


def submitted(words):
    """A SLURM script exists, and takes these flags."""
    index = next(i for i, word in enumerate(words) if word.endswith(".sh"))
    script, rest = words[index], words[index + 1 :]
    assert (ROOT / script).exists(), script
    if not (rest and rest[0].endswith(".py")):
        rest = [
            {"evolution": "evolve_res.py", "test": "test.py"}[script[:-3].split("_")[-1]],
            *rest,
        ]
    parsed(shlex.join(["python", *rest]))


def prepare(document, folder, monkeypatch):
    """What a page builds on: the main job of the README, and files that the page shows."""
    shell = "".join(blocks(document))
    if MAIN_STUDY in "".join(blocks(document, "python")) + shell and "--sampler Cmaes" not in shell:
        (main,) = [b for b in blocks("README.md") if "--sampler Cmaes" in b]
        for call in calls(main, folder):
            follow(call, monkeypatch)
    if "--rows evidence/rows" in shell:  # experiments that have their rows are not run
        shutil.copytree("benchmarks/results/evidence", "evidence/rows")
    for name, module in re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```", text(document), re.M | re.S
    ):
        Path(name).write_text(module, encoding="utf-8")
    for example in blocks(document, "toml"):
        Path(re.search(r"# (\S+)", example).group(1)).write_text(example, encoding="utf-8")


def run_snippet(code, namespace):
    """A Python block after those before it, with the trial that was tested here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="stable_baselines3.common.evaluation")
        exec(code.replace("trial_42", _best_trial()), namespace)
    if "total" in namespace:
        assert isinstance(namespace["total"], float)
    if "frame" in namespace:
        assert len(namespace["frame"]) > 3
    if "node" in namespace:
        env, node = namespace["env"], namespace["node"]
        assert env.observation_space.shape == node.step(np.zeros(24)).shape


@pytest.mark.slow
@pytest.mark.parametrize("document", RUN)
def test_blocks_run(document, folder, small, monkeypatch, capfd):
    prepare(document, folder, monkeypatch)
    namespace = {}
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", text(document), re.M | re.S):
        if re.match(r"# \w+\.py\n", block):
            continue  # a file, written above
        if language == "python":
            run_snippet(block, namespace)
        else:
            for call in calls(block, folder):
                follow(call, monkeypatch)
    printed = capfd.readouterr().out
    if document == "README.md":
        shape = section(document, "## Start").split("<!-- output -->")[1]
        for label in re.findall(r"^([a-z ]+): ", shape, re.M):
            assert re.search(rf"^{label}: ", printed, re.M), label


def test_a_broken_block_is_found(folder, monkeypatch):
    with pytest.raises(AssertionError, match="command not found"):
        calls("pythn evolve_res.py\n", folder)
    with pytest.raises(Exception, match="nb_trails"):
        follow(["python", "evolve_res.py", "--nb_trails", "3"], monkeypatch)
    with pytest.raises(AssertionError, match="slurm_nothing"):
        submitted(["parallelization_tutorials/slurm_nothing.sh"])
    with pytest.raises(NameError):
        proxy("run(get_storage('sqlite:///studies.db'))", monkeypatch)


def test_a_block_that_would_run_at_full_size_is_found(small):
    with pytest.raises(pytest.fail.Exception, match=r"a block starts .* evolve_res\.py"):
        subprocess.Popen([sys.executable, "evolve_res.py"])


@pytest.mark.slow
def test_the_script_starts_and_stops_a_database(tmp_path):
    if servers.find("initdb") is None:
        servers.missing("PostgreSQL")
    server = servers.Server()  # a folder and a user of its own
    server.as_user |= {} if os.geteuid() else {"user": "postgres", "group": "postgres"}
    shutil.chown(server.folder, *(server.as_user.get(k) for k in ("user", "group")))
    shutil.copy(ROOT / "parallelization_tutorials/postgresql.sh", server.folder)

    def script(command, port=server.port):
        return subprocess.run(
            ["bash", "postgresql.sh", command],
            cwd=server.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(server.folder),
                "PGPORT": str(port),
                "LC_ALL": "C",
            },
            capture_output=True,
            text=True,
            timeout=100,
            **server.as_user,
        )

    try:
        other = servers.free_port()
        for port in (server.port, other):  # the second time it runs already, at the first port
            started = script("start", port)
            assert started.returncode == 0, started.stderr
            assert f":{server.port}/studies" in started.stdout
        password = (server.folder / ".erl-password").read_text().strip()
        address = f"postgresql+psycopg://erl:{password}@localhost:{server.port}/studies"
        optuna.create_study(storage=address, study_name="one")
        assert script("nothing").returncode == 2
        assert script("stop").returncode == 0
        assert f":{other}/studies" in script("start", other).stdout
    finally:
        stopped = script("stop")
        shutil.rmtree(server.folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr
