"""The README tells the truth: its flags and defaults are the scripts', its commands parse, its
snippets and links hold.
"""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from erl import cli, lifetime, study
from erl.experiments import single
from erl.experiments.arms import arm_names, control_names
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    MultiComparisonConfig,
)
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, MultiEvolutionConfig
from erl.experiments.single import SingleConfig
from erl.lifetimes.film import FilmConfig
from erl.search.space import parse_evolve
from erl.studies import commands as studies
from erl.worlds.task_sets import TASK_SETS, load_task_sets, measured_random_returns

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {
    "evolve_res.py": EvolutionConfig,
    "test.py": ComparisonConfig,
    "evolve_multi_res.py": MultiEvolutionConfig,
    "test_multi_res.py": MultiComparisonConfig,
    "evolve_generalization.py": GeneralizationConfig,
    "test_generalization.py": GeneralizationComparisonConfig,
    "-m erl": SingleConfig,
}
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/DESIGN.md",
    "parallelization_tutorials/README.md",
]


def _fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def _flags(script):
    """What the tables say of a script: flag -> (default, meaning)."""

    def table(heading, row):
        section = README.split(f"\n### {heading}\n")[1].split("\n#")[0]
        rows = re.findall(row + r"`--(\w+)` \| (.*?) \| (.*) \|$", section, re.M)
        assert len(rows) == len({name for name, *_ in rows})
        return {name: (default, meaning) for name, default, meaning in rows}

    if script in ("evolve_res.py", "test.py", "-m erl"):
        return table(f"python {script}" if script == "-m erl" else script, r"^\| ")
    flags = _flags("evolve_res.py" if script.startswith("evolve") else "test.py")
    own = table("The other scripts", rf"^\| `{re.escape(script)}` \| ")
    for _, meaning in own.values():
        for name in re.findall(r"in place of `--(\w+)`", meaning):
            del flags[name]
    return flags | own


def _commands():
    """Every command line of a shell block, those that sbatch wraps included, and of inline code."""
    lines = [line for block in _fenced("sh") for line in block.splitlines()]
    lines += re.findall(r'--wrap "([^"]*)"', README)
    lines += [
        code for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README) if code.startswith("python ")
    ]
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_table_has_every_flag_and_its_default(script):
    table, known = _flags(script), {f.name: f.default for f in fields(SCRIPTS[script])}
    assert table.keys() == known.keys()
    for name, default in known.items():
        if default is None:
            assert not table[name][0].startswith("`"), f"--{name} has no default value"
        else:
            assert table[name][0] == f"`{default}`", f"the default of --{name}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_table_names_every_choice_and_alias(script):
    table = _flags(script)
    for field in fields(SCRIPTS[script]):
        default, meaning = table[field.name]
        if meaning != "as above":
            for word in field.metadata["choices"] or ():
                assert f"`{word}`" in f"{default} {meaning}", f"a value of --{field.name}"
        for alias in field.metadata["aliases"]:
            assert f"`{alias.replace('-', '_').replace('__', '--', 1)}`" in meaning, (
                f"an alias of --{field.name}"
            )


@pytest.mark.parametrize(
    "command", [c for c in _commands() if re.match(r"python (\S+\.py|-m erl )", c)]
)
def test_commands_parse(command):
    script, flags = re.fullmatch(r"python (\S+\.py|-m erl)(.*)", command).groups()
    cli.parse(SCRIPTS[script], shlex.split(flags))
    assert script == "-m erl" or (ROOT / script).exists()


@pytest.mark.parametrize(
    "command", [c for c in _commands() if c.startswith("python -m erl.studies ")]
)
def test_commands_on_studies_parse(command):
    name, *flags = shlex.split(command)[3:]
    cli.parse(studies.COMMANDS[name][1], flags)


def test_the_command_that_films_parses():
    (command,) = [c for c in _commands() if c.startswith("python -m erl.film ")]
    cli.parse(FilmConfig, shlex.split(command)[3:])


def test_the_table_of_commands_on_studies_names_every_flag():
    for name, (_, kind, _) in studies.COMMANDS.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", README, re.M)
        assert {f.name for f in fields(kind)} - {"storage", "study"} == set(
            re.findall(r"`--(\w+)", row)
        ) - {"study"}


def test_every_script_is_in_a_command_and_in_the_table_of_commands():
    for script in SCRIPTS:
        assert f"| `python {script}` |" in README


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M)
    assert named
    assert set(named) <= targets


def test_learners_are_the_ones_that_there_are():
    from erl.learners import learner_names

    sentence = re.search(r"that fits the environment's actions: ([\w,\s-]+)\.", README)
    assert sentence
    assert sorted(re.split(r",\s+", sentence.group(1))) == sorted(learner_names())


