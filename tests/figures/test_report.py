"""The report of real, short runs; what cannot be shown; bad input."""

import base64
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from er_mrl_journals import journal
from figure_fixtures import conditional, lifetimes
from servers import needed

from erl.cli import parse
from erl.commands import COMMANDS, start
from erl.errors import UserError
from erl.experiments.single import SingleConfig
from erl.experiments.single import run as run_single
from erl.figures import report as reports
from erl.figures.agents import JOINT, budgets, compared, generalisation_tests, join, titles
from erl.figures.page import _what_was_run
from erl.figures.report import FigureConfig, describe, report
from erl.figures.style import attempt, caption_of
from erl.studies.artefacts import folder_of, listed, of_trial
from erl.studies.configuration import EvolutionStudy, FinalsStudy, SingleStudy, TestStudy
from erl.studies.data import StudyData, drawn_reservoirs, read_study
from erl.studies.study import Study
from erl.worlds.reservoirs import memory_profile
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task


@pytest.mark.slow
def test_a_report_of_an_evolution_and_its_test(runs, sink, monkeypatch):
    monkeypatch.setattr(reports, "memory_figure", partial(reports.memory_figure, n=2))
    config = FigureConfig(
        study=f"{runs.evolution},{runs.test}", folder="out", formats="png,svg", models=runs.models
    )
    assert report(config, sink) == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "://" not in re.sub(r"sqlite:///\S+|http://www.w3.org\S+", "", page)  # self-contained
    evolution, test = read_study(runs.evolution), read_study(runs.test)
    for word in (evolution.commit, evolution.versions["torch"], "0 to 2 of root seed 0"):
        assert word in page
    best = evolution.trials.fitness.max()
    assert f"fitness {best:,.4g} (a maximum over noisy values)" in page
    # What the test stored with the evolution.
    assert f"<th>test {test.name}</th><td>{evolution.tested[test.name].line}</td>" in page
    seeds = test.lifetimes.seed_environment.astype(str)
    assert all(f"environment {seed}" in page for seed in seeds)
    files = [f for f in Path("out").rglob("*.*") if f.is_file()]
    drawn = {f.name for f in files}
    names = {"history", "search_map", "parallel_coordinates", "slices", "contours", "importances"}
    names |= {"two_levels", "memory", "learning_curves", "sample_efficiency", "returns_final"}
    names |= {"improvement_training", "profiles_final", "episode", "spectra", "frequencies"}
    names |= {"phase_plane"}
    assert {f"{n}.{e}" for n in names for e in ("png", "svg")} <= drawn
    assert {"results_final.tex", "results_training.md", "results_final.csv", "film.mp4"} <= drawn
    images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == len([f for f in files if f.suffix == ".png"])
    assert all(base64.b64decode(data)[:4] == b"\x89PNG" for _, data in images)
    (film,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert base64.b64decode(film)[4:8] == b"ftyp"
    assert "Generalisation" not in page
    with pytest.raises(UserError, match="--overwrite replaces it"):
        report(config, sink)


def test_finals_are_shown_with_their_evolution(sink):
    Study("sqlite:///studies.db", "e_finals", FinalsStudy(EvolutionStudy(env_id="CartPole-v1")))
    with pytest.raises(UserError, match=r"^e_finals has the finals of an evolution: name the evol"):
        report(FigureConfig(study="e_finals", folder="out"), sink)
    assert not Path("out").exists()


@pytest.mark.slow
def test_the_agent_that_is_looked_at_is_the_middle_one(runs):
    data = read_study(runs.test)
    arm, seed, number, path = reports.model_of(data, runs.models)
    assert data.lifetimes.set_index("trial").seed[number] == seed
    part = data.lifetimes[data.lifetimes.arm == arm].sort_values("training_return")
    assert arm == "RES_PPO_0.0003"
    assert seed == part.seed.iloc[1]
    assert path.name == f"seed_{seed}"
    with pytest.raises(UserError, match="there is no model elsewhere"):
        reports.model_of(data, "elsewhere")


@pytest.mark.slow
def test_figures_and_film_are_attached_if_asked_for(runs, sink, without_memory):
    flags = {"models": runs.models, "formats": "png", "attach": True}
    storage, _, name = runs.test.rpartition("#")
    study = Study(storage, name)
    before = study.storage.get_study_system_attrs(study._id)
    assert not listed(before)
    data = read_study(runs.test)
    reports._attach(reports.agents_section(data), data, sink)
    report(FigureConfig(study=runs.test, folder="out", **flags), sink)
    attrs = study.storage.get_study_system_attrs(study._id)
    names = [a.name for a in listed(attrs)]
    assert set(names) >= {"learning_curves.png", "profiles_final.png", "episode.png"}
    assert len(names) == len(set(names))  # the second time they were replaced
    number = reports.model_of(read_study(runs.test), runs.models)[2]
    [film] = listed(attrs, of_trial(study.trials()[number]._trial_id))
    stored = (folder_of(storage) / film.id).read_bytes()
    assert (film.name, stored) == ("film.mp4", Path("out/film.mp4").read_bytes())


@pytest.mark.slow
def test_without_models_the_report_says_what_is_missing(runs, sink, without_memory):
    config = FigureConfig(study=runs.test, folder="out", models="none", formats="png")
    assert report(config, sink) == 0
    assert "not shown: Film and behaviour: there is no model none/" in str(sink)
    assert "Film and behaviour: there is no model" in Path("out/report.html").read_text(
        encoding="utf-8"
    )


def test_single_runs_side_by_side(inline, sink, tmp_path):
    (tmp_path / "quick.yaml").write_text("n_steps: 200\nbatch_size: 100\nn_epochs: 1\n")
    names = []
    for h_test in "ab":
        config = SingleConfig(
            learner="PPO",
            env_id="Pendulum-v1",
            steps=800,
            h_test=h_test,
            nb_seeds=2,
            learner_config="quick.yaml",
            workers=1,
        )
        assert run_single(config, sink) == 0
        names.append(f"Pendulum-v1_PPO_{h_test}_0.8k_steps")
    studies = [read_study(name) for name in names]
    frame = join(studies)
    assert list(frame.arm.unique()) == [f"{name}: PPO" for name in names]
    section = reports.together(studies, "PPO", [-1500.0, -1200.0])
    figures = {name: figure for name, _, figure in section.figures}
    panels = [axes.get_title() for axes in figures["sample_efficiency"].axes]
    assert panels == ["return -1,500", "return -1,200"]
    by_column = {
        f"{figure}_{column}"
        for figure in ("returns", "improvement", "profiles")
        for column in ("training", "final")
    }
    assert set(figures) == {"learning_curves", "sample_efficiency", *by_column}
    for column in ("training", "final"):
        label = figures[f"improvement_{column}"].axes[0].get_xlabel()
        assert label.startswith(f"P(arm > {names[0]}: PPO)")
    assert [name for name, _, _ in section.tables] == ["results_training", "results_final"]
    for _, _, table in section.tables:
        assert list(table.arm) == [f"{name}: PPO" for name in names]
    of = compared(studies)
    assert of.measure == "final_return"  # no evolution selected for training returns
    assert of.about == "2 studies in Pendulum-v1."
    assert compared(studies[:1]).about == describe(studies[0])
    assert reports.together(studies[:1]) is None
    longer = replace(studies[1], config=replace(studies[1].config, steps=8000))
    said = f"Budgets differ: {names[0]} 800 steps, {names[1]} 8,000 steps."
    for _, _, figure in reports.together([studies[0], longer]).figures:
        assert said in caption_of(figure)
    assert not budgets(studies)
    assert "Returns are means" not in caption_of(figures["returns_final"])
    fewer = replace(studies[1], lifetimes=studies[1].lifetimes.assign(ep_eval=5))
    said = f"Returns are means over different numbers of episodes: {names[0]}: PPO 10, {names[1]}"
    joint = reports.together([studies[0], fewer])
    for name, _, figure in joint.figures:
        assert (said in caption_of(figure)) == (name in by_column)
    assert all(said in table.attrs["remark"] for _, _, table in joint.tables)
    for change in ({"del_obs": True}, {"env_kwargs": {"g": 5.0}}):
        other = replace(studies[1], config=replace(studies[1].config, **change))
        with pytest.raises(UserError, match=r"returns in Pendulum-v1, Pendulum-v1 .* share no sca"):
            join([studies[0], other])
    studies[1].lifetimes["env_id"] = "Other-v0"
    with pytest.raises(UserError, match="share no scale"):
        join(studies)


@pytest.mark.slow
def test_tests_make_a_generalisation_matrix(runs):
    data = read_study(runs.test)
    other = read_study(runs.test)
    other = replace(other, config=replace(other.config, env_id="Other-v1"))
    section = reports.together([data, other])
    ((_, _, figure),) = section.figures
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["Pendulum-v1", "Other-v1"]
    assert "3 seeds" in caption_of(figure)


@pytest.fixture
def without_memory(monkeypatch):
    """Reports without the figure of memory, which takes the time of a test."""
    monkeypatch.setattr(reports, "memory_figure", refused)


def test_a_study_with_a_comma_in_its_name_is_one(sink):
    for name in ("a, b", "a"):
        config = FinalsStudy(EvolutionStudy(env_id="CartPole-v1"))
        Study("sqlite:///studies.db", name, config)
    with pytest.raises(UserError, match=r"^a, b has the finals of an evolution"):
        report(FigureConfig(study="a, b", folder="out"), sink)
    with pytest.raises(UserError, match=r"^no study 'c' in sqlite:///studies.db"):
        report(FigureConfig(study="a,c", folder="out"), sink)


def refused(*_, **__):
    raise UserError("not now")


@pytest.mark.slow
def test_evolutions_of_the_same_name_are_two(sink, without_memory):
    names = [journal(3, name=name) for name in ("one.log", "two.log")]
    assert report(FigureConfig(study=",".join(names), folder="out", formats="png"), sink) == 0
    drawn = [f.parent.name for f in Path("out").rglob("history.png")]
    assert sorted(drawn) == [f"{n}#Toy-v0_main_1k_steps" for n in names]
    section = reports.together([read_study(n) for n in names])
    ((_, _, figure),) = section.figures
    assert len(figure.axes[0].lines) == 2
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == [f"{i}  {n}#Toy-v0_main_1k_steps" for i, n in enumerate(names, 1)]


@pytest.fixture
def logs(lifetimes, monkeypatch):
    """Folders of logs, as `read_study` reads them: two are called the same, and one agent is in
    both.
    """
    empty = pd.DataFrame()
    rows = lifetimes.drop(columns=["final_return"]).assign(final_return=None, steps=10_000)
    found = {}
    for folder, arms in (("a/logs", ("PPO", "RES_PPO")), ("b/logs", ("STACK_PPO", "PPO"))):
        frame = rows[rows.arm.isin(arms)].reset_index(drop=True)
        if folder == "b/logs":
            frame = frame.assign(training_return=frame.training_return + 1.0)
            frame = frame.sort_values("arm", ascending=False, kind="stable")
        trials = frame[["trial", "state", "arm", "seed"]].assign(fitness=frame.training_return)
        found[folder] = StudyData(
            "logs", folder, "tensorboard", None, {}, None, {}, trials, frame, empty
        )
    monkeypatch.setattr(reports, "read_study", lambda name, storage: found[name])
    return found


def test_agents_of_folders_of_the_same_name_are_told_apart(logs):
    frame = join([*logs.values()])
    assert list(frame.arm.unique()) == ["a/logs: PPO", "RES_PPO", "STACK_PPO", "b/logs: PPO"]
    done = frame[frame.arm == "b/logs: PPO"]
    (ours,) = (d.lifetimes for name, d in logs.items() if name == "b/logs")
    assert list(done.training_return) == list(ours.training_return[ours.arm == "PPO"])


@pytest.mark.slow
def test_an_agent_has_one_colour_in_a_report(logs, sink, monkeypatch):
    sections = []
    monkeypatch.setattr(reports, "as_html", lambda found: sections.extend(found) or "")
    report(FigureConfig(study="a/logs,b/logs", folder="out", formats="png"), sink)
    colours = {}
    for section in sections:
        for name, _, figure in section.figures:
            if name in ("learning_curves", "profiles_training"):
                for x in figure.axes[0].lines:
                    colours.setdefault(x.get_label(), set()).add(x.get_color())
            elif name == "improvement_training":
                rows = [t.get_text() for t in figure.axes[0].get_yticklabels()]
                for row, x in zip(rows, figure.axes[0].lines[::2]):
                    colours.setdefault(row, set()).add(x.get_color())
    assert set(colours) == {"PPO", "RES_PPO", "STACK_PPO", "a/logs: PPO", "b/logs: PPO"}
    assert all(len(of) == 1 for of in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"attach": True},
            "--attach: a/logs is a folder of logs, to which nothing can be attached",
        ),
        ({"baseline": "RES_PP"}, r"--baseline 'RES_PP': no study has it; did you mean RES_PPO"),
    ],
)
def test_flags_that_no_study_allows_are_refused_before_anything_is_drawn(flags, said, logs, sink):
    with pytest.raises(UserError, match=said):
        report(FigureConfig(study="a/logs,b/logs", folder="out", formats="png", **flags), sink)
    assert not sink.statuses
    assert not Path("out").exists()


