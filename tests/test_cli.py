import errno
import importlib.util
import io
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from erl.cli import (
    Display,
    Interruptible,
    duration,
    main,
    option,
    parse,
    score_text,
    this_command,
)
from erl.errors import UserError
from erl.experiments.comparison import compare
from erl.experiments.evolution import evolve

ROOT = Path(__file__).parent.parent


def script(name):
    """A top-level script as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evolve_res, test_res = script("evolve_res"), script("test")

# Every flag of ER-MRL's scripts, with the values that stand in its README or are its defaults.
ER_MRL_EVOLVE = {
    "env_id": "Pendulum-v1",
    "h_test": "try_2",
    "training_steps": 1000,
    "nb_trials": 7,
    "sampler": "Tpe",
    "del_obs": True,
    "nb_seeds": 2,
    "ep_eval": 5,
    "units": 50,
    "skip_c": True,
    "fixed_iss": False,
    "min_sr": 0.1,
    "max_sr": 10.0,
    "min_lr": 0.2,
    "max_lr": 0.9,
    "min_iss": 0.5,
    "max_iss": 2.0,
}
ER_MRL_TEST = {
    "env_id": "Pendulum-v1",
    "h_test": "try_2",
    "HP_training_steps": 1000,
    "training_steps": 2000,
}


@pytest.mark.parametrize(
    ("module", "flags"), [(evolve_res, ER_MRL_EVOLVE), (test_res, ER_MRL_TEST)]
)
def test_every_flag_of_er_mrl_is_read(module, flags):
    for separate in (True, False):
        words = [
            w
            for k, v in flags.items()
            for w in ([f"--{k}", str(v)] if separate else [f"--{k}={v}"])
        ]
        config = parse(module.Config, words)
        assert {k: getattr(config, k) for k in flags} == flags


def test_defaults_are_er_mrls():
    config = parse(evolve_res.Config, ["--env_id", "HalfCheetah-v4", "--sampler", "Cmaes"])
    assert (config.training_steps, config.nb_trials, config.nb_seeds, config.units) == (
        300_000,
        100,
        3,
        100,
    )
    assert (config.min_sr, config.max_sr, config.min_lr, config.max_lr) == (1e-4, 1e2, 1e-2, 1.0)
    assert (config.fixed_iss, config.skip_c, config.del_obs, config.reset_res) == (
        True,
        False,
        False,
        True,
    )


@pytest.mark.parametrize(
    "alias", ["--training_timesteps", "--training-steps", "--training-timesteps"]
)
@pytest.mark.parametrize("module", [evolve_res, test_res])
def test_aliases(module, alias):
    assert parse(module.Config, [alias, "123"]).training_steps == 123


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--skip_c"], True),
        (["--skip_c", "True"], True),
        (["--skip_c", "true"], True),
        (["--skip_c", "False"], False),
        (["--skip_c=0"], False),
        (["--no-skip_c"], False),
        (["--skip_c", "--no-skip-c"], False),
        (["--skip_c", "--units", "3"], True),
    ],
)
def test_booleans_as_flags_and_as_words(words, value):
    assert parse(evolve_res.Config, words).skip_c is value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--skip_c", "maybe"], "--skip_c must be True or False, not 'maybe'"),
        (["--unit", "3"], "unknown flag --unit; did you mean --units?"),
        (["--storag=postgresql://me:s3cret@host/x"], "unknown flag --storag; did you mean"),
        (["stray"], "unexpected word 'stray'"),
        (["--nb_trials", "1e-3"], "--nb_trials must be a whole number, not '1e-3'"),
        (["--nb_trials"], "--nb_trials needs a value"),
        (["--study", ""], "--study is empty"),
        (["--min_sr", "low"], "--min_sr must be a number, not 'low'"),
    ],
)
def test_flags_that_cannot_be_read(words, message):
    with pytest.raises(UserError) as e:
        parse(evolve_res.Config, words)
    assert message in str(e.value)


QUICK = ["--training_steps", "64", "--nb_trials", "1", "--nb_seeds", "1", "--workers", "1"]
EVOLVE = [
    "--env_id HalfCheeta-v4",
    "--env_id LunarLander-v2",
    "--env_id toy_environments:Image-v0",
    "--env_id toy_environments:Unmakeable-v0",
    "--env_id no_such_module:X-v0",
    "--env_id Acrobot-v1 --del_obs",
    "--sampler Cmes",
    "--learner PPPO",
    "--env_id CartPole-v1 --learner SAC",
    "--env_id Pendulum-v1 --learner DQN",
    "--min_sr 3 --max_sr 2",
    "--min_lr 0.5 --max_lr 0.1",
    "--max_lr 1.5",
    "--min_lr 0",
    "--min_sr -1",
    "--fixed_iss False --min_iss 3 --max_iss 2",
    *(
        f"--{n} {v}"
        for n in ("nb_trials", "nb_seeds", "training_steps", "units", "ep_eval", "workers")
        for v in (0, -1)
    ),
    "--h_test ../../x",
    "--h_test /etc/x",
    "--storage sqlite:////proc/x.db",
    "--storage sqlite:///foreign.db",
    "--storage sqlite:///quick.yaml",
    "--storage postgresql://me:s3cret@localhost:1/x",
    "--storag postgresql://me:s3cret@localhost:1/x",
    "--learner_config missing.yaml",
    "--learner_config unknown.yaml",
    "--learner_config broken.yaml",
    "--learner_config hostile.yaml",
    "--popsize 1",
    "--seed -1",
    "--fitness luck",
    "--nonsense",
]
TEST = [
    "--study nothing",
    "--learner_config quick.yaml",
    "--h_test ../../x",
    "--h_test nothing",
    "--nb_seeds 0",
    "--training_steps -5",
    "--storage sqlite:///foreign.db",
    "--storage sqlite:///missing.db",
    "--storage postgresql://me:s3cret@localhost:1/x",
    "--study ../../x",
    "--nonsense",
]


@pytest.mark.parametrize(
    ("name", "flags"), [("evolve_res", f) for f in EVOLVE] + [("test", f) for f in TEST]
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    name, flags, quick, capfd, monkeypatch, inline
):
    import sqlite3

    with sqlite3.connect("foreign.db") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    Path("unknown.yaml").write_text("learning_rat: 3\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("hostile.yaml").write_text(
        "policy_kwargs: \"dict(a=__import__('os').system('touch hacked'))\"\n"
    )
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    module = evolve_res if name == "evolve_res" else test_res
    words = (QUICK if name == "evolve_res" else []) + flags.split()
    with pytest.raises(SystemExit) as e:
        main(evolve if name == "evolve_res" else compare, module.Config, "", words)
    out, err = capfd.readouterr()
    assert e.value.code == 2
    assert out == ""
    assert err.startswith(f"{name}.py: error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert "s3cret" not in err
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


# -- the rest of cli.py --


@dataclass(frozen=True)
class Flags:
    count: int = option(3, "how many")


def run(work):
    with pytest.raises(SystemExit) as e:
        main(work, Flags, "", [])
    return e.value.code


def test_exit_codes(capfd):
    def interrupted(config, display):
        raise KeyboardInterrupt

    def mistaken(config, display):
        raise UserError("two\nlines of postgresql://me:s3cret@host")

    assert run(lambda config, display: 0) == 0
    assert run(lambda config, display: None) == 0
    assert run(lambda config, display: 1) == 1
    assert run(mistaken) == 2
    assert capfd.readouterr().err.endswith("error: two lines of postgresql://me:***@host\n")
    assert run(interrupted) == 130


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no")])
def test_the_status_is_taken_away_whatever_happens(error, monkeypatch):
    """A terminal shows no cursor while it is there."""
    closed = []
    monkeypatch.setattr(Display, "close", lambda self: closed.append(self))

    def work(config, display):
        display.status("half way")
        raise error

    assert run(work) in (2, 130)
    assert closed


def test_the_first_signal_interrupts_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    for number in (signal.SIGINT, signal.SIGTERM):
        with Interruptible(), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is before


def code_after_two_signals(number):
    """The exit code of a process that gets a signal twice."""
    child = os.fork()
    if not child:
        try:
            with Interruptible():
                for _ in range(2):
                    with suppress(KeyboardInterrupt):
                        os.kill(os.getpid(), number)
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_second_signal_ends_at_once(monkeypatch):
    assert code_after_two_signals(signal.SIGINT) == 130
    monkeypatch.setattr("erl.cli.TOGETHER_SECONDS", 0.0)
    assert code_after_two_signals(signal.SIGTERM) == 143


def test_a_sigterm_that_follows_at_once_is_the_same_one():
    with Interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one would end this process


def test_the_status_is_printed_now_and_then_where_no_terminal_is(capsys):
    display = Display(every=0.0)
    display.status("half way")
    Display(every=60.0).status("unseen")
    display.line("[not markup] " + "x" * 200)
    display.close()
    assert capsys.readouterr().out == "half way\n[not markup] " + "x" * 200 + "\n"


def test_what_finds_no_place_is_lost_and_nothing_is_printed_twice(monkeypatch):
    class Disk(io.StringIO):
        full = True

        def flush(self):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Disk())
    display = Display(every=0.0)
    display.line("first")
    display.status("half way")
    sys.stdout.full = False
    display.line("last")
    display.close()
    assert sys.stdout.getvalue() == "first\nhalf way\nlast\n"


# A command that prints, and then does what it is for.
PRINTING = """from dataclasses import make_dataclass
from pathlib import Path
from erl.cli import main
from erl.errors import UserError