def test_other_flags_in_the_text_exist():
    configs = [*SCRIPTS.values(), FilmConfig, *(kind for _, kind, _ in studies.COMMANDS.values())]
    known = {f.name for config in configs for f in fields(config)} | {"training_timesteps"}
    # Words of make's, git's, sbatch's, optuna-dashboard's and TensorBoard's are not in backticks of
    # their own.
    for flag in re.findall(r"`--(\w+)[^`]*`", README):
        assert flag.removeprefix("no-") in known or flag == "no", flag


def test_snippets_are_python_and_import_what_exists():
    snippets = _fenced("python")
    assert len(snippets) == 3
    for snippet in snippets:
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("erl"):
                module = {"erl.lifetime": lifetime, "erl.study": study}[node.module]
                assert all(hasattr(module, name.name) for name in node.names)


def test_the_set_that_is_declared_can_be_evolved_for():
    [example] = _fenced("toml")
    Path(re.search(r"# (\S+)", example).group(1)).write_text(example, encoding="utf-8")
    [command] = [c for c in _commands() if "--sets" in c]
    config = cli.parse(GeneralizationConfig, shlex.split(command)[2:])
    assert config.settings()["references"] == {
        "InvertedPendulum-v5": [
            measured_random_returns()["InvertedPendulum-v5"].return_mean,
            950.0,
        ],
        "InvertedDoublePendulum-v5": [60.0, 8000.0],
    }


def test_every_set_is_named():
    section = README.split("\n### Sets of environments\n")[1].split("\n#")[0]
    for name in load_task_sets(TASK_SETS).sets:
        assert f"`{name}`" in section


@pytest.mark.parametrize("command", [c for c in _commands() if "--evolve" in c])
def test_what_is_searched_can_be(command):
    config = cli.parse(EvolutionConfig, shlex.split(command)[2:])
    assert len(parse_evolve(config.evolve)) == config.evolve.count(",") + 1


def test_every_agent_is_named():
    section = README.split("\n### Agents\n")[1].split("\n### ")[0]
    evolution = {"learner": "PPO", "learner_config": {}, "del_obs": True}
    arms = [*arm_names(evolution, {}), *arm_names(evolution, {"learner.learning_rate": 1.0})]
    arms += [re.sub(r"0\.\d+$", "…", name) for name in control_names(evolution, {})]
    for arm in arms:
        assert f"`{arm}`" in section


@pytest.mark.scripts
def test_the_snippets_run(tmp_path, monkeypatch, inline):
    """The main job at a tiny budget, then the README's own lines on what it left."""
    from erl.experiments.comparison import compare
    from erl.experiments.evolution import evolve

    env = {"env_id": "CartPole-v1", "training_steps": 300, "workers": 1, "engine": "sb3"}
    settings = tmp_path / "ppo.yaml"
    settings.write_text("n_steps: 64\nn_epochs: 1\n", encoding="utf-8")
    display = cli.Display()
    assert (
        evolve(
            EvolutionConfig(**env, nb_trials=1, nb_seeds=1, learner_config=str(settings)), display
        )
        == 0
    )
    test = ComparisonConfig(
        study="CartPole-v1_main_0.3k_steps", training_steps=300, workers=1, nb_seeds=1
    )
    assert compare(test, display) == 0
    re2 = (
        "init_steps=60,learning_starts=50,batch_size=16,pr=8,frac_frames_train=0.1,time_steps=5,"
        "eval_freq=0"
    )
    assert (
        single.run(
            SingleConfig(env_id="toy_environments:Reach-v0", steps=800, workers=1, set=re2), display
        )
        == 0
    )
    model, frame, inside = _fenced("python")
    [trained] = (tmp_path / "models").glob("CartPole*")
    model = re.sub(r"models/HalfCheetah[^/\"]*", f"models/{trained.name}", model)
    frame = frame.replace("HalfCheetah-v4_main_300k_steps", "CartPole-v1_main_0.3k_steps")
    namespace = {}
    exec(model, namespace)
    assert namespace["total"] >= 1
    exec(frame, namespace)
    assert len(namespace["frame"]) == 1
    exec(
        inside.replace(
            "HalfCheetah-v4_main_300k_steps", "toy_environments:Reach-v0_ERL-Re2_single_0.8k_steps"
        ),
        namespace,
    )
    assert len(namespace["frame"]) > 3


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_files_hold(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert ((ROOT / document).parent / target.partition("#")[0]).exists(), target


def test_the_design_names_every_module():
    text = (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8")
    layout = text.split("## Layout")[1].split("```")[1]
    for path in (ROOT / "erl").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"^ +{path.name}\b", layout, re.M), path
    for name in re.findall(r"^ +(\w+\.py)", layout, re.M):
        assert list((ROOT / "erl").rglob(name)), name
