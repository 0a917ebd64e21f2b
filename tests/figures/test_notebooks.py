"""The notebooks: the same as their sources, executed on small data from real short runs."""

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import ROOT
from er_mrl_journals import journal
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from servers import needed

from erl.cli import parse
from erl.experiments.evolution import EvolutionConfig
from erl.experiments.flags import study_name

ANALYSIS = ROOT / "analysis"
NAMES = ("evolution", "results", "behaviour")
FEW_RESERVOIRS = """
from functools import partial
from erl.figures import report
report.memory_figure = partial(report.memory_figure, n=2)
"""


def test_every_notebook_has_its_source():
    assert {p.stem for p in ANALYSIS.glob("*.ipynb")} == set(NAMES)
    assert {p.stem for p in ANALYSIS.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_and_source_have_the_same_cells(name):
    notebook = jupytext.read(ANALYSIS / f"{name}.ipynb")
    source = jupytext.read(ANALYSIS / f"{name}.py")
    cells = [
        [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in book.cells]
        for book in (notebook, source)
    ]
    assert cells[0] == cells[1]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_shipped_with_their_outputs(name):
    notebook = nbformat.read(ANALYSIS / f"{name}.ipynb", as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4
    text = (ANALYSIS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 6_000_000
    assert not re.search(r"/(home|tmp|root|work)/", re.sub(r'"image/png": "[^"]*"', "", text))


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_hold_no_logic(name):
    """Cells import, call and show: whatever decides or repeats belongs where tests reach it."""
    source = (ANALYSIS / f"{name}.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(def|class|while|if|try|with|for) ", source, re.M)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_that_data_do_not_allow_ends_no_notebook(name):
    """Figures and tables are attempted, or come from `report.show`, which notes what is missing."""
    source = (ANALYSIS / f"{name}.py").read_text(encoding="utf-8")
    bare = re.findall(
        r"^(?:evolution|two_levels|learning|comparison|behaviour|retention|report|film_agent).*",
        source,
        re.M,
    )
    assert [line for line in bare if not line.startswith("report.show(")] == []


def test_addresses_hold_where_jupyter_runs_a_notebook():
    """In its own folder; studies and models are in the one above, where the scripts run."""
    for name in NAMES:
        source = (ANALYSIS / f"{name}.py").read_text(encoding="utf-8")
        cell = source.partition('tags=["parameters"]\n')[2].partition("# %%")[0]
        given: dict = {}
        exec(cell, given)
        for address in [*given.get("STUDIES", []), *filter(None, [given.get("STUDY")])]:
            assert address.startswith("sqlite:///../studies.db#")
        for folder in filter(None, [given.get("MODEL"), given.get("TABLES")]):
            assert folder.startswith("../")


def test_the_first_notebooks_show_the_result_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"^python evolve_res\.py (.*--nb_trials 30.*)$", readme, re.M)
    flags = parse(EvolutionConfig, words.split())
    name = study_name(flags.subject(), flags.h_test, flags.training_steps)
    for notebook in ("evolution", "results"):
        assert f"studies.db#{name}" in (ANALYSIS / f"{notebook}.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kernel():
    """One for all: it imports everything once, and forgets each notebook's names."""
    kernel, client = start_new_kernel(kernel_name="python3")
    client.execute(FEW_RESERVOIRS, reply=True, timeout=200)
    yield kernel
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


@pytest.fixture
def execute(kernel, tmp_path):
    """Run a notebook with another cell of parameters, in a folder of its own."""
    return lambda name, cell: executed(name, cell, kernel, tmp_path)


def executed(name, cell, kernel, folder):
    """The notebook when it has run, and how many figures it shows."""
    notebook = jupytext.read(ANALYSIS / f"{name}.py")
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = f"%reset -f\n%cd -q {folder}\n{cell}"
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    NotebookClient(notebook, km=kernel, timeout=200).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return notebook, sum("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.slow
def test_the_evolution_runs(runs, execute):
    _, drawn = execute("evolution", f"STUDIES = [{runs.evolution!r}]")
    assert drawn == 8


@pytest.mark.slow
def test_the_evolution_runs_on_a_journal_of_er_mrls(execute):
    _, drawn = execute("evolution", f"STUDIES = [{os.path.abspath(journal(12))!r}]")
    assert drawn == 7  # it stores no lifetimes: both levels cannot be shown


@pytest.mark.slow
@pytest.mark.parametrize(("source", "figures"), [("test", 6), ("logs", 5)])
def test_the_results_run_on_a_test_and_on_logs(source, figures, runs, execute, tmp_path):
    address = getattr(runs, source)
    cell = f"STUDIES, BASELINE, THRESHOLDS, TABLES = [{address!r}], None, None, 'tables'"
    notebook, drawn = execute("results", cell)
    assert drawn == figures  # logs know training returns only
    n = {"test": 10, "logs": 100}[source]
    measure = f"IQM: interquartile mean of the return of the last {n} training episodes."
    assert measure in (tmp_path / "tables" / "results.tex").read_text()
    shown = str(notebook.cells)
    assert measure in shown
    assert "With 3 seeds the intervals are rough" in shown  # below the table


@pytest.mark.slow
def test_the_results_of_several_runs_have_the_agents_of_all(runs, execute, tmp_path):
    folders = [str(Path(runs.logs) / arm) for arm in ("PPO", "RES_PPO_0.0003")]
    cell = f"STUDIES = {folders}\nBASELINE, THRESHOLDS, TABLES = 'PPO', None, 'tables'"
    notebook, drawn = execute("results", cell)
    assert drawn == 5
    assert "2 studies." in str(notebook.cells)
    rows = (tmp_path / "tables" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["arm", "PPO", "RES_PPO_0.0003"]


@pytest.mark.slow
def test_the_results_run_on_a_baseline_that_failed(runs, execute, tmp_path):
    storage, _, name = runs.test.rpartition("#")
    copied = tmp_path / "failed.db"
    shutil.copy(storage.removeprefix("sqlite:///"), copied)
    with closing(sqlite3.connect(copied)) as database, database:
        database.execute(
            "UPDATE trials SET state = 'FAIL' WHERE trial_id IN (SELECT trial_id FROM trial_params "
            "WHERE param_name = 'arm' AND param_value = 0)"
        )
    cell = (
        f"STUDIES = ['sqlite:///{copied}#{name}']\n"
        "BASELINE, THRESHOLDS, TABLES = 'PPO', None, 'tables'"
    )
    notebook, drawn = execute("results", cell)
    said = "not shown: no finished lifetime of PPO, with which others are compared"
    assert str(notebook.cells).count(said) == 3  # the figure, and two tables
    assert drawn == 5
    assert not (tmp_path / "tables").exists()


@pytest.mark.slow
def test_the_behaviour_runs(runs, execute):
    needed("cogscale")
    cell = (
        f"MODEL, STUDY = {runs.model!r}, {runs.evolution!r}\n"
        "EPISODE, STEPS, SHOWN, RESERVOIRS, TASKS = 0, 60, 40, 2, ['simple_copy']"
    )
    notebook, drawn = execute("behaviour", cell)
    assert drawn == 6
    assert Path("film.mp4").stat().st_size > 1000
    (node,) = [c for c in notebook.cells if "node_difference" in c.source]
    shown = node.outputs[0]["data"]["text/plain"]
    assert float(shown) < 1e-6  # the node's states are the agent's
