"""The report of real, short runs; what cannot be shown; bad input."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from figure_fixtures import runs

from erl.commands import COMMANDS, start
from erl.errors import UserError
from erl.experiments.single import SingleConfig
from erl.experiments.single import run as run_single
from erl.figures import report as reports
from erl.figures.flags import joined
from erl.figures.report import FigureConfig, describe, report
from erl.figures.style import caption_of
from erl.studies.artefacts import folder_of, listed, of_trial
from erl.studies.configuration import EvolutionStudy, FinalsStudy, SingleStudy, TestStudy
from erl.studies.data import StudyData, read_study
from erl.studies.study import Study


@pytest.mark.slow
def test_a_report_of_an_evolution_and_its_test(runs, sink):
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
def test_figures_and_film_are_attached_if_asked_for(runs, sink):
    flags = {"models": runs.models, "formats": "png", "attach": True}
    storage, _, name = runs.test.rpartition("#")
    study = Study(storage, name)
    before = study.storage.get_study_system_attrs(study._id)
    assert not listed(before)
    report(FigureConfig(study=runs.test, folder="out", **flags), sink)
    report(FigureConfig(study=runs.test, folder="out", overwrite=True, **flags), sink)
    attrs = study.storage.get_study_system_attrs(study._id)
    names = [a.name for a in listed(attrs)]
    assert set(names) >= {"learning_curves.png", "profiles_final.png", "episode.png"}
    assert len(names) == len(set(names))  # the second time they were replaced
    number = reports.model_of(read_study(runs.test), runs.models)[2]
    [film] = listed(attrs, of_trial(study.trials()[number]._trial_id))
    stored = (folder_of(storage) / film.id).read_bytes()
    assert (film.name, stored) == ("film.mp4", Path("out/film.mp4").read_bytes())


@pytest.mark.slow
def test_without_models_the_report_says_what_is_missing(runs, sink):
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
    frame = reports.join(studies)
    assert list(frame.arm.unique()) == [f"{name}: PPO" for name in names]
    section = reports.together(studies)
    assert {name for name, _, _ in section.figures} == {
        "learning_curves",
        "returns",
        "profiles",
        "improvement",
    }
    assert reports.together(studies[:1]) is None
    studies[1].lifetimes["env_id"] = "Other-v0"
    with pytest.raises(UserError, match="share no scale"):
        reports.join(studies)


def test_tests_make_a_generalisation_matrix(runs):
    data = read_study(runs.test)
    other = read_study(runs.test)
    other = replace(other, config=replace(other.config, env_id="Other-v1"))
    section = reports.together([data, other])
    ((_, _, figure),) = section.figures
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["Pendulum-v1", "Other-v1"]
    assert "3 seeds" in caption_of(figure)


def test_memory_and_retention_of_what_evolved(runs):
    pytest.importorskip("cogscale")
    data = read_study(runs.evolution)
    frame = reports.retention_errors(data, 2, ["simple_copy"])
    assert sorted(frame.group) == ["constant answer", "evolved", "evolved"] + ["not evolved"] * 2
    figure = reports.memory_figure(data, n=2)
    assert len(figure.axes[1].lines[0].get_xdata()) == 2
    tested = reports.memory_figure(read_study(runs.test), n=2)
    ours, theirs = (f.axes[1].lines[0].get_ydata() for f in (figure, tested))
    assert np.array_equal(ours, theirs)  # the same evolved reservoir


def test_repeated_studies_are_several():
    assert joined(["--study", "a", "--folder", "x", "--study=b,c"]) == [
        "--folder",
        "x",
        "--study",
        "a,b,c",
    ]
    assert joined(["--folder", "x"]) == ["--folder", "x"]
    assert joined(["--study"]) == ["--study"]


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


def test_arguments_of_the_environment_are_said():
    given = {"forward_reward_weight": 0.5}
    single = SingleStudy("PPO", "Swimmer-v4", 1000, env_kwargs=given)
    evolution = EvolutionStudy(env_id="Swimmer-v4", env_kwargs=given)
    test = TestStudy(evolution, {"sr": 1.0}, 1000, "cohort")
    elsewhere = TestStudy(evolution, {"sr": 1.0}, 1000, "cohort", "Hopper-v4")
    for config in (single, evolution, test, elsewhere):
        nothing = pd.DataFrame()
        data = StudyData("name", "", config.kind, config, {}, None, {}, nothing, nothing, nothing)
        words = 'with arguments {"forward_reward_weight": 0.5}'
        assert (words in describe(data)) == (config is not elsewhere)
