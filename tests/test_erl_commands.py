"""The command `erl`: which code its subcommands start, help, completion, and what it prints to go
on.
"""

import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from erl import __version__, cli
from erl.commands import COMMANDS, SECTIONS, SHELLS, STUDIES, main

ROOT = Path(__file__).parent.parent


def said(capsys, words, run=main, **more):
    """Exit code, output and errors of the command line."""
    with pytest.raises(SystemExit) as e:
        run(words, **more)
    out, err = capsys.readouterr()
    return e.value.code, out, err


@pytest.mark.slow
def test_started_as_a_file_the_command_imports_what_others_mean(tmp_path):
    """The folder of the file has modules called as those of the standard library are."""
    (tmp_path / "my_learner.py").write_text("import statistics\nMEAN = statistics.mean([1, 2])\n")
    words = ["--learner", "my_learner:Mine", "--env_id", "CartPole-v1", "--steps", "10"]
    command = [sys.executable, str(ROOT / "erl/__main__.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "module 'my_learner' has no attribute 'Mine'" in done.stderr


@pytest.fixture
def started(monkeypatch):
    """Commands that are started, in place of doing it."""
    calls = []

    def note(*arguments):
        calls.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(cli, "main", note)
    return calls


def test_every_subcommand_is_in_the_overview_and_names_code_that_exists(capsys):
    code, out, _ = said(capsys, ["--help"])
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert sorted(n for names in SECTIONS.values() for n in names) == sorted(COMMANDS)
    for name in [*COMMANDS, "studies", "completion"]:
        assert f"\n  {name} " in out
    for command in (COMMANDS | STUDIES).values():
        module, _, function = command.run.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("script", cli.SCRIPTS)
def test_a_subcommand_runs_what_its_script_runs(script, monkeypatch):
    name = cli.SCRIPTS[script]
    calls = []
    monkeypatch.setattr("erl.cli.main", lambda *arguments, **more: calls.append(arguments))
    exec(compile((ROOT / name).read_text(), name, "exec"), {"__name__": "__main__"})
    [(run, kind, *_)] = calls
    command = COMMANDS[script]
    assert (run, kind) == (command.run, command.kind())


def test_flags_alone_are_those_of_train(started):
    for words in (["--learner", "PPO"], ["train", "--learner", "PPO"]):
        with pytest.raises(SystemExit):
            main(words)
    assert {(run, *flags) for run, _, _, flags, *_ in started} == {
        (COMMANDS["train"].run, "--learner", "PPO")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evolv"], "erl: error: unknown command 'evolv'; did you mean evolve?"),
        (["evolve", "--nb_trails", "3"], "erl evolve: error: unknown flag --nb_trails; did you"),
        (["studies"], "erl studies: error: a command is missing (known: list, show, export, copy"),
        (["studies", "lst"], "erl studies: error: unknown command 'lst'; did you mean list?"),
        (["studies", "list", "--x"], "erl studies list: error: unknown flag --x"),
        (["completion", "fish"], "erl completion: error: name one shell: bash, zsh, tcsh"),
        (["completion"], "name one shell"),
        (["postgresql://me:s3cret@host/x"], "unknown command 'postgresql://me:***@host/x'"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    code, out, err = said(capsys, words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "s3cret" not in err


def test_flags_alone_that_are_wrong_are_those_of_train(capsys):
    code, out, err = said(capsys, ["--steps", "x"], program="python -m erl")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("python -m erl train: error: --steps must be a whole number")


def test_versions_and_help_of_parts(capsys):
    assert said(capsys, ["--version"])[:2] == (0, f"erl {__version__}\n")
    code, out, _ = said(capsys, ["studies", "--help"])
    assert code == 0
    assert all(f"\n  {name} " in out for name in STUDIES)
    code, out, _ = said(capsys, ["completion", "--help"])
    assert (code, 'eval "$(erl completion bash)"' in out) == (0, True)


@pytest.mark.parametrize("program", ["erl", "python -m erl"])
def test_no_words_show_what_there_is_and_train_nothing(program, started, capsys):
    code, out, _ = said(capsys, [], program=program)
    assert (code, out.splitlines()[0]) == (0, f"usage: {program} COMMAND [flags]")
    assert out == said(capsys, ["--help"], program=program)[1]
    assert started == []


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_all_commands_and_flags(shell, capsys):
    code, out, _ = said(capsys, ["completion", shell])
    assert code == 0
    for word in ("evolve-generalization", "nb_trials", "del_obs", "copy", "to_name"):
        assert word in out


def test_bash_completes(capsys):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    script = said(capsys, ["completion", "bash"])[1]
    asked = """
    COMP_WORDS=(erl evolve --nb_tr); COMP_CWORD=2; COMP_LINE="erl evolve --nb_tr"
    _shtab_erl; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run([bash, "-c", script + asked], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["--nb_trials"]), done.stderr


def test_the_package_installs_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["erl"].partition(":")
    assert getattr(import_module(module), function) is main
    extras = project["optional-dependencies"]
    assert {"dashboard"} <= extras.keys()


# -- the words that start another command --


def start_as(monkeypatch, program, executable=sys.executable, path=""):
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.setattr("sys.executable", str(executable))
    monkeypatch.setenv("PATH", str(path))


@pytest.fixture
def environment(tmp_path):
    """A virtual environment's folder of programs."""
    programs = tmp_path / "a checkout/.venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "python3", "erl"):
        (programs / name).write_text("#!/bin/sh\necho ran\n")
        (programs / name).chmod(0o755)
    return programs


@pytest.mark.parametrize(
    ("active", "program", "printed"),
    [
        (True, "evolve_res.py", "python test.py --study x"),
        (True, "../a checkout/evolve_res.py", "python '../a checkout/test.py' --study x"),
        (True, "BIN/erl", "erl test --study x"),
        (True, "ROOT/erl/__main__.py", "python -m erl test --study x"),
        (False, "evolve_res.py", ".venv/bin/python test.py --study x"),
        (False, "BIN/erl", ".venv/bin/erl test --study x"),
        (False, "ROOT/erl/__main__.py", ".venv/bin/python -m erl test --study x"),
    ],
)
def test_printed_commands_are_those_of_the_shell(
    active, program, printed, environment, monkeypatch
):
    monkeypatch.chdir(environment.parent.parent)
    program = program.replace("BIN", str(environment)).replace("ROOT", str(Path.cwd()))
    start_as(monkeypatch, program, environment / "python", environment if active else "")
    assert cli.command("test", "--study", "x") == printed
    folder = "" if active else ".venv/bin/"
    assert [cli.installed(name) for name in ("erl", "missing")] == [f"{folder}erl", "missing"]


def test_a_printed_command_runs_where_no_environment_is_active(environment, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (environment.parent.parent, elsewhere):
        monkeypatch.chdir(folder)
        for program in ("evolve_res.py", environment / "erl"):
            with monkeypatch.context() as patch:
                start_as(patch, program, environment / "python", "/nowhere")
                line = cli.command("studies", "show", "--study", "it's mine")
            done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, "ran\n"), line
            assert shlex.split(line)[-1] == "it's mine"


def test_another_python_on_the_path_is_not_named(environment, monkeypatch, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(environment, other)
    monkeypatch.chdir(tmp_path)
    start_as(monkeypatch, "evolve_res.py", environment / "python", other)
    assert cli.command("test") == "'a checkout/.venv/bin/python' test.py"


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--help", "studies --help", "evolve --help", "completion bash"])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    command = [sys.executable, "-u", "-m", "erl", *words.split()]
    for buffered in (command, [c for c in command if c != "-u"]):
        process = subprocess.Popen(
            buffered, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(60)
        process.stderr.close()
