"""The report of a study: the figures that it allows, its tables, its film, and one page that says
what was run.

`python -m erl.figures --study NAME --folder out`.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from erl.cli import Sink, plural
from erl.errors import UserError, nearest
from erl.figures import behaviour, comparison, evolution, learning, retention, two_levels
from erl.figures.agents import (
    AGENTS,
    JOINED,
    JOINT,
    Agents,
    agents_of,
    compared,
    generalisation_tests,
    joined,
    titles,
)
from erl.figures.flags import FigureConfig
from erl.figures.page import Section, as_html, describe
from erl.figures.style import save
from erl.files import check_writable, folder_name, reading, write_text, writing
from erl.lifetimes.film import film_agent
from erl.lifetimes.models import load_model
from erl.lifetimes.trace import Trace, trace
from erl.statistics import number_text
from erl.studies.configuration import FinalsStudy, TestStudy, evolved_arm
from erl.studies.data import (
    StudyData,
    attach,
    drawn_reservoirs,
    evolved_reservoirs,
    importances,
    read_study,
    sampler_path,
)
from erl.studies.records import middle_lifetimes
from erl.studies.storage import has_study
from erl.worlds.reservoirs import ReservoirParams
from erl.worlds.specification import LifetimeSpec

# Reservoirs drawn from the search space beside as many seeds of the evolved one.
DRAWN = 20
NOT_EVOLVED = "not evolved"
# Steps of an episode that are shown in detail.
SHOWN = 300


# -- sections --


def evolution_section(data: StudyData) -> Section:
    """What an evolution, or another program's study, shows."""
    about, section = describe(data), Section(data.name, data)
    trials, space = data.trials, data.space
    draw = section.draw
    draw(
        "history",
        "Optimisation history",
        lambda: evolution.optimisation_history(trials, about, data.winner),
    )
    draw(
        "search_map",
        "Map of the search",
        lambda: map_figure(data, about),
    )
    draw(
        "parallel_coordinates",
        "Parallel coordinates",
        lambda: evolution.parallel_coordinates(trials, space, about),
    )
    draw("slices", "Slices", lambda: evolution.slices(trials, space, about))
    draw("contours", "Contours", lambda: evolution.contours(trials, space, about=about))
    draw("importances", "Importances", lambda: importance_figure(data, about))
    draw(
        "two_levels",
        "Both levels of evolution",
        lambda: two_levels.two_levels(trials, data.lifetimes, data.generations, about=about),
    )
    draw("memory", "Memory of reservoirs", lambda: memory_figure(data, about))
    return section


def map_figure(data: StudyData, about: str = "") -> Figure:
    """Where the sampler of a study searched."""
    evolution.completed(data.trials)  # says what is missing before a path is looked for
    path, winner = sampler_path(data), data.winner
    return evolution.search_map(data.trials, data.space, path, about=about, winner=winner)


def importance_figure(data: StudyData, about: str = "") -> Figure:
    """How much each searched parameter of a study matters."""
    return evolution.importances(importances(data), about)


def show(section: Section | None) -> Any:
    """A section's figures and sentences, for notebooks."""
    if section is None:
        return "one study only"
    shown = [figure for _, _, figure in section.figures]
    missing = [f"{title}: {reason}" for title, reason in section.missing]
    if len(shown) == 1 and not missing:
        return shown[0]
    from IPython.display import display

    for item in [*shown, *missing]:
        display(item)
    return None


def show_table(
    of: Agents,
    thresholds: Sequence[float] | None = None,
    folder: str | Path = ".",
    column: str | None = None,
) -> None:
    """The table of a paper, for notebooks: shown, written to `results.csv`, `results.md` and
    `results.tex`, and printed as LaTeX.

    Args:
        of: the agents.
        thresholds: as in `comparison.results_table`.
        folder: of the files.
        column: what is shown, `training_return` or `final_return`; by default the measure.

    Raises:
        UserError: as `comparison.results_table` and `comparison.write_tables`.
    """
    from IPython.display import Markdown, display

    table = comparison.results_table(
        of.lifetimes, of.baseline, column or of.measure, of.order, thresholds, of.selected
    )
    paths = comparison.write_tables(table, folder, "results", of.about)
    _, markdown, latex = (path.read_text(encoding="utf-8") for path in paths)
    display(Markdown(f"{of.about}\n\n{markdown}"))
    print(*paths, "", latex, sep="\n")


