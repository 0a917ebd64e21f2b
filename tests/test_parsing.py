"""Flags from files, and the help."""

import dataclasses
from pathlib import Path

import pytest

from erl import __version__
from erl.commands import COMMANDS, STUDIES
from erl.errors import UserError
from erl.experiments.comparison_flags import ComparisonConfig
from erl.experiments.evolution_flags import EvolutionConfig, GeneralizationConfig
from erl.experiments.flags import GROUPS
from erl.experiments.single import parse_settings
from erl.experiments.single_flags import SingleConfig
from erl.figures.flags import FigureConfig
from erl.files import parse_yaml
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


@pytest.mark.parametrize(
    ("kind", "flag", "first", "second"),
    [
        (SingleConfig, "set", "n_steps=128", "batch_size=32"),
        (SingleConfig, "seeds", "3,4", "5"),
        (SingleConfig, "context_set", "a=1", "b=2"),
        (EvolutionConfig, "evolve", "units", "bias=0.1:1"),
        (EvolutionConfig, "context_set", "a=1", "b=2"),
        (ComparisonConfig, "arms", "PPO", "RES_PPO"),
        (GeneralizationConfig, "env_ids", "Ant-v4", "Swimmer-v4"),
        (FigureConfig, "study", "a", "b"),
        (FigureConfig, "thresholds", "-500", "-200"),
        (FigureConfig, "formats", "png", "svg"),
    ],
)
def test_a_repeated_list_has_the_values_of_all(kind, flag, first, second):
    more = {SingleConfig: [], FigureConfig: ["--study", "a", "--folder", "f"]}.get(kind, [])
    more = more[2:] if flag == "study" else more
    more += ["--context", "module:Class"] if flag == "context_set" else []
    words = [f"--{flag}", first, *more, f"--{flag}={second}"]
    assert getattr(parse(kind, words), flag) == f"{first},{second}"
    # The command line goes before a file also here.
    config = written("a.yaml", f"{flag}: [p=1, q=2]" if flag.endswith("set") else f"{flag}: '7'")
    assert getattr(parse(kind, [*words, *config]), flag) == f"{first},{second}"


def test_of_a_repeated_single_value_the_last_one_counts():
    """parallelization_tutorials/slurm_task.sh gives --storage, and its user may give another."""
    words = ["--storage", "a.log", "--workers", "1", "--del_obs", "--storage", "b.log"]
    config = parse(EvolutionConfig, [*words, "--no-del_obs", "--workers=2"])
    assert (config.storage, config.workers, config.del_obs) == ("b.log", 2, False)


def test_what_cannot_be_joined_is_given_once():
    first, second = written("a.yaml", "nb_trials: 3"), written("b.yaml", "units: 20")
    with pytest.raises(UserError, match=r"^--config is given 2 times: give it once$"):
        parse(EvolutionConfig, [*first, *second])
    words = ["--env_kwargs", "{a: 1}", "--env_kwargs", "{b: 2}"]
    with pytest.raises(UserError, match=r"^--env_kwargs is given 2 times: give it once$"):
        parse(EvolutionConfig, words)


