"""The house rules that code can check: which module imports which, and what pytest collects."""

import ast
import random
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch
from conftest import begin_luck

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts): p
    for p in sorted((ROOT / "erl").rglob("*.py"))
}
SCRIPTS = {p.stem: p for p in ROOT.glob("*.py") if p.name not in ("conftest.py", "setup.py")}

ROOMS = {p.name for p in (ROOT / "erl").iterdir() if (p / "__init__.py").exists()}
# The rooms, the lowest first, and what each may import. A module at the top of `erl` is a room of
# its own; `erl.cli` knows errors alone.
LEAVES = {"errors", "files", "statistics"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "statistics": {"errors"},
    "parsing": {"errors", "files"},
    "cli": {"errors", "parsing"},
    "networks": LEAVES,
    "populations": LEAVES,
    "executors": LEAVES,
    "worlds": LEAVES,
    "learners": LEAVES | {"networks", "populations", "executors", "worlds"},
    "lifetimes": LEAVES | {"executors", "worlds", "learners", "cli"},
    "search": LEAVES | {"worlds", "lifetimes"},
    "studies": LEAVES | {"worlds", "lifetimes", "search", "cli"},
    "figures": LEAVES | {"worlds", "lifetimes", "studies", "cli"},
    "experiments": LEAVES
    | {"worlds", "executors", "learners", "lifetimes", "search", "studies", "figures", "cli"},
}
# Names of versions before the rooms, which scripts and saved files of users import.
# `erl.commands` names the modules that do what a command asks for; they are imported then.
PROGRAMS = {"erl.__main__", "erl.figures.__main__", "erl.studies.__main__"}
KEPT_NAMES = {"erl.study", "erl.lifetime", "erl.film", "erl.learners.settings"}
# The registry names learners, and a learner is loaded when it is asked for.
REGISTRY = "erl.learners"


@cache
def imports(path):
    """Full names of the modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return frozenset(found)


def own(name):
    """The module's name as it is imported."""
    return name.removesuffix(".__init__")


def room(module):
    """`erl.worlds.tasks` lies in `worlds`, `erl.errors` is `errors`."""
    return module.split(".")[1] if "." in module else module


GRAPH = {
    own(name): {own(i) for i in imports(path) if i.split(".")[0] == "erl" and own(i) != own(name)}
    for name, path in FILES.items()
}


def late(module, imported):
    """Whether the registry of learners asks for a learner."""
    return module == REGISTRY and imported.startswith(f"{REGISTRY}.")


def reached(module):
    """All modules of this project that a module imports, directly or not."""
    found = set()
    todo = [i for i in GRAPH[module] if not late(module, i)]
    while todo:
        if (now := todo.pop()) not in found:
            found.add(now)
            todo += [i for i in GRAPH.get(now, ()) if not late(now, i)]
    return found


def test_imports_go_one_way():
    assert not [module for module in GRAPH if module in reached(module)]


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_room_imports_what_lies_below_it(name):
    for module in GRAPH:
        if "." in module and room(module) == name and module not in KEPT_NAMES | PROGRAMS:
            outside = {room(i) for i in GRAPH[module] if "." in i} - {name}
            assert outside <= MAY_IMPORT[name], f"{module} imports {outside - MAY_IMPORT[name]}"


def test_every_room_has_its_rule_and_says_what_it_is():
    assert MAY_IMPORT.keys() >= ROOMS
    for name in ROOMS:
        assert ast.get_docstring(ast.parse((ROOT / "erl" / name / "__init__.py").read_text()))


def test_nothing_in_the_house_uses_a_kept_name():
    for module, imported in GRAPH.items():
        assert not imported & (KEPT_NAMES - {module}), module


def test_learners_do_not_know_one_another():
    """They share `core`, and `sb3`, as whose models all agents are saved."""

    def learner(module):
        return module.split(".")[2] if module.count(".") > 1 else "core"

    for module in GRAPH:
        if module.startswith("erl.learners."):
            others = {learner(i) for i in GRAPH[module] if i.startswith("erl.learners")}
            assert others <= {learner(module), "core", "sb3"}, f"{module} imports {others}"