def film(spec: LifetimeSpec, agent: Any, path: Path, seed: int, steps: int | None) -> Any:
    """Film an episode beside the state of the reservoir, for notebooks.

    Args:
        spec: of the agent's lifetime.
        agent: from `load_model`.
        path: of the file.
        seed: of the episode.
        steps: of the episode; None for the whole.

    Raises:
        UserError: the environment cannot be drawn, or the file cannot be written.
    """
    from IPython.display import Video

    film_agent(spec, agent, path, seed, steps, panel=True, width=320)
    return Video(str(path), embed=True, html_attributes="controls loop muted")


def _evolved_groups(data: StudyData) -> dict[str, list[ReservoirParams]]:
    """The evolved reservoirs as groups of one, by the names that figures show."""
    evolved = evolved_reservoirs(data)
    many = len(evolved) > 1
    return {f"evolved {i + 1}" if many else "evolved": [p] for i, p in enumerate(evolved)}


def memory_figure(data: StudyData, about: str = "", n: int = DRAWN) -> Figure:
    """Memory of the evolved reservoir, over `n` seeds, beside `n` drawn from the search space, each
    with a seed of its own too.
    """
    frames = [behaviour.memory(_evolved_groups(data), seeds=range(n))]
    for seed, params in enumerate(drawn_reservoirs(data, n)):
        frames.append(behaviour.memory({NOT_EVOLVED: [params]}, seeds=[seed]))
    return behaviour.memory_profiles(pd.concat(frames), about)


def retention_errors(
    data: StudyData, n: int = 10, tasks: Sequence[str] | None = None
) -> pd.DataFrame:
    """Errors on CogScale's tasks of the evolved reservoir, over `n` seeds, and of `n` drawn from
    the search space, each with a seed of its own too, for `retention.profile`.
    """
    frames = [retention.retention(_evolved_groups(data), tasks, range(n))]
    for seed, params in enumerate(drawn_reservoirs(data, n)):
        drawn = retention.retention({NOT_EVOLVED: [params]}, tasks, [seed])
        frames.append(drawn[drawn.group == NOT_EVOLVED])
    return pd.concat(frames, ignore_index=True)


def retention_figure(data: StudyData, n: int = 10, tasks: Sequence[str] | None = None) -> Figure:
    """The errors of `retention_errors`."""
    return retention.profile(retention_errors(data, n, tasks), describe(data))


def agents_section(
    data: StudyData,
    baseline: str | None = None,
    thresholds: Sequence[float] | None = None,
    order: Sequence[str] = (),
) -> Section:
    """What a test, single runs or logs show: learning and comparison.

    Args:
        data: of the study.
        baseline: an agent; one that this study does not have stands aside for its learner alone.
        thresholds: returns of training; by default three between beginning and end.
        order: of the agents of the whole report, by which each has one colour (`agents_of`).
    """
    own = compared([data], baseline if baseline in agents_of([data]) else None)
    section = Section(data.name, data)
    draw_agents(section, replace(own, order=[*(order or own.order)]), thresholds)
    if data.kind == "test":
        section.draw("memory", "Memory of reservoirs", lambda: memory_figure(data, describe(data)))
    if len(data.generations):
        section.draw(
            "two_levels",
            "Evolution within learning",
            lambda: two_levels.two_levels(
                data.trials,
                data.lifetimes,
                data.generations,
                about=own.about,
                order=order or own.order,
            ),
        )
    return section


def draw_agents(section: Section, of: Agents, thresholds: Sequence[float] | None = None) -> None:
    """Figures and tables that compare agents.

    Args:
        section: that takes them.
        of: the agents.
        thresholds: returns of training; by default three between beginning and end.
    """
    section.about = of.about
    frame, order, about, draw = of.lifetimes, of.order, of.about, section.draw
    draw(
        "learning_curves", "Learning curves", lambda: learning.learning_curves(frame, order, about)
    )
    draw(
        "sample_efficiency",
        "Sample efficiency",
        lambda: learning.sample_efficiency(frame, thresholds, order, about),
    )
    for column, name in (("training_return", "training"), ("final_return", "final")):
        what = "training returns" if name == "training" else "final policies"
        try:
            learning.finished(frame, column)
        except UserError as e:  # once, and not for each figure
            section.missing.append((f"Figures and table of {what}", str(e)))
            continue
        draw(
            f"returns_{name}",
            f"Interquartile means, {what}",
            partial(learning.interquartile_means, frame, column, order, about),
        )
        draw(
            f"improvement_{name}",
            f"Probability of improvement, {what}",
            partial(comparison.improvement, frame, of.baseline, column, order, about, of.selected),
        )
        draw(
            f"profiles_{name}",
            f"Performance profiles, {what}",
            partial(comparison.performance_profiles, frame, column, order, about),
        )
        with section.attempt(f"Table of {what}"):
            table = comparison.results_table(
                frame, of.baseline, column, order, thresholds, of.selected
            )
            section.tables.append((f"results_{name}", f"Results, {what}", table))