def work(configuration, display):
    for _ in range(1000):
        display.line("a line of a log")
    Path("done").touch()
    {end}

main(work, make_dataclass("Flags", []), "prints", [])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is Linux's")
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return 0", 1, "the output is incomplete: OSError: [Errno 28] No space left on device"),
        ("return 130", 130, "the output is incomplete"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise UserError('mistaken')", 2, "error: mistaken"),
    ],
)
def test_a_command_does_its_work_where_its_output_finds_no_place(end, code, said):
    """Such as the log of a batch system on a full disk."""
    words = [sys.executable, "-c", PRINTING.format(end=end)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr
        assert "Traceback" not in ended.stderr
        Path("done").unlink()
        assert subprocess.run(words, stdout=full, stderr=full, check=False).returncode == code
        assert Path("done").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (90000, "1 d 1 h"),
        (-5, "0 s"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5678, "1234.57"),
        (-10.0, "-10.00"),
        (0.0123456, "0.01235"),
        (-1.5, "-1.5"),
        (None, "-"),
    ],
)
def test_figures_have_digits_where_they_are_small(value, text):
    assert score_text(value) == text


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/home/me/bin/erl", "train", "--set", "a=1 2"], "erl train --set 'a=1 2'"),
        (["evolve_res.py", "--env_id", "X-v0"], "python evolve_res.py --env_id X-v0"),
        (["/x/erl/__main__.py", "test"], "python -m erl test"),
        (["erl", "train", "--redis_password", "word"], "erl train --redis_password '***'"),
        (["erl", "train", "--redis_password=word"], "erl train '--redis_password=***'"),
        (["erl", "train", "--redis-password=word"], "erl train '--redis-password=***'"),
        (
            ["erl", "list", "--storage", "mysql+pymysql://me@host/x?password=word&sslpass=b&a=1"],
            "erl list --storage 'mysql+pymysql://me@host/x?password=***&sslpass=***&a=1'",
        ),
        (
            ["erl", "evolve", "--storage", "postgresql://me:word@host/x"],
            "erl evolve --storage 'postgresql://me:***@host/x'",
        ),
        (
            ["erl", "evolve", "--storage", "mysql+pymysql://me@server:word@server.example.com/x"],
            "erl evolve --storage 'mysql+pymysql://me@server:***@server.example.com/x'",
        ),
        (["/x/ipykernel_launcher.py", "-f", "y"], None),
        ([""], None),
    ],
)
def test_the_command_that_runs_as_others_can_type_it(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert this_command() == command