@pytest.mark.slow
def test_baseline_and_thresholds_hold_in_all_sections(logs):
    first, second = (
        reports.agents_section(data, "STACK_PPO", [61.5, 62.5]) for data in logs.values()
    )
    for section, baseline in ((first, "PPO"), (second, "STACK_PPO")):
        ((_, _, table),) = section.tables
        steps = [c for c in table if "median" in c]
        assert steps == ["median steps to 61.5", "median steps to 62.5"]
        assert f"P(arm > {baseline})" in table
    joint = reports.together([*logs.values()], "STACK_PPO", [61.5])
    figures = {name: figure for name, _, figure in joint.figures}
    assert figures["improvement_training"].axes[0].get_xlabel().startswith("P(arm > STACK_PPO)")
    assert [axes.get_title() for axes in figures["sample_efficiency"].axes] == ["return 61.5"]
    joint = reports.together([*logs.values()], "b/logs: PPO")
    figures = {name: figure for name, _, figure in joint.figures}
    assert figures["improvement_training"].axes[0].get_xlabel().startswith("P(arm > b/logs: PPO)")


def broken(*_, **__):
    raise ValueError("x and y do not match")


def test_a_figure_that_fails_does_not_end_the_report(sink, monkeypatch, without_memory):
    monkeypatch.setattr(reports.evolution, "slices", broken)
    saved = reports.save

    def save(figure, folder, name, formats):
        return broken() if name == "contours" else saved(figure, folder, name, formats)

    monkeypatch.setattr(reports, "save", save)
    assert report(FigureConfig(study=journal(3), folder="out", formats="png"), sink) == 1
    page = Path("out/report.html").read_text(encoding="utf-8")
    for title in ("Slices", "Contours"):
        said = f"{title}: it failed: ValueError: x and y do not match (test_report.py, line "
        assert said in page
        assert f"not shown: {said}" in str(sink)
    assert Path("out/history.png").exists()
    assert not Path("out/contours.png").exists()
    assert "Contours. " not in page  # of no image