def model_of(data: StudyData, models: str | Path) -> tuple[str, int, int, Path]:
    """The agent to look at: of the first evolved arm (or the first arm), the seed with the
    middle training return. It is neither the best nor a chosen one.

    Returns:
        Arm, seed, number of the trial, and the path of its model.

    Raises:
        UserError: there is no model.
    """
    learning.finished(data.lifetimes, "training_return")  # says what is missing
    middle = middle_lifetimes(data.lifetimes)
    arms = list(dict.fromkeys(data.lifetimes.arm))
    arm = evolved_arm(arms) or arms[0]
    if arm not in set(middle.arm):
        raise UserError(f"no lifetime of {arm} has finished")
    chosen = middle[middle.arm == arm].iloc[0]
    seed = int(chosen.seed)
    folder = Path(models) / folder_name(data.name)
    path = folder / arm / f"seed_{seed}" if data.kind == "test" else folder / f"seed_{seed}"
    with reading(f"{path}.zip"):
        if not path.with_name(f"{path.name}.zip").is_file():
            raise UserError(f"there is no model {path}.zip")
    return arm, seed, int(chosen.trial), path


def add_behaviour(section: Section, episode: Trace, about: str) -> None:
    """Figures of one episode."""
    draw = section.draw
    last = min(SHOWN, len(episode))
    draw("episode", "An episode", lambda: behaviour.aligned(episode, 0, last, about))
    draw("spectra", "Spectra", lambda: behaviour.spectra(episode, about))
    draw("frequencies", "Neurons and gait", lambda: behaviour.frequencies(episode, about))
    draw("phase_plane", "Reservoir state and gait", lambda: behaviour.phase_plane(episode, about))


def together(
    studies: Sequence[StudyData],
    baseline: str | None = None,
    thresholds: Sequence[float] | None = None,
) -> Section | None:
    """What several studies show side by side; None where that is nothing.

    Args:
        studies: of a report.
        baseline: an agent; by default the first. Where several studies have one of this name, the
            first study's.
        thresholds: returns of training; by default three between beginning and end.
    """
    section = Section(JOINT)
    named = dict(zip(titles(studies), studies))
    outer = {name: d.trials for name, d in named.items() if d.kind in ("evolution", "journal")}
    if len(outer) > 1:
        section.draw("side_by_side", "Evolutions", lambda: evolution.side_by_side(outer))
    tests = [d for d in studies if d.kind == "test"]
    if len(tests) > 1:
        section.draw("generalisation", "Generalisation", lambda: matrix_figure(tests))
    if sum(d.kind in JOINED for d in studies) > 1:
        with section.attempt("Agents of several studies"):
            draw_agents(section, joined(studies, baseline), thresholds)
    return section if section.figures or section.missing else None


def matrix_figure(tests: Sequence[StudyData]) -> Figure:
    """Where agents with reservoirs that evolved in one place do better in another.

    Args:
        tests: other studies among them have no cell.

    Raises:
        UserError: as `generalisation_tests` and `comparison.generalisation`, or one test only.
    """
    found = generalisation_tests(tests)
    if len(found) < 2:
        raise UserError("a matrix of generalisation needs at least two tests")
    several = any(evolved.endswith(")") for evolved, _ in found)
    about = (
        "In brackets: what tells apart the studies of evolutions, or winners, of the same task."
        if several
        else ""
    )
    evolutions = [d.config.evolution for d in tests if isinstance(d.config, TestStudy)]
    final = all(evolution.fitness == "final_eval" for evolution in evolutions)
    column = "final_return" if final else "training_return"  # what all of them selected for
    return comparison.generalisation_matrix(comparison.generalisation(found, column), about)


# -- the whole --


