"""The house rules that code can check: which module imports which, and what pytest collects."""

import ast
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "erl").rglob("*.py"))}
SCRIPTS = {p.stem: p for p in ROOT.glob("*.py") if p.name not in ("conftest.py", "setup.py")}

# The registry names learners, and a learner is loaded when it is asked for.
LATE = {("erl.learners", learner) for learner in FILES if learner.startswith("erl.learners.")}
# What learners share, and the parts of one learner. Beyond that they do not know one another.
SHARED = {f"erl.learners{part}" for part in ("", ".settings", ".sb3", ".checkpoints", ".cohort", ".episodes", ".inner")}
SHARED |= {f"erl.learners.off_policy{part}" for part in ("", "_models", "_networks")}
FAMILIES = [
    {f"erl.learners.{part}" for part in ("cohort_ppo", "ppo_training", "ppo_exchange", "ppo_settings")},
    {f"erl.learners.{part}" for part in ("erl_re2", "erl_re2_update", "erl_re2_settings")},
]


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
    return found


def own(name):
    """The module's name as it is imported."""
    return name.removesuffix(".__init__")


GRAPH = {
    own(name): {own(i) for i in imports(path) if i.split(".")[0] == "erl" and (own(name), own(i)) not in LATE}
    for name, path in FILES.items()
}


def reached(module):
    """All modules of this project that a module imports, directly or not."""
    found = set()
    todo = list(GRAPH[module])
    while todo:
        if (now := todo.pop()) not in found:
            found.add(now)
            todo += GRAPH[now]
    return found


def test_imports_go_one_way():
    assert not [module for module in GRAPH if module in reached(module)]
    chains = [
        ["errors", "tasks", "spec", "learners", "lifetime", "executors", "trials", "evolution", "comparison"],
        ["lifetime", "pruning", "study", "trials"],
        ["reservoirs", "search", "study"],
        ["search", "arms", "comparison"],
        ["spec", "arms"],
        ["evaluation", "task_sets", "evolution"],
    ]
    for chain in chains:
        for lower, upper in pairwise(f"erl.{module}" for module in chain):
            assert lower in reached(upper)
    # What is searched and what is compared are described without a database.
    assert not reached("erl.search") & {"erl.study", "erl.evolution", "erl.tasks", "erl.learners"}
    assert not reached("erl.arms") & {"erl.study", "erl.evolution", "erl.comparison"}


@pytest.mark.parametrize("module", ["erl.errors", "erl.cli", "erl.evaluation", "erl.samplers", "erl.asynchronous_cma"])
def test_leaves(module):
    assert GRAPH[module] <= {"erl.errors"} | ({"erl.asynchronous_cma"} if module == "erl.samplers" else set())


def test_learners_do_not_know_one_another():
    for module in GRAPH:
        if module.startswith("erl.learners."):
            family = next((f for f in FAMILIES if module in f), set())
            others = {i for i in GRAPH[module] if i.startswith("erl.learners")} - SHARED - family
            assert not others, f"{module} imports {others}"


def importers(library):
    return {own(n) for n, p in FILES.items() if any(i.split(".")[0] == library for i in imports(p))}


def test_libraries_have_one_door():
    assert importers("reservoirpy") == {"erl.reservoirs"}
    doors = ("storage", "steadiness", "study", "studies", "samplers", "pruning")
    assert importers("optuna") == {f"erl.{m}" for m in doors}
    assert importers("rich") == {"erl.cli"}
    assert importers("joblib") == {"erl.executors"}
    assert importers("matplotlib") <= {"erl.figures"}
    assert importers("ray") == {"erl.ray_executor"}


def test_scripts_import_the_package_only():
    for name, path in SCRIPTS.items():
        assert {i.split(".")[0] for i in imports(path)} <= {"erl", "dataclasses"}, name


def test_nothing_imports_figures():
    assert not [n for n, p in FILES.items() if "erl.figures" in imports(p)]


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
    assert [line for line in done.stdout.splitlines() if "::" in line] == ["tests/test_one.py::test_one"]
