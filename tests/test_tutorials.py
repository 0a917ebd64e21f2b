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


# A script whose coordinator lives lifetimes itself: a worker would import everything once more.
INLINE = """import runpy
import erl.executors.local
from conftest import InlineExecutor
erl.executors.local.LocalExecutor = InlineExecutor
runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_arrays_share_an_evolution_and_its_test(checkout):
    for name in PROGRAMS:
        (checkout / name).unlink()
        (checkout / name).write_text(INLINE.format(path=str(ROOT / name)))
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


def wait_until(condition, what):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.slow
def test_a_task_that_is_told_to_end_gives_its_trials_back(checkout):
    running = task(
        "slurm_evolution.sh",
        f"{TINY} --training_steps 5000000 --nb_trials 8 --h_test long",
        checkout,
    )
    name = "CartPole-v1_long_5000k_steps"
    # Workers start before, for the estimate of the time.
    wait_until(lambda: begun(name), "no lifetime has begun")
    running.send_signal(signal.SIGTERM)
    output = running.communicate(timeout=100)[0]
    assert running.returncode == 130, output
    assert "run the same command again to continue" in output
    assert {t.state.name for t in Study(STORAGE, name).trials()} == {"WAITING"}
    assert not Path("scontrol.said").exists()


# Ends at SIGTERM as a coordinator does.
COORDINATOR = """import signal, sys, time
from pathlib import Path

def end(*_):
    print("given back", flush=True)
    sys.exit(130)

signal.signal(signal.SIGTERM, end)
Path("begun").touch()
time.sleep(100)
"""


# One that does not listen yet.
STARTING = """import time
from pathlib import Path

Path("begun").touch()
time.sleep(100)
"""


@pytest.mark.parametrize(("program", "code"), [(COORDINATOR, 130), (STARTING, 143)])
@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_task_goes_on_later_if_its_time_is_over(number, requeued, program, code, checkout):
    (checkout / "waits.py").write_text(program)
    running = task("slurm_evolution.sh", "waits.py", checkout)
    wait_until(Path("begun").exists, "the script has not begun")
    running.send_signal(number)
    output = running.communicate(timeout=100)[0]
    assert running.returncode == code, output
    assert ("given back" in output) == (code == 130)
    assert ("task 0 goes on later" in output) == requeued
    assert Path("scontrol.said").exists() == requeued
    if requeued:
        assert Path("scontrol.said").read_text() == "requeue 77\n"


def ray_job(checkout, srun, flags, ray=None, job=77):
    """A job of `slurm_ray.sh` on two nodes, in which `srun` does what this script says."""
    programs = checkout / "bin"
    for name in ("dirname", "grep", "head", "sleep", "tr"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "scontrol").write_text("#!/bin/bash\nprintf 'n1\\nn2\\n'\n")
    (programs / "srun").write_text(f"#!/bin/bash\n{srun}\n")
    (checkout / ".venv").unlink()
    own = checkout / ".venv" / "bin"
    own.mkdir(parents=True)
    (own / "python").symlink_to(sys.executable)
    if ray is not None:
        (own / "ray").write_text(f"#!/bin/bash\n{ray}\n")
        (own / "ray").chmod(0o755)
    (programs / "srun").chmod(0o755)
    nodes = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY")} | nodes
    variables = {
        "PATH": str(programs),
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": str(job),
    }
    copy = checkout / "slurm_script"
    shutil.copy(FOLDER / "slurm_ray.sh", copy)
    return subprocess.run(
        ["bash", str(copy), *shlex.split(flags)],
        cwd="/",
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


ON_THIS_MACHINE = """while [[ "$1" == --* ]]; do shift; done
[ "$1" = hostname ] && echo 0.0.0.0 && exit
exec "$@"
"""


@pytest.mark.parametrize(
    ("flags", "ray", "code", "said"),
    [
        ("", "", 2, "which script?"),
        ("evolve_res.py", None, 2, "Ray is missing"),
        ("evolve_res.py", "echo port in use >&2; exit 1", 1, "Ray did not start on n1"),
    ],
)
def test_a_job_without_ray_ends_at_once(flags, ray, code, said, checkout):
    """It would wait to the end of its time, on all of its nodes."""
    ended = ray_job(checkout, ON_THIS_MACHINE, flags, ray)
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr


@pytest.mark.parametrize(("job", "port"), [(77, 20154), (5999, 31998), (6000, 20000)])
def test_ports_of_a_job_with_ray_are_its_own(job, port, checkout):
    """A head ends if another program of its node has the port of Ray's clients."""
    ray_job(checkout, ON_THIS_MACHINE, "evolve_res.py", 'echo "$@" > ray.said; exit 1', job)
    said = Path("ray.said").read_text().split()
    assert {f"--port={port}", f"--ray-client-server-port={port + 1}"} <= set(said)


@pytest.mark.slow
def test_a_coordinator_of_a_cluster_is_given_its_address(checkout, monkeypatch):
    """And no number of workers: it has the CPUs of all machines, or those of its task."""
    (checkout / "says.py").write_text("import sys; print(*sys.argv[1:])")
    running = task("slurm_task.sh", "says.py --popsize 8", checkout)
    assert running.communicate(timeout=60)[0].split() == [*("--storage", STORAGE, "--popsize", "8")]
    monkeypatch.setenv("CLUSTER", "ray:10.9.8.7:20077")
    running = task("slurm_task.sh", "says.py", checkout)
    assert running.communicate(timeout=60)[0].split()[-2:] == ["--cluster", "ray:10.9.8.7:20077"]


POSTGRES = {
    "initdb": 'echo 16 > "$PGDATA/PG_VERSION"; : > "$PGDATA/pg_hba.conf"',
    "pg_ctl": '[ "$1" != status ] || exit 3; [ "$2" != stop ] || rm -f "$PGDATA/postmaster.pid"; '
    ': > "$PGDATA/postmaster.pid"',
    "psql": "exit 0",
    "id": "echo 1000",
}


def test_servers_of_one_user_have_one_password_and_one_machine(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in POSTGRES.items():
        (programs / name).write_text(f"#!/bin/bash\n{does}\n")
        (programs / name).chmod(0o755)
    (programs / "hostname").write_text("#!/bin/bash\ncat ~/this-machine\n")
    (programs / "hostname").chmod(0o755)
    machine = tmp_path / "this-machine"

    def postgres(folder, *words):
        variables = {
            "HOME": str(tmp_path),
            "PGDATA": str(tmp_path / folder),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        command = ["bash", FOLDER / "postgresql.sh", *words]
        return subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, check=False
        )

    machine.write_text("node1\n")
    passwords = []
    for folder in ("one", "two"):
        ended = postgres(folder, "start")
        assert ended.returncode == 0, ended.stderr
        passwords.append((tmp_path / ".erl-password").read_text())
    assert passwords[0] == passwords[1]
    machine.write_text("node2\n")
    for word in ("start", "stop"):
        ended = postgres("one", word)
        assert ended.returncode == 2
        assert "runs on node1: use this script there" in ended.stderr
    machine.write_text("node1\n")
    assert postgres("one", "start").returncode == 0
