"""Flags from files, and the help."""

import dataclasses
from pathlib import Path

import pytest

from erl import __version__
from erl.commands import COMMANDS, STUDIES
from erl.errors import UserError
from erl.experiments.evolution_flags import EvolutionConfig
from erl.experiments.flags import GROUPS
from erl.experiments.single import parse_settings
from erl.experiments.single_flags import SingleConfig
from erl.figures.flags import FigureConfig
from erl.parsing import OTHER, make_parser, parse
from erl.worlds.arguments import parse_arguments

KINDS = {name: command.kind() for name, command in (COMMANDS | STUDIES).items()}


def written(name, text):
    Path(name).write_text(text, encoding="utf-8")
    return ["--config", name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "env_id: CartPole-v1\ndel_obs: true\nnb-trials: 7\nmin_sr: 1e-2\npopsize:\n"),
        ("a.yml", "{--env_id: CartPole-v1, del_obs: 'yes', nb_trials: '7', min_sr: 0.01}"),
        ("a.toml", 'env_id = "CartPole-v1"\ndel_obs = true\nnb_trials = 7\nmin_sr = 0.01\n'),
    ],
)
def test_a_file_of_flags_equals_the_flags(name, text):
    words = ["--env_id", "CartPole-v1", "--del_obs", "--nb_trials", "7", "--min_sr", "0.01"]
    config = written(name, text)
    assert parse(EvolutionConfig, config) == parse(EvolutionConfig, words)
    # Flags of the command line override the file, on either side of it.
    for both in ([*config, "--nb_trials", "9"], ["--nb_trials", "9", *config]):
        assert parse(EvolutionConfig, both) == parse(EvolutionConfig, [*words, "--nb_trials", "9"])
    assert parse(EvolutionConfig, [*config, "--no-del_obs"]).del_obs is False


def test_lists_tables_and_further_spellings_of_a_file():
    words = written("a.yaml", "seeds: [3, 5]\nset: {gamma: 0.9, net_arch: [8, 8]}\n")
    config = parse(SingleConfig, words)
    assert config.seeds == "3,5"
    assert parse_settings(config.set) == {"gamma": 0.9, "net_arch": [8, 8]}
    words = written("e.toml", "\ufeff[env_kwargs]\ngravity = 5\n")  # as some editors begin a file
    assert parse_arguments(parse(EvolutionConfig, words).env_kwargs) == {"gravity": 5}
    assert parse(SingleConfig, written("b.yaml", "training_timesteps: 3")).steps == 3
    assert parse(SingleConfig, written("f.yaml", "steps: 1e6")).steps == 1_000_000
    assert parse(SingleConfig, ["--steps", "2.5e5"]).steps == 250_000
    assert parse(FigureConfig, written("c.yaml", "{study: [a, b], folder: f}")).study == "a,b"


def test_values_may_be_negative():
    words = ["--study", "a", "--folder", "f", "--thresholds", "-500,-200"]
    assert parse(FigureConfig, words).thresholds == "-500,-200"
    for word in ("-1e-3", "-.001", "-0.001"):
        assert parse(SingleConfig, ["--mean_update_param", word]).mean_update_param == -0.001
    with pytest.raises(UserError, match=r"^--thresholds needs a value$"):
        parse(FigureConfig, ["--study", "a", "--thresholds", "--folder", "f"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "nb_trails: 3", "a.yaml: unknown flag 'nb_trails'; did you mean nb_trials?"),
        ("a.yaml", "nb_trials: many", "a.yaml: nb_trials must be a whole number, not 'many'"),
        ("a.yaml", "nb_trials: 2.5", "nb_trials must be a whole number"),
        ("a.yaml", "del_obs: maybe", "del_obs must be True or False"),
        ("a.yaml", "nb_trials: 3\nnb-trials: 4", "nb_trials is given twice"),
        ("a.yaml", "nb_trials: [", "a.yaml is not valid"),
        ("a.yaml", "words", "a.yaml must hold names and values, not a str"),
        ("a.toml", "nb_trials = ", "a.toml is not valid"),
        ("a.toml", "[nb_trials]\na = 1", "nb_trials must be a whole number, not"),
        ("a.toml", f"a = {'[' * 2000}", "a.toml is not valid"),
        ("a.ini", "{}", "must end in .yaml, .yml, .toml, .json"),
        ("a.yaml", "nb_trials: 0", "--nb_trials must be at least 1, not 0"),
        ("a.yaml", "config: b.yaml", "unknown flag 'config'"),
        ("a.yaml", "study: ''", "a.yaml: study is empty"),
    ],
)
def test_files_that_cannot_be_read(name, text, message):
    with pytest.raises(UserError) as e:
        parse(EvolutionConfig, written(name, text))
    assert message in str(e.value)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"cannot read --config none.yaml: No such file"):
        parse(EvolutionConfig, ["--config", "none.yaml"])


# -- help --


@pytest.mark.parametrize("name", KINDS)
def test_help_is_grouped_short_and_names_each_flag_once(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = (COMMANDS | STUDIES)[name]
    example = f"erl {name} {command.example}"
    shown = make_parser(KINDS[name], f"erl {name}", command.text, example).format_help()
    assert max(map(len, shown.splitlines())) <= 80
    assert "None" not in shown
    for field in dataclasses.fields(KINDS[name]):
        assert len([n for n in shown.split("\n") if n.startswith(f"  --{field.name} ")]) == 1
        assert field.metadata["help"]
    assert OTHER not in shown, "a flag is in no section of erl.experiments.flags.GROUPS"
    titles = [line[:-1] for line in shown.split("\n") if line.endswith(":") and line[0] != " "]
    usual = [title for title in GROUPS if title in titles] or ["flags"]
    assert titles == [*usual, "general", "example"]


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_a_command(name):
    words = (COMMANDS | STUDIES)[name].example.split()
    assert parse(KINDS[name], words) is not None


def test_a_long_example_is_broken_between_flags():
    example = "erl evolve " + " ".join(f"--nb_trials {10**n}" for n in range(9))
    lines = make_parser(EvolutionConfig, "erl evolve", None, example).format_help().splitlines()
    shown = lines[lines.index("example:") + 1 :]
    assert max(map(len, shown)) <= 80
    assert " ".join(line.strip(" \\") for line in shown) == example
    assert all(line.split()[0] in ("erl", "--nb_trials") for line in shown)


def test_help_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    shown = make_parser(EvolutionConfig, "erl evolve").format_help()
    assert max(map(len, shown.splitlines())) <= 50


def test_every_command_says_its_version(capsys):
    with pytest.raises(SystemExit) as e:
        parse(EvolutionConfig, ["--version"])
    assert (e.value.code, capsys.readouterr().out) == (0, f"erl {__version__}\n")
