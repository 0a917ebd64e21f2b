"""The scripts for SLURM are bash, and do what they say where there is no SLURM."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT

from erl.errors import UserError
from erl.studies.records import records
from erl.studies.study import Study

FOLDER = ROOT / "parallelization_tutorials"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("evolve_res.py", "test.py")
NAME = "CartPole-v1_main_0.3k_steps"
TINY = "--env_id CartPole-v1 --units 5 --learner_config quick.yaml"
STORAGE = "journal:all.log"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_files_that_the_page_names_exist():
    for name in re.findall(r"slurm_\w+\.sh", PAGE):
        assert (FOLDER / name).exists()
    for name in SCRIPTS:
        assert name.name in PAGE or name.name == "slurm_task.sh"


@pytest.fixture
def checkout(tmp_path, quick):
    """What a job finds in the folder that it was started in: the project, and no SLURM."""
    for path in [FOLDER, ROOT / "erl", *(ROOT / name for name in PROGRAMS)]:
        (tmp_path / path.name).symlink_to(path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    for name in ("bash", "env"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "scontrol").write_text('#!/bin/bash\necho "$@" >> scontrol.said\n')
    (programs / "scontrol").chmod(0o755)
    assert not {"srun", "sbatch"} & {p.name for p in programs.iterdir()}
    python = Path(sys.prefix)
    (tmp_path / ".venv").symlink_to(python)
    return tmp_path


def task(script, flags, checkout, index=0):
    """One task of an array: its script as SLURM runs it, a copy elsewhere."""
    copy = checkout / f"slurm_script_{index}"
    shutil.copy(FOLDER / script, copy)
    variables = {
        "PATH": str(checkout / "bin"),
        "STORAGE": STORAGE,
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": str(index),
    }
    command = ["bash", str(copy), *shlex.split(flags)]
    return subprocess.Popen(
        command,
        cwd="/",
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_arrays_share_an_evolution_and_its_test(checkout):
    evolution = f"{TINY} --training_steps 300 --nb_trials 8 --popsize 4 --nb_seeds 1"
    tasks = [task("slurm_evolution.sh", evolution, checkout, k) for k in range(2)]
    for running in tasks:
        output = running.communicate(timeout=240)[0]
        assert running.returncode == 0, output
    assert [t.state.name for t in Study(STORAGE, NAME).trials()] == ["COMPLETE"] * 8
    steps = "--HP_training_steps 300 --training_steps 300"
    test = f"--env_id CartPole-v1 {steps} --arms PPO,RES_PPO_0.0003"
    running = task("slurm_test.sh", f"test.py {test}", checkout, 3)
    output = running.communicate(timeout=240)[0]
    assert running.returncode == 0, output
    best = Study(STORAGE, NAME).best()
    frame = records(STORAGE, f"{NAME}_trial_{best.number}_test_0.3k_steps")
    assert sorted(zip(frame.arm, frame.seed)) == [("PPO", 3), ("RES_PPO_0.0003", 3)]
    assert not Path("scontrol.said").exists()


def begun(name):
    """Whether a trial of the study runs."""
    with suppress(UserError, OSError):
        return bool(Study(STORAGE, name).trials("RUNNING"))
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_task_that_is_told_to_end_gives_its_trials_back(number, requeued, checkout):
    running = task(
        "slurm_evolution.sh",
        f"{TINY} --training_steps 5000000 --nb_trials 8 --h_test long",
        checkout,
    )
    name, deadline = "CartPole-v1_long_5000k_steps", time.monotonic() + 200
    # Workers start before, for the estimate of the time.
    while not begun(name):
        assert time.monotonic() < deadline, "no lifetime has begun"
        time.sleep(0.2)
    running.send_signal(number)
    output = running.communicate(timeout=100)[0]
    assert running.returncode == 130, output
    assert "run the same command again to continue" in output
    assert {t.state.name for t in Study(STORAGE, name).trials()} == {"WAITING"}
    assert Path("scontrol.said").exists() == requeued
    if requeued:
        assert Path("scontrol.said").read_text() == "requeue 77\n"
