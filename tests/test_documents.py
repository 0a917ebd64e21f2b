"""The documents tell the truth: links hold, commands parse, flags, targets and names exist."""

import ast
import importlib
import re
import statistics
from dataclasses import fields
from pathlib import Path

import pytest
from documents import (
    CONFIGS,
    DOCUMENTS,
    GENERATOR,
    ROOT,
    anchors,
    blocks,
    commands,
    own_flags,
    parsed,
    prose,
    section,
    sentences,
    text,
)

from erl import __version__
from erl.experiments.arms import arm_names, control_names
from erl.files import parse_yaml
from erl.search.space import parse_evolve
from erl.studies.configuration import EvolutionStudy
from erl.worlds.task_sets import TASK_SETS, load_task_sets, measured_random_returns

README = "README.md"
# A changelog names flags that are gone, too.
PLAIN = [d for d in DOCUMENTS if d != "CHANGELOG.md"]


# -- the pages and their links --


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_hold(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.relative_to(ROOT)), target


def test_the_citation_is_of_this_version_and_of_the_readmes_paper():
    citation = parse_yaml((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    assert paper["title"] in text(README)
    names = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    assert " and ".join(names) in text(README)


def test_every_page_is_in_the_index():
    for index, folder in (("docs/README.md", "docs"), ("benchmarks/README.md", "benchmarks")):
        linked = {
            str(((ROOT / index).parent / target.partition("#")[0]).resolve().relative_to(ROOT))
            for target in re.findall(r"\]\(([^)\s]+)\)", text(index))
            if not target.startswith("http")
        }
        pages = {d for d in DOCUMENTS if d.startswith(f"{folder}/")} - {index}
        assert not pages - linked


def test_lines_that_are_explained_are_written_by_the_code():
    written = []
    for path in sorted((ROOT / "erl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            written.append(
                "".join(
                    p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "…"
                    for p in parts
                )
            )
    explained = re.findall(r"^\| `(.+?)` \|", text("docs/troubleshooting.md"), re.M)
    assert [line for line in explained if not any(line in each for each in written)] == []
    assert len(explained) > 10


def test_the_readme_fits_on_200_lines():
    assert len(text(README).splitlines()) <= 200


@pytest.mark.parametrize(
    "document", [d for d in PLAIN if d not in ("docs/flags.md", "docs/glossary.md")]
)
def test_sentences_are_short(document):
    """Half of them have at most 14 words, and none has more than 35."""
    lengths = {s: len(s.split()) for s in sentences(document)}
    assert statistics.median(lengths.values()) <= 14
    assert [s for s, n in lengths.items() if n > 35] == []


# -- commands and flags --


def test_the_page_of_flags_is_generated():
    assert text("docs/flags.md") == GENERATOR.render(), "run python docs/generate.py"


def test_every_flag_is_on_the_page_of_flags():
    for command in (*GENERATOR.FULL, "-m erl", "-m erl.film", "erl eval", "-m erl.figures"):
        part = section("docs/flags.md", f"## {'python ' * command.startswith('-')}{command}")
        named = re.findall(r"^\| `--(\w+)` \| (.*?) \| ", part, re.M)
        assert {name for name, _ in named} == {f.name for f in fields(CONFIGS[command])}
        assert len(named) == len(fields(CONFIGS[command]))


def test_a_variant_shows_what_differs():
    new, gone = GENERATOR.differences(CONFIGS["evolve_generalization.py"], CONFIGS["evolve_res.py"])
    assert {"fixed_iss", "env_type", "nb_res"} <= {field.name for field in new}
    assert set(gone) == {"env_id", "context", "context_set"}


# Names of programs in a table are no commands.
COMMANDS = [
    (d, c)
    for d in PLAIN
    for c in commands(d)
    if c.startswith(("python ", "erl "))
    and c not in ("python -m erl.film", "python -m erl.figures", "python -m erl.studies")
    and not re.fullmatch(r"erl [a-z-]+( [a-z]+)?", c)
]


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_commands_parse(document, command):
    parsed(command)


def test_commands_are_found():
    found = {document for document, _ in COMMANDS}
    assert {README, "docs/evolution.md", "docs/storages.md", "benchmarks/memory.md"} <= found
    with pytest.raises(Exception, match="nb_trails"):
        parsed("python evolve_res.py --nb_trails 3")
    with pytest.raises(AssertionError, match="has no --nothing"):
        parsed("python benchmarks/cohort.py --nothing 3")


@pytest.mark.parametrize("document", PLAIN)
def test_files_of_settings_exist(document):
    named = re.findall(r"--(?:learner_config|env_kwargs|config) (\S+\.\w+)", text(document))
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("document", PLAIN)
def test_flags_in_the_text_exist(document):
    known = {f.name for kind in CONFIGS.values() for f in fields(kind)}
    known |= {a[2:] for k in CONFIGS.values() for f in fields(k) for a in f.metadata["aliases"]}
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= own_flags(script.read_text(encoding="utf-8"))
    known |= {"signal", "requeue"}  # of SLURM
    known |= {"help", "version", "config"}  # of every command
    for flag in re.findall(r"`--(\w[\w-]*)[^`]*`", prose(document)):
        assert flag.replace("-", "_") in known or flag.removeprefix("no-") in known, flag


@pytest.mark.parametrize("document", PLAIN)
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {c.split()[1] for c in commands(document) if c.startswith("make ")}
    assert {name for name in named if "=" not in name} <= targets


def test_every_script_is_in_the_readme():
    for script in ("evolve_res", "evolve_multi_res", "evolve_generalization"):
        assert f"| `python {script}.py` |" in text(README)
        assert (
            f"| `python {script.replace('evolve', 'test').replace('test_res', 'test')}.py` |"
            in (text(README))
        )
    for module in ("erl", "erl.film", "erl.figures", "erl.studies"):
        assert f"| `python -m {module}` |" in text(README)


def test_the_table_of_commands_on_studies_names_every_flag():
    for command, kind in CONFIGS.items():
        if command.startswith("-m erl.studies "):
            (row,) = re.findall(
                rf"^\| `{command.split()[-1]}` \| (.*) \|$", text("docs/storages.md"), re.M
            )
            assert {f.name for f in fields(kind)} - {"storage", "study"} == set(
                re.findall(r"`--(\w+)", row)
            ) - {"study"}


@pytest.mark.parametrize(
    "command",
    [c for d in PLAIN for c in commands(d) if re.match("(python|erl) evolve.*--evolve", c)],
)
def test_what_is_searched_can_be(command):
    config = parsed(command)
    assert len(parse_evolve(config.evolve)) == config.evolve.count(",") + 1


# -- names of learners, agents, sets and modules --


@pytest.mark.parametrize("document", [README, "docs/learners/README.md"])
def test_learners_are_the_ones_that_there_are(document):
    from erl.learners import learner_names

    for name in learner_names():
        assert re.search(rf"(?<!\w){re.escape(name)}\b", text(document)), name
    listed = re.search(r"The names are: ([^.]*)\.", text("docs/learners/README.md")).group(1)
    assert sorted(re.split(r",\s+", listed)) == sorted(learner_names())


def test_every_agent_is_named():
    evolution = EvolutionStudy(learner="PPO", del_obs=True)
    arms = [*arm_names(evolution, {}), *arm_names(evolution, {"learner.learning_rate": 1.0})]
    arms += [re.sub(r"0\.\d+$", "…", name) for name in control_names(evolution, {})]
    for arm in arms:
        assert f"`{arm}`" in section("docs/reading_results.md", "## The test")


def test_sets_of_environments_are_what_the_table_says():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text("docs/generalisation.md"), re.M))
    known = {
        name: {env_id.partition("-v")[0] for env_id in ids}
        for name, ids in load_task_sets(TASK_SETS).sets.items()
    }
    assert rows.keys() == known.keys()
    five = known["forward_mujoco"]
    for name, row in rows.items():
        members = set(re.split(", | without ", row.removeprefix("these five without ")))
        assert known[name] == (five - members if row.startswith("these five") else members)


def test_the_set_that_is_declared_can_be_evolved_for():
    [example] = blocks("docs/generalisation.md", "toml")
    Path(re.search(r"# (\S+)", example).group(1)).write_text(example, encoding="utf-8")
    [command] = [c for c in commands("docs/generalisation.md") if "--sets" in c]
    returns = measured_random_returns()
    assert parsed(command).tasks({})["references"] == {
        "InvertedPendulum-v5": [returns["InvertedPendulum-v5"].return_mean, 950.0],
        "InvertedDoublePendulum-v5": [60.0, 8000.0],
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets_import_what_exists(document):
    for snippet in blocks(document, "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("erl"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)


def test_the_design_names_every_room():
    layout = section("docs/DESIGN.md", "## Rooms")
    rooms = {
        str(path.parent.relative_to(ROOT / "erl")) + "/"
        for path in (ROOT / "erl").rglob("__init__.py")
        if path.parent != ROOT / "erl"
    }
    for room in rooms:
        assert f"{room.split('/')[-2]}/" in layout, room
    for path in (ROOT / "erl").glob("*.py"):
        assert path.name == "__init__.py" or path.name in layout, path


# -- numbers that stand in two places --


@pytest.mark.parametrize(
    ("document", "heading", "source"), [(README, "## A result", "benchmarks/memory.md")]
)
def test_tables_repeat_their_source(document, heading, source):
    rows = re.findall(r"^\| .*\|$", section(document, heading), re.M)
    assert len(rows) > 3
    assert set(rows) <= set(text(source).splitlines())


def test_the_speed_of_ppo_is_the_benchmark_s():
    rows = re.findall(
        r"^\| .*? \| ([\d,]+) \| ([\d.]+) \|$",
        section("docs/learners/ppo.md", "## Speed"),
        re.M,
    )
    assert len(rows) == 5
    table = text("benchmarks/cohort.md")
    for speed, ratio in rows:
        (measured,) = re.findall(rf"^\| [^|]* \| {speed} \| ([\d.]+) \|", table, re.M)
        assert float(measured) == pytest.approx(float(ratio), abs=0.2)


def test_every_benchmark_has_its_command_on_a_page():
    named = {
        name
        for d in DOCUMENTS
        if d.startswith("benchmarks/")
        for name in re.findall(r"python benchmarks/(\w+)\.py", text(d))
    }
    # The others are modules of these.
    scripts = [p for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()]
    assert {p.stem for p in scripts} <= named