def test_a_table_that_fails_does_not_end_the_report(logs, sink, monkeypatch):
    monkeypatch.setattr(reports.comparison, "results_table", broken)
    assert report(FigureConfig(study="a/logs", folder="out", formats="png"), sink) == 1
    assert "Table of training returns: it failed: ValueError" in str(sink)
    assert str(sink).count("no finished lifetime of this study has a final return") == 1


def test_parameters_that_a_trial_does_not_have_are_not_shown_as_numbers(sink, without_memory):
    assert report(FigureConfig(study=conditional(6), folder="out", formats="png"), sink) == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    page = re.sub('base64,[^"]+', "", page)
    assert "nan" not in page
    assert re.search(r"a maximum over noisy values\): all 0\.\d+, (even|odd) 0\.\d+<", page)


def test_memory_and_retention_of_what_evolved(runs):
    needed("cogscale")
    data = read_study(runs.evolution)
    frame = reports.retention_errors(data, 2, ["simple_copy"])
    assert sorted(frame.group) == ["constant answer", "evolved", "evolved"] + ["not evolved"] * 2
    for group in ("evolved", "not evolved"):
        assert list(frame[frame.group == group].seed) == [0, 1]
    figure = reports.memory_figure(data, n=2)
    assert len(figure.axes[1].lines[0].get_xdata()) == 2
    drawn = [memory_profile(p, seed, 40).sum() for seed, p in enumerate(drawn_reservoirs(data, 2))]
    assert figure.axes[1].lines[1].get_ydata() == pytest.approx(drawn)
    # Where nothing of the reservoir was searched, there is none that was not evolved.
    one = {name: replace(axis, low=0.5, high=0.5) for name, axis in data.space.items()}
    assert drawn_reservoirs(replace(data, space=one), 2) == []
    tested = reports.memory_figure(read_study(runs.test), n=2)
    ours, theirs = (f.axes[1].lines[0].get_ydata() for f in (figure, tested))
    assert np.array_equal(ours, theirs)  # the same evolved reservoir


