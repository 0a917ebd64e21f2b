"""The scripts as a user starts them, at the smallest budgets."""

import os
import pty
import re
import runpy
import select
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Lines, TickingExecutor
from stable_baselines3 import PPO

import erl.executors.local
from erl.cli import parse
from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, GeneralizationComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.forecast import Pace
from erl.studies.records import records
from erl.studies.storage import DEFAULT_STORAGE
from erl.studies.study import Study

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TINY = (
    "--training_steps 300 --nb_trials 2 --nb_seeds 1 --units 5 --popsize 4 "
    "--workers 1 --learner_config quick.yaml"
)


def command(name, flags):
    return [sys.executable, str(ROOT / name), *shlex.split(flags)]


def call(name, flags, **environment):
    return subprocess.run(
        command(name, flags),
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


SCRIPTS = [
    *(f"{kind}{n}.py" for kind in ("evolve", "test") for n in ("_multi_res", "_generalization")),
    *("evolve_res.py", "test.py"),
]


def test_evolve_then_the_printed_command(quick, sink, here):
    """One run with every flag of ER-MRL's, then the very command that it prints."""
    done = call(
        "evolve_res.py",
        f"{TINY} --env_id CartPole-v1 --h_test try.2 --training_timesteps 320 --sampler Cmaes "
        f"--del_obs True --ep_eval 5 "
        "--skip_c True --fixed_iss False --min_sr 0.1 --max_sr 10 --min_lr 0.1 --max_lr 1 "
        "--min_iss 0.5 --max_iss 2 "
        "--storage 'sqlite:///my studies.db'",
    )
    assert (done.returncode, done.stderr) == (0, "")
    name = "CartPole-v1_try.2_0.32k_steps"
    storage = "sqlite:///my studies.db"
    best = Study(storage, name).best()
    assert re.search(rf"best trial: +{best.number} of 2, fitness {best.value:.2f}", done.stdout)
    assert f"iss {best.params['iss']:.6g}" in done.stdout
    assert os.path.abspath("my studies.db") in done.stdout
    printed = done.stdout.partition("test them:")[2].split("\n")[0]
    words = shlex.split(printed)
    assert words[1] == str(ROOT / "test.py")

    out = here([*words[1:], "--nb_seeds", "2", "--workers", "1"])
    arms = ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001", "RES_PPO_0.00005"]
    for arm in arms:
        assert (
            len(re.findall(rf"^{re.escape(arm)} +2 ", out, re.MULTILINE)) == 2
        )  # a row in each table
    assert "P(arm > baseline)" in out
    test_name = f"{name}_trial_{best.number}_test_0.32k_steps"
    frame = records(storage, test_name)
    assert sorted(set(frame.arm)) == sorted(arms)
    assert sorted(set(frame.seed)) == [0, 1]
    assert all(frame.curve.map(len) > 0)
    evolved = records(storage, name)
    for role in ("reservoir", "learner", "environment", "evaluation"):
        assert not set(frame[f"seed_{role}"]) & set(evolved[f"seed_{role}"])
    for arm in arms:
        for seed in (0, 1):
            model = PPO.load(f"models/{test_name}/{arm}/seed_{seed}.zip")
            assert model.observation_space.shape == ((2,) if arm == "PPO" else (5 + 2 + 2 + 1,))
            assert model.learning_rate == float(arm.partition("RES_PPO_")[2] or 3e-4)
            assert list(Path(f"logs/{test_name}/{arm}/seed_{seed}").glob("events.*"))

    again = parse(ComparisonConfig, [*words[2:], "--nb_seeds", "2", "--workers", "1"])
    assert compare(again, sink) == 0
    assert "lifetimes are there; raise --nb_seeds" in str(sink)
    tables = out.partition("return of the last")[2]
    assert str(sink).partition("return of the last")[2].strip() == tables.strip()


ER_MRL = (
    "--sampler Cmaes --ep_eval 3 --skip_c True --fixed_iss False "
    "--min_sr 0.1 --max_sr 10 --min_lr 0.1 --max_lr 1 --min_iss 0.5 --max_iss 2"
)


@pytest.fixture
def here(inline, monkeypatch, capsys):
    """Start a script in this process, without workers; its output."""

    def start(words):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as e:
            runpy.run_path(words[0], run_name="__main__")
        out, err = capsys.readouterr()
        assert (e.value.code, err) == (0, "")
        return out

    return start


def test_several_reservoirs_with_er_mrls_flags(quick, here):
    task = "--env_id CartPole-v1 --nb_res 2 --h_test try_2 --training_timesteps 320 --del_obs True"
    here(command("evolve_multi_res.py", f"{TINY} {task} {ER_MRL}")[1:])
    best = Study(DEFAULT_STORAGE, name := "CartPole-v1_2_try_2_0.32k_steps").best()
    assert set(best.params) == {f"{p}_{k}" for k in (1, 2) for p in ("sr", "lr", "iss")}
    steps = "--HP_training_steps 320 --training_steps 320 --nb_seeds 1"
    flags = f"--env_id CartPole-v1 --nb_res 2 --h_test try_2 {steps}"
    out = here(command("test_multi_res.py", f"{flags} --workers 1")[1:])
    for arm in ("PPO", "RES_PPO_0.0003", "RES_PPO_0.0001", "RES_PPO_0.00005"):
        assert len(re.findall(rf"^{re.escape(arm)} +1 ", out, re.MULTILINE)) == 2
    assert PPO.load(f"models/{name}_trial_{best.number}_test_0.32k_steps/RES_PPO_0.0001/seed_0.zip")


def test_generalisation_with_er_mrls_flags_then_the_printed_command(quick, here):
    """A real set, whose environments no cohort can share; the test's environment has other
    sizes.
    """
    flags = (
        f"{TINY} --env_type Ant_Swimmer --nb_res 2 --h_test try --training_timesteps 1024 {ER_MRL}"
    )
    one = flags.replace("--nb_trials 2", "--nb_trials 1")
    out = here(command("evolve_generalization.py", one)[1:])
    name = "Ant_Swimmer_2_try_1k_steps"
    assert "2 environments x 1 seed x 1,024 steps" in out
    [trial] = Study(DEFAULT_STORAGE, name).trials()
    swimmer, ant = (trial.system_attrs[f"lifetime:{k}"]["fitness"] for k in (1, 0))
    (low_ant, high_ant), (low, high) = Study(DEFAULT_STORAGE, name).stored["references"].values()
    by_hand = ((ant - low_ant) / (high_ant - low_ant) + (swimmer - low) / (high - low)) / 2
    assert trial.value == pytest.approx(by_hand)
    printed = out.partition("test them:")[2].split("\n")[0]
    assert shlex.split(printed)[1] == str(ROOT / "test_generalization.py")
    here(shlex.split(f"{printed} --nb_seeds 1 --workers 1 --arms RES_PPO_0.0003")[1:])
    assert Path(
        f"models/{name}_trial_0_on_HalfCheetah-v4_test_1k_steps/RES_PPO_0.0003/seed_0.zip"
    ).exists()
    seen = GeneralizationComparisonConfig(
        env_id="Ant-v5", HP_env_type="Ant_Swimmer", h_test="try", HP_training_steps=1024
    )
    with pytest.raises(UserError, match="the evolution used Ant-v5"):
        compare(seen, Lines())


@pytest.fixture
def unchanged():
    """A folder with another program's database, in which nothing is written."""
    with sqlite3.connect("foreign.db") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = sorted(Path().rglob("*"))
    yield
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("evolve_res.py", f"{TINY} --env_id CartPole-v1 --learner SAC"),
        ("evolve_res.py", f"{TINY} --env_id CarRacing-v3"),
        ("evolve_res.py", f"{TINY} --env_id CartPole-v1 --storage sqlite:///foreign.db"),
        ("test.py", "--study nothing --storage sqlite:///foreign.db"),
    ],
)
def test_bad_input_in_a_process_of_its_own(name, flags, quick, unchanged):
    """Warnings of libraries go to a process's stderr past pytest, so some of `test_cli`'s bad
    inputs come again here.
    """
    done = call(name, flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{name}: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("evolve_multi_res.py", f"{TINY} --env_id CartPole-v1 --nb_res 2 --obs_units 11"),
        ("evolve_generalization.py", f"{TINY} --env_id CartPole-v1"),
        ("test_generalization.py", "--study nothing --storage sqlite:///foreign.db"),
    ],
)
def test_bad_input_of_the_other_scripts(name, flags, quick, unchanged, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", command(name, flags)[1:])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(sys.argv[0], run_name="__main__")
    out, err = capfd.readouterr()
    assert (e.value.code, out) == (2, "")
    assert err.startswith(f"{name}: error: ")
    assert err.count("\n") == 1


def on_the_terminal(name, flags):
    """The script, in a process that a terminal was made for; it says so whenever a lifetime takes
    steps.
    """
    os.environ["TERM"] = "xterm"
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    erl.executors.local.LocalExecutor = TickingExecutor
    Pace.SHORTEST = 0.0  # a speed is known at once
    sys.argv = command(name, flags)[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def test_a_terminal_shows_live_progress(quick):
    environment = "--env_id toy_environments:Slow-v0"  # the line is drawn four times a second
    child, main = pty.fork()
    if not child:
        code = 1
        try:
            on_the_terminal(
                "evolve_res.py", f"{TINY} {environment} --training_steps 2500 --engine sb3"
            )
        except SystemExit as e:
            code = e.code
        finally:
            sys.stdout.flush()
            os._exit(code)
    shown = b""
    while select.select([main], [], [], 120)[0]:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    os.close(main)
    text = " ".join(shown.decode().split())  # lines are wrapped at the terminal's width
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, text
    assert re.search(r"generation 0 trials \d/2 .*best", text)
    assert re.search(
        r"trials 1/2 \(1 running\) best \d+\.\d+ \(trial \d\) [\d,]+ steps/s \d+ s left", text
    )
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor is back


# -- the test phase, without processes --


@pytest.fixture
def evolved(quick, inline, sink):
    config = EvolutionConfig(
        env_id="toy_environments:Recall-v0",
        training_steps=64,
        nb_trials=2,
        nb_seeds=1,
        units=5,
        learner_config=quick,
        workers=1,
        engine="sb3",
    )
    evolve(config, sink)
    return config


def flags(evolved, **options):
    settings = {
        "env_id": evolved.env_id,
        "HP_training_steps": 64,
        "training_steps": 64,
        "workers": 1,
        "nb_seeds": 2,
    }
    return ComparisonConfig(**(settings | options))


@pytest.fixture
def alone(tmp_path):
    """A folder beside which nothing is written."""
    before = sorted(tmp_path.parent.iterdir())
    yield
    assert sorted(tmp_path.parent.iterdir()) == before


def test_a_slurm_array_index_picks_the_seed(alone, evolved, sink, monkeypatch):
    for index in ("3", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
        assert compare(flags(evolved), sink) == 0
    best = Study(DEFAULT_STORAGE, "toy_environments:Recall-v0_main_0.064k_steps").best().number
    name = f"toy_environments:Recall-v0_main_0.064k_steps_trial_{best}_test_0.064k_steps"
    frame = records(DEFAULT_STORAGE, name)
    assert sorted(frame.seed) == [1, 1, 1, 3, 3, 3]
    folder = Path("models") / name.replace(":", "_")
    assert (folder / "PPO" / "seed_3.zip").exists()
    for bad in ("x", "-1", "²", "99999999", ""):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", bad)
        with pytest.raises(Exception, match="SLURM_ARRAY_TASK_ID"):
            compare(flags(evolved), sink)


def test_arms_can_be_chosen_and_what_failed_is_tried_again(evolved, sink, monkeypatch):
    arms = flags(evolved, arms="PPO, RES_PPO_0.0001", nb_seeds=1)
    with monkeypatch.context() as patch:
        patch.setattr("erl.learners.sb3.SB3Agent.save", lambda *_: 1 / 0)
        assert compare(arms, sink) == 1
    assert "failed: PPO seed 0: lifetime 0: ZeroDivisionError: division by zero" in str(sink)
    # Whose agents have all ended succeeds, whatever failed elsewhere.
    others = flags(evolved, arms="RES_PPO_0.0003", nb_seeds=1)
    assert compare(others, sink) == 0
    assert str(sink).count("failed: PPO seed 0") == 2
    sink.lines.clear()
    assert compare(arms, sink) == 0
    assert "failed: " not in str(sink)
    with pytest.raises(Exception, match="unknown agent 'TRPO' in --arms"):
        compare(flags(evolved, arms="TRPO"), sink)


def test_published_code_tests_on_the_seeds_of_the_evolution(evolved, sink):
    assert compare(flags(evolved, published_code=True, arms="RES_PPO_0.0003"), sink) == 0
    study = Study(DEFAULT_STORAGE, "toy_environments:Recall-v0_main_0.064k_steps")
    frame = records(
        DEFAULT_STORAGE, f"{study.name}_trial_{study.best().number}_test_0.064k_steps_published"
    )
    assert sorted(frame.seed_reservoir) == [0, 1]


# -- quick answers --

LOADED = """
import runpy, sys
sys.argv[:] = sys.argv[1:]
try:
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as e:
    print(e.code, *{name.partition(".")[0] for name in sys.modules})
"""
SLOW = {"torch", "stable_baselines3", "sb3_contrib", "tensorboard", "reservoirpy", "pandas"}
LIBRARIES = SLOW | {"gymnasium", "mujoco", "optuna", "sqlalchemy", "grpc", "scipy", "numpy"}


def loaded(*words):
    """Exit code of a command, the libraries that it has loaded, and its output."""
    script = [str(ROOT / words[0]), *words[1:]] if words[0].endswith(".py") else words
    done = subprocess.run([sys.executable, "-c", LOADED, *script], capture_output=True, text=True)
    *out, last = done.stdout.splitlines()
    code, *names = last.split()
    return int(code), LIBRARIES & set(names), ["\n".join(out), done.stderr]


@pytest.mark.parametrize("name", [*SCRIPTS, "-m erl"])
def test_help_and_unknown_flags_need_no_library(name):
    *loading, (out, err) = loaded(*name.split(), "--help")
    assert (loading, err) == ([0, set()], "")
    assert ("--training_steps N" if name in SCRIPTS else "usage: ") in out
    assert not list(Path().iterdir())
    if name == "evolve_res.py":
        assert loaded(name, "--nb_trails", "3")[:2] == (2, set())


@pytest.mark.parametrize(
    "flags", [["--env_id", "HalfCheeta-v4"], ["--sampler", "Cmes"], ["--learner", "PPPO"]]
)
def test_what_is_misspelt_is_refused_without_the_libraries_of_learning(flags):
    code, names, (out, err) = loaded("evolve_res.py", *flags)
    assert (code, out) == (2, "")
    assert err.startswith("evolve_res.py: error: ")
    assert err.count("\n") == 1
    assert not names & SLOW
