"""The house rules that code can check: which module imports which, and what pytest collects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "erl").rglob("*.py"))}
SCRIPTS = {p.stem: p for p in ROOT.glob("*.py") if p.name not in ("conftest.py", "setup.py")}

# A module imports from lower floors only; those of one floor do not import one another.
FLOORS = [
    {"erl", "erl.errors", "erl.figures"},
    {"erl.tasks", "erl.cli", "erl.distributions"},
    {"erl.reservoirs", "erl.samplers"},
    {"erl.spec"},
    {"erl.evaluation", "erl.learners.settings", "erl.lockstep", "erl.gradients", "erl.learners"},
    {"erl.learners.sb3"},
    {"erl.learners.*"},
    {"erl.lifetime"},
    {"erl.executors"},
    {"erl.study"},
    {"erl.evolution"},
    {"erl.comparison"},
    {"erl.__main__"},
]
# The registry names learners, and a learner is loaded when it is asked for.
LATE = {("erl.learners", learner) for learner in FILES if learner.startswith("erl.learners.")}
# Parts of one learner.
FAMILIES = [{"erl.learners.cohort", "erl.learners.cohort_ppo", "erl.learners.ppo_training"}]


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


def floor(module):
    name = module if any(module in f for f in FLOORS) else module.rpartition(".")[0] + ".*"
    return next((i for i, modules in enumerate(FLOORS) if name in modules), None)


def own(name):
    """The module's name as it is imported."""
    return name.removesuffix(".__init__")


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    module = own(name)
    assert floor(module) is not None, f"{module} has no floor yet"
    for imported in imports(FILES[name]):
        imported = own(imported)
        if not imported.startswith("erl") or (module, imported) in LATE:
            continue
        if any({module, imported} <= family for family in FAMILIES):
            continue
        assert floor(imported) < floor(module), f"{module} imports {imported}"


def importers(library):
    return {own(n) for n, p in FILES.items() if any(i.split(".")[0] == library for i in imports(p))}


def test_libraries_have_one_door():
    assert importers("reservoirpy") == {"erl.reservoirs"}
    assert importers("optuna") == {"erl.study", "erl.samplers"}
    assert importers("rich") == {"erl.cli"}
    assert importers("joblib") == {"erl.executors"}
    assert importers("matplotlib") <= {"erl.figures"}
    assert not importers("ray") - {"erl.executors"}


def test_scripts_import_the_package_only():
    for name, path in SCRIPTS.items():
        assert {i.split(".")[0] for i in imports(path)} <= {"erl", "dataclasses"}, name


def test_nothing_imports_figures():
    assert not [n for n, p in FILES.items() if "erl.figures" in imports(p)]


@pytest.mark.parametrize("arguments", [[], ["."], ["tests"], [str(ROOT)], ["test.py"]])
def test_pytest_collects_no_script(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert all(file.startswith("tests/") for file in collected)
    assert ("tests/test_house.py" in collected) == (arguments != ["test.py"])