def test_repeated_settings_are_merged():
    def settings(*given):
        words = [word for text in given for word in ("--set", text)]
        return parse_settings(parse(SingleConfig, words).set)

    both = {"a": 1, "b": {"c": [2, 3]}}
    assert settings("{a: 1}", "{b: {c: [2, 3]}}") == both
    assert settings("a=1", "{b: {c: [2, 3]}}") == settings("{a: 1}", "b={c: [2, 3]}") == both
    assert settings("{a: 1}", "b=2,c=3") == {"a": 1, "b": 2, "c": 3}
    assert settings("{a: it's, b: 1}") == {"a": "it's", "b": 1}
    for twice in (("a=1", "a=2"), ("{a: 1}", "{a: 2}"), ("a=1", "{b: 1, a: 1}")):
        with pytest.raises(UserError, match=r"^--set gives a twice$"):
            settings(*twice)
    with pytest.raises(UserError, match=r"^--set does not understand \"{a: it's},{b: 1}\""):
        settings("{a: it's}", "{b: 1}")


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
        ("a.yaml", "env_kwargs: {2026-01-01: 3}", "env_kwargs has a name that is no text"),
    ],
)
def test_files_that_cannot_be_read(name, text, message):
    with pytest.raises(UserError) as e:
        parse(EvolutionConfig, written(name, text))
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("on", None),
        ("no", None),
        ("010", None),
        ("0x10", None),
        ("1_000", None),
        ("1e3", None),
        ("1.10", None),
        ("2026-01-01", None),
        ("'on'", "on"),
        ("'010'", "010"),
        ("7", "7"),
        ("a", "a"),
    ],
)
def test_a_text_in_a_file_is_never_another_one(text, reads):
    words = written("a.yaml", f"h_test: {text}")
    if reads is not None:
        assert parse(EvolutionConfig, words).h_test == reads
        return
    with pytest.raises(UserError, match=r"^a.yaml: h_test must be text: write it in quotes$"):
        parse(EvolutionConfig, words)


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [
        (EvolutionConfig, "a.toml", "h_test = true", "h_test must be text: write it in quotes"),
        (EvolutionConfig, "a.json", '{"study": 1.5}', "study must be text: write it in quotes"),
        (EvolutionConfig, "a.yaml", "study: [a, b]", "study must be text, not a list"),
        (EvolutionConfig, "a.yaml", "study: {a: b}", "study must be text, not a mapping"),
        (EvolutionConfig, "a.yaml", "evolve: {units: 3}", "evolve must be text, not a mapping"),
        (ComparisonConfig, "a.yaml", "arms: [PPO, on]", "arms must be text: write it in quotes"),
        (SingleConfig, "a.yaml", "set: 1.5", "set must be text: write it in quotes"),
    ],
)
def test_what_is_no_text_in_a_file_is_refused(kind, name, text, message):
    with pytest.raises(UserError) as e:
        parse(kind, written(name, text))
    assert str(e.value) == f"{name}: {message}"


def test_numbers_in_lists_of_a_file_are_as_they_are_written():
    words = ["--study", "a", "--folder", "f"]
    for text, reads in {"[1e3, 1.10, -5]": "1e3,1.10,-5", "1e3": "1e3", "-500": "-500"}.items():
        flags = parse(FigureConfig, [*words, *written("a.yaml", f"thresholds: {text}")])
        assert flags.thresholds == reads
    flags = parse(FigureConfig, [*words, *written("a.toml", "thresholds = [-500, 2.5]")])
    assert flags.threshold_list() == [-500, 2.5]
    assert parse(SingleConfig, written("b.yaml", "set: {a: 010, b: 1.10}")).set == (
        '{"a": 10, "b": 1.1}'
    )


@pytest.mark.parametrize(
    ("word", "reads"), [("010", 10), ("0_5", 5), ("1_000", 1000), ("1e3", 1000), ("+7", 7)]
)
def test_a_whole_number_in_a_file_is_that_of_the_command_line(word, reads):
    assert parse(SingleConfig, written("a.yaml", f"seed: {word}")).seed == reads
    assert parse(SingleConfig, ["--seed", word]).seed == reads
    both = f"{{b: {word}}}"
    words = written("b.yaml", f"env_kwargs: {both}")
    for text in (both, parse(EvolutionConfig, words).env_kwargs):
        assert parse_arguments(text) == {"b": reads}


def test_sixty_seconds_are_no_number():
    for words in (written("a.yaml", "seed: 1:30"), ["--seed", "1:30"]):
        with pytest.raises(UserError, match="seed must be a whole number, not '1:30'"):
            parse(SingleConfig, words)
    assert parse_yaml("[1:30, 1:30.5, 0o17, 0x1F, .5, -1., 1e3, .inf]") == [
        *("1:30", "1:30.5", 15, 31, 0.5, -1.0, 1000.0, float("inf")),
    ]


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