def test_a_film_of_what_cannot_be_drawn_is_a_sentence():
    spec = LifetimeSpec(
        Task("toy_environments:Recall-v0"), LearnerSpec(), 1000, Seeds.published(3), None
    )
    said = attempt(reports.film, spec, None, Path("film.mp4"), 0, None)
    assert said.startswith("not shown: toy_environments:Recall-v0 cannot be filmed: ")
    assert not Path("film.mp4").exists()


def test_repeated_studies_are_several():
    words = ["--study", "a", "--folder", "x", "--study=b,c"]
    assert parse(FigureConfig, words).study == "a,b,c"
    with pytest.raises(UserError, match=r"^--study needs a value$"):
        parse(FigureConfig, ["--study"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folder": "x"}, "--study is missing"),
        ({"study": "x"}, "--folder is missing"),
        ({"study": "x", "folder": "x", "formats": "jpg"}, "--formats 'jpg'"),
        ({"study": "x", "folder": "x", "thresholds": "1,a"}, "--thresholds '1,a'"),
    ],
)
def test_bad_flags(options, said):
    with pytest.raises(UserError, match=said):
        FigureConfig(**options)


def test_bad_input_leaves_nothing(sink, capsys, tmp_path):
    with pytest.raises(SystemExit) as e:
        start(COMMANDS["plot"], "erl plot", ["--study", "missing", "--folder", "out"])
    assert e.value.code == 2
    assert "erl plot: error:" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be written"):
        report(FigureConfig(study="x", folder="/proc/x"), sink)
    assert not list(tmp_path.iterdir())


def test_a_study_without_trials_has_nothing_to_show(sink, tmp_path):
    optuna.create_study(study_name="empty", storage="sqlite:///empty.db", direction="maximize")
    with pytest.raises(UserError, match=r"nothing to show yet .*trials: none"):
        report(FigureConfig(study="sqlite:///empty.db", folder="out"), sink)
    assert not (tmp_path / "out").exists()