def report(config: FigureConfig, sink: Sink) -> int:
    """Write figures, tables, film and `report.html`.

    Returns:
        Exit code: 0, or 1 if a figure, a table or the film failed. The page says why, and has the
        rest.

    Raises:
        UserError: no such study or baseline, nothing to show, nothing that can be attached to, or
            the folder cannot be written; it is left as it was then.
    """
    folder = Path(config.folder or "")
    page = folder / "report.html"
    with writing(folder):
        if page.exists() and not config.overwrite:
            raise UserError(f"{page} exists; --overwrite replaces it")
        check_writable(str(folder))
    names = [config.study or ""]
    if "," in names[0] and not has_study(config.storage, names[0]):
        names = list(dict.fromkeys(n.strip() for n in names[0].split(",") if n.strip()))
    studies = [read_study(name, config.storage) for name in names]
    for data in studies:
        if isinstance(data.config, FinalsStudy):
            raise UserError(
                f"{data.name} has the finals of an evolution: name the evolution, whose figures "
                f"mark the winner"
            )
        if config.attach and data.kind == "tensorboard":
            raise UserError(
                f"--attach: {data.address} is a folder of logs, to which nothing can be attached"
            )
    baseline, thresholds = config.baseline, config.threshold_list()
    named = dict(zip(titles(studies), studies))
    known = agents_of(studies)
    known += [f"{title}: {agent}" for title, d in named.items() for agent in agents_of([d])]
    if baseline is not None and baseline not in known:
        raise UserError(f"--baseline {baseline!r}: no study has it{nearest(baseline, known)}")
    order = agents_of(studies, baseline)
    sections: list[Section] = []
    for title, data in named.items():
        sink.status(f"drawing {title}")
        if data.kind in AGENTS:
            section = agents_section(data, baseline, thresholds, order)
        else:
            section = evolution_section(data)
        section.title = title
        sections.append(section)
    if (joint := together(studies, baseline, thresholds)) is not None:
        sections.append(joint)
    if not any(s.figures or s.faults for s in sections):
        sink.close()
        why = sections[0].missing[0][1] if sections[0].missing else "nothing is stored"
        raise UserError(f"{', '.join(names)}: there is nothing to show yet ({why})")
    for section in sections:
        place = folder if len(sections) == 1 else folder / folder_name(section.title)
        if section.data is not None and section.data.kind in ("test", "single"):
            _look_at_an_agent(section, place, config, sink)
        _write_figures(section, place, config.form_list(), sink)
        for name, title, table in section.tables:
            comparison.write_tables(table, place, name, f"{title}. {section.about}")
        if config.attach and section.data is not None:
            _attach(section, section.data, sink)
    write_text(page, as_html(sections))
    sink.close()
    drawn = sum(len(s.figures) for s in sections)
    for section in sections:
        for title, reason in section.missing:
            sink.line(f"not shown: {title}: {reason}")
    sink.line(f"{page}: {plural(drawn, 'figure')} of {plural(len(studies), 'study', 'studies')}")
    return 1 if any(s.faults for s in sections) else 0


def _write_figures(section: Section, place: Path, formats: Sequence[str], sink: Sink) -> None:
    """Write a section's figures. One that cannot be rendered is missing then.

    Raises:
        UserError: the folder cannot be written.
    """
    drawn, section.figures = section.figures, []
    for name, title, figure in drawn:
        sink.status(f"writing {place / name}")
        try:
            save(figure, place, name, formats)
        except UserError:
            raise
        except Exception as e:
            section.fault(title, e)
        else:
            section.figures.append((name, title, figure))


def _attach(section: Section, data: StudyData, sink: Sink) -> None:
    """Attach a section's figures to its study, and its film to the trial that it shows."""
    with tempfile.TemporaryDirectory() as folder:
        for name, _, figure in section.figures:
            sink.status(f"attaching {name}")
            [path] = save(figure, folder, name, ["png"])
            attach(data, path)
    if section.film is not None:
        attach(data, section.film[0], section.filmed)


def _look_at_an_agent(section: Section, place: Path, config: FigureConfig, sink: Sink) -> None:
    """Film and behaviour of one agent, where there is a model."""
    assert section.data is not None
    with section.attempt("Film and behaviour"):
        arm, seed, trial, path = model_of(section.data, config.models)
        spec, agent = load_model(path)
        about = f"Agent: {arm}, seed {seed}, whose training return is the middle one."
        episode = None
        if config.film:
            with section.attempt("Film"):
                file = place / "film.mp4"
                episode = film_agent(spec, agent, file, panel=True, width=400, sink=sink)
                earned = number_text(float(episode.rewards.sum()))
                said = f"{about} One episode without exploration, return {earned}."
                section.film, section.filmed = (file, said), trial
        add_behaviour(section, episode or trace(spec, agent), about)