def importers(library):
    return {own(n) for n, p in FILES.items() if any(i.split(".")[0] == library for i in imports(p))}


def test_libraries_have_one_door():
    assert importers("reservoirpy") == {"erl.worlds.reservoirs"}
    assert {room(module) for module in importers("optuna")} == {"search", "studies"}
    assert importers("rich") == {"erl.cli"}
    # Numbers are read, and what is given twice is refused, in one way.
    assert importers("yaml") == {"erl.files"}
    assert importers("joblib") == {"erl.executors.local", "erl.executors.machines"}
    assert {room(module) for module in importers("matplotlib")} <= {"figures"}
    assert importers("shtab") == {"erl.commands"}
    assert importers("wandb") == importers("mlflow") == {"erl.experiments.tracking"}
    assert importers("optuna_dashboard") == {"erl.studies.dashboard"}
    assert importers("ray") == {"erl.executors.ray_cluster", "erl.executors.ray_workers"}


def test_assertions_tell_the_type_checker_a_type_and_check_nothing():
    """`python -O` leaves them out."""

    def of_types(test):
        if isinstance(test, ast.BoolOp):
            return all(map(of_types, test.values))
        if isinstance(test, ast.Call):
            return getattr(test.func, "id", None) == "isinstance"
        return isinstance(test, ast.Compare) and ast.unparse(test).endswith(" is not None")

    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                assert of_types(node.test), f"{path}: {ast.unparse(node)}"


def test_a_test_gives_a_clock_to_one_module_and_not_to_the_process():
    """Threads of pytest, of its workers and of libraries go on while a test runs."""
    of_process = re.compile(r"""setattr\(\s*"?(\w+\.)*(time|threading)(\.|, "|", ")""")
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not of_process.findall(path.read_text(encoding="utf-8")), path


def draw():
    """One number from each source that a test may draw from without a seed."""
    drawn = np.random.default_rng().random(), random.random(), np.random.random()  # noqa: NPY002
    drawn += (gym.spaces.Discrete(10**6).sample(), torch.rand(1).item())
    return (*drawn, optuna.create_study().ask().suggest_float("x", 0, 1))


def test_what_a_test_draws_without_a_seed_is_the_same_each_time(monkeypatch):
    first = draw()
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    begin_luck(monkeypatch)
    assert draw() == first


@pytest.mark.xdist_group("house")
def test_a_group_of_tests_is_where_the_scheduler_looks_for_it(request):
    """Or each process of tests would start a cluster of its own."""
    grouped = request.config.getoption("loadgroup", False)
    assert request.node.nodeid.endswith("@house") == grouped


def test_no_two_files_of_tests_have_one_name():
    """Folders of tests are no packages: pytest would refuse the second file."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


def test_what_continuous_integration_installs_is_never_skipped_there():
    """`servers.needed` fails there; `pytest.importorskip` would not."""
    required = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.M)
    installed = {re.sub("[-_.]+", "-", name).lower() for name in required}
    for path in (ROOT / "tests").rglob("*.py"):
        for module in re.findall(r'importorskip\("(\w+)', path.read_text(encoding="utf-8")):
            of = packages_distributions().get(module, [module])
            assert not {re.sub("[-_.]+", "-", name).lower() for name in of} & installed, path


def test_scripts_import_the_package_only():
    for name, path in SCRIPTS.items():
        assert {i.split(".")[0] for i in imports(path)} <= {"erl", "dataclasses"}, name


@pytest.mark.parametrize("arguments", [[], ["."], ["tests"]])
def test_pytest_collects_tests_and_no_script(arguments, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one(): pass\n")
    for name in ("test.py", "test_multi_res.py", "test_generalization.py"):
        (tmp_path / name).write_text("raise SystemExit('collected')\ndef test_script(): pass\n")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if "::" in line] == [
        "tests/test_one.py::test_one"
    ]
