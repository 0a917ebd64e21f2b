"""The report of a study: the figures that it allows, its tables, its film, and one page that says
what was run.

`python -m erl.figures --study NAME --folder out`.
"""

import base64
import html
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from erl.cli import Sink, plural
from erl.errors import UserError, nearest
from erl.errors import describe as in_a_line
from erl.figures import behaviour, comparison, evolution, learning, retention
from erl.figures.flags import FigureConfig
from erl.figures.style import caption_of, save
from erl.files import check_writable, folder_name, write_text, writing
from erl.lifetimes.film import film_agent
from erl.lifetimes.models import load_model
from erl.lifetimes.trace import Trace, trace
from erl.statistics import number_text
from erl.studies.configuration import (
    EvolutionStudy,
    FinalsStudy,
    SingleStudy,
    TestStudy,
    differences,
    evolved_arm,
)
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
from erl.worlds.arguments import Arguments
from erl.worlds.reservoirs import ReservoirParams

# Reservoirs drawn from the search space beside as many seeds of the evolved one.
DRAWN = 20
NOT_EVOLVED = "not evolved"
JOINT = "Studies side by side"
# Lifetimes whose seeds a page shows.
SEEDS_SHOWN = 20
# Steps of an episode that are shown in detail.
SHOWN = 300
Draw = Callable[[], Figure]
# Kinds of studies in which agents are compared.
AGENTS = ("test", "single", "tensorboard")
# Those whose agents are compared with those of other studies.
JOINED = ("single", "tensorboard")


@dataclass
class Section:
    """A study's part of the report, or what several studies show together.

    Attributes:
        title: of the section.
        data: the study; None for several.
        figures: (name, title, figure) of those that could be drawn.
        missing: (title, reason) of those that could not.
        faults: how many of these are missing because of an error that nobody foresaw.
        tables: (title, table).
        film: file of the film, if there is one, and a line about it.
        filmed: number of the trial whose agent it shows.
    """

    title: str
    data: StudyData | None = None
    figures: list[tuple[str, str, Figure]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    faults: int = 0
    tables: list[tuple[str, str, pd.DataFrame]] = field(default_factory=list)
    film: tuple[Path, str] | None = None
    filmed: int | None = None

    def draw(self, name: str, title: str, figure: Draw) -> None:
        """Draw a figure, or note why it cannot be."""
        with self.attempt(title):
            self.figures.append((name, title, figure()))

    @contextmanager
    def attempt(self, title: str) -> Iterator[None]:
        """Note why something cannot be shown, also where it fails: the rest of the report does not
        suffer.
        """
        try:
            yield
        except UserError as e:
            self.missing.append((title, str(e)))
        except Exception as e:
            self.fault(title, e)

    def fault(self, title: str, error: Exception) -> None:
        """Note an error that nobody foresaw, and where it arose."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        self.missing.append((title, f"it failed: {in_a_line(error)} ({where})"))
        self.faults += 1


def describe(data: StudyData) -> str:
    """What was run, with which seeds, in a sentence or two."""
    config, setting = data.config, data.setting
    if data.kind == "tensorboard":
        return f"TensorBoard logs in {data.name}."
    if config is None or setting is None:
        return f"Study {data.name}, which stores no configuration."
    where = ", ".join(data.environments)
    hides = config.hides_velocities if isinstance(config, TestStudy) else setting.del_obs
    hidden = " with hidden velocities" if hides else ""
    tested = config if isinstance(config, TestStudy) and config.env_id is not None else setting
    arguments = Arguments(tested.env_kwargs)
    hidden += f" with arguments {arguments}" if arguments else ""
    if isinstance(config, EvolutionStudy):
        lives = (
            f"{plural(config.nb_seeds, 'seed')} x {config.training_steps:,} steps a trial, "
            f"{config.sampler}, root seed {config.seed}"
        )
    elif isinstance(config, FinalsStudy):
        steps = config.evolution.training_steps
        lives = f"finals, {steps:,} steps a lifetime, root seed {setting.seed}"
    else:
        steps = config.steps if isinstance(config, SingleStudy) else config.training_steps
        seeds = sorted(set(data.lifetimes.seed)) if len(data.lifetimes) else []
        lives = f"{steps:,} steps, seeds {_ranges(seeds)} of root seed {setting.seed}"
    return f"{where}{hidden}, {setting.learner}, {lives}."


def _ranges(numbers: Sequence[int]) -> str:
    """`0 to 9`, `1, 4, 7`."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"


def baseline_of(data: StudyData) -> str | None:
    """The learner alone, if it is among the arms that have a finished lifetime."""
    learner = None if data.setting is None else data.setting.learner
    frame = data.lifetimes
    arms = set(frame.arm[frame.state == "COMPLETE"]) if "arm" in frame else set()
    return next((a for a in (learner, "PPO") if a in arms), None)


def agents_of(studies: Sequence[StudyData], baseline: str | None = None) -> list[str]:
    """The agents of all tests, single runs and logs: the baseline first, then study by study. It is
    the order in figures, and gives each agent its colour.

    Args:
        studies: of a report.
        baseline: one of the agents; by default the first study's learner alone.
    """
    compared = [d for d in studies if d.kind in AGENTS]
    names = [baseline or baseline_of(d) for d in compared[:1]]
    for data in compared:
        # Of lifetimes that failed at once there is nothing but the trial.
        rows = data.trials if "arm" in data.trials else data.lifetimes
        names += [] if "arm" not in rows else [*rows.arm.dropna()]
    return [name for name in dict.fromkeys(names) if name]


def titles(studies: Sequence[StudyData]) -> list[str]:
    """A name for each study that no other has: its own, or with its storage where several have the
    same, or with a number where it is one study several times. So are folders of these names.
    """
    names = [d.name for d in studies]
    folders = Counter([folder_name(JOINT), *map(folder_name, names)])
    shown = [
        d.name
        if folders[folder_name(d.name)] == 1
        else d.address
        if d.kind == "tensorboard"
        else f"{d.address}#{d.name}"
        for d in studies
    ]
    found: list[str] = []
    taken: set[str] = {folder_name(JOINT)}
    for title in shown:
        each, n = title, 1
        while folder_name(each) in taken:
            n += 1
            each = f"{title} ({n})"
        taken.add(folder_name(each))
        found.append(each)
    return found


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
        lambda: evolution.two_levels(trials, data.lifetimes, data.generations, about=about),
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
    data: StudyData,
    column: str,
    baseline: str | None = None,
    thresholds: Sequence[float] | None = None,
    folder: str | Path = ".",
) -> None:
    """The table of a paper, for notebooks: shown, written to `results.csv`, `results.md` and
    `results.tex`, and printed as LaTeX.

    Args:
        data: of a test, of single runs or of logs.
        column: what is shown, `training_return` or `final_return`.
        baseline: an agent; by default the first one.
        thresholds: as in `comparison.results_table`.
        folder: of the files.

    Raises:
        UserError: as `comparison.results_table` and `comparison.write_tables`.
    """
    from IPython.display import Markdown, display

    order = agents_of([data], baseline)
    table = comparison.results_table(data.lifetimes, baseline, column, order, thresholds)
    text = f"{learning.sentence(learning.RETURNS[column])} {describe(data)}"
    paths = comparison.write_tables(table, folder, "results", text)
    _, markdown, latex = (path.read_text(encoding="utf-8") for path in paths)
    display(Markdown(f"{text}\n\n{markdown}"))
    print(*paths, "", latex, sep="\n")


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
    data: StudyData, n: int = 10, tasks: Sequence[str] | None = None, difficulty: str = "small"
) -> pd.DataFrame:
    """Errors on CogScale's tasks of the evolved reservoir, over `n` seeds, and of `n` drawn from
    the search space, each with a seed of its own too, for `retention.profile`.
    """
    frames = [retention.retention(_evolved_groups(data), tasks, range(n), difficulty)]
    for seed, params in enumerate(drawn_reservoirs(data, n)):
        drawn = retention.retention({NOT_EVOLVED: [params]}, tasks, [seed], difficulty)
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
    about, section, frame = describe(data), Section(data.name, data), data.lifetimes
    first = baseline if baseline in agents_of([data]) else baseline_of(data)
    order = order or agents_of([data], first)
    draw = section.draw
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
        draw(
            f"returns_{name}",
            f"Interquartile means, {what}",
            partial(learning.interquartile_means, frame, column, order, about),
        )
        draw(
            f"improvement_{name}",
            f"Probability of improvement, {what}",
            partial(comparison.improvement, frame, first, column, order, about),
        )
        draw(
            f"profiles_{name}",
            f"Performance profiles, {what}",
            partial(comparison.performance_profiles, frame, column, order, about),
        )
        with section.attempt(f"Table of {what}"):
            table = comparison.results_table(frame, first, column, order, thresholds)
            section.tables.append((f"results_{name}", f"Results, {what}", table))
    if data.kind == "test":
        draw("memory", "Memory of reservoirs", lambda: memory_figure(data, about))
    if len(data.generations):
        draw(
            "two_levels",
            "Evolution within learning",
            lambda: evolution.two_levels(data.trials, frame, data.generations, about=about),
        )
    return section


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
            _draw_joined(section, studies, baseline, thresholds)
    return section if section.figures or section.missing else None


def _draw_joined(
    section: Section,
    studies: Sequence[StudyData],
    baseline: str | None,
    thresholds: Sequence[float] | None,
) -> None:
    """Compare the agents of single runs and logs; arguments as those of `together`."""
    joined, about = join(studies), budgets(studies)
    arms = list(dict.fromkeys(joined.get("arm", [])))
    first = next((a for a in arms if baseline in (a, a.rpartition(": ")[2])), None)
    order = [*agents_of(studies, baseline), *arms]
    draw = section.draw
    draw(
        "learning_curves",
        "Learning curves",
        lambda: learning.learning_curves(joined, order, about),
    )
    draw(
        "sample_efficiency",
        "Sample efficiency",
        lambda: learning.sample_efficiency(joined, thresholds, order, about),
    )
    draw(
        "returns",
        "Interquartile means",
        lambda: learning.interquartile_means(joined, order=order, about=about),
    )
    draw(
        "profiles",
        "Performance profiles",
        lambda: comparison.performance_profiles(joined, order=order, about=about),
    )
    draw(
        "improvement",
        "Probability of improvement",
        lambda: comparison.improvement(joined, first, order=order, about=about),
    )


def task_of(env_id: str, del_obs: bool = False, env_kwargs: Mapping[str, Any] | None = None) -> str:
    """An environment in words: with hidden velocities and its arguments, if there are any."""
    hidden = " with hidden velocities" if del_obs else ""
    return f"{env_id}{hidden}" + (f" {Arguments(env_kwargs)}" if env_kwargs else "")


def join(studies: Sequence[StudyData]) -> pd.DataFrame:
    """Lifetimes of the single runs and logs among several studies in one frame; arms are called
    after the study (`titles`) where several studies have one of the same name.

    Raises:
        UserError: they are of different tasks, whose returns share no scale.
    """
    runs = [(t, d) for t, d in zip(titles(studies), studies) if d.kind in JOINED]
    tasks = set()
    for _, data in runs:
        known = data.config if isinstance(data.config, SingleStudy) else None
        for env_id in set(data.lifetimes.get("env_id", [])):
            tasks.add(task_of(env_id, known.del_obs, known.env_kwargs) if known else env_id)
    if len(tasks) > 1:
        raise UserError(
            f"returns in {', '.join(sorted(tasks))} share no scale: show them one by one"
        )
    names = [a for _, d in runs for a in dict.fromkeys(d.lifetimes.get("arm", []))]
    frames = []
    for title, data in runs:
        frame = data.lifetimes
        if len(frame):
            arm = frame.arm.map(lambda a, t=title: a if names.count(a) == 1 else f"{t}: {a}")
            frames.append(frame.assign(arm=arm))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def budgets(studies: Sequence[StudyData]) -> str:
    """A sentence on the steps of single runs and logs, where they differ; else nothing."""
    steps = {
        title: data.config.steps
        if isinstance(data.config, SingleStudy)
        else int(data.lifetimes.steps.max())
        for title, data in zip(titles(studies), studies)
        if data.kind in JOINED and len(data.lifetimes)
    }
    if len(set(steps.values())) < 2:
        return ""
    return f"Budgets differ: {', '.join(f'{t} {n:,} steps' for t, n in steps.items())}."


def matrix_figure(tests: Sequence[StudyData]) -> Figure:
    """Where agents with reservoirs that evolved in one place do better in another."""
    found = generalisation_tests(tests)
    numbered = any(evolved.endswith(")") for evolved, _ in found)
    about = (
        "Rows with a number: other evolutions, or winners, of the same task." if numbered else ""
    )
    return comparison.generalisation_matrix(comparison.generalisation(found), about)


def generalisation_tests(
    tests: Sequence[StudyData],
) -> dict[tuple[str, str], tuple[pd.DataFrame, str, str]]:
    """Tests by (evolved on, tested on), for `comparison.generalisation`: environments with their
    arguments, with steps where the tests differ in them, and with a number for another evolution or
    winner that is called the same.

    Raises:
        UserError: two tests are of the same reservoirs, in the same task, or one has no
            evolved agent.
    """
    configs = [d.config for d in tests if isinstance(d.config, TestStudy)]
    evolved_steps = {c.evolution.training_steps for c in configs}
    tested_steps = {c.training_steps for c in configs}
    known: dict[str, list[tuple[EvolutionStudy, dict[str, float]]]] = {}
    found: dict[tuple[str, str], tuple[pd.DataFrame, str, str]] = {}
    for title, data in zip(titles(tests), tests):
        config = data.config
        if not isinstance(config, TestStudy):
            continue
        source = config.evolution
        evolved = task_of("+".join(source.environments), source.del_obs, source.env_kwargs)
        arguments = source.env_kwargs if config.env_id is None else config.env_kwargs
        env_id = config.env_id or source.environments[0]
        tested = task_of(env_id, config.hides_velocities, arguments)
        evolved += f", {source.training_steps:,} steps" * (len(evolved_steps) > 1)
        tested += f", {config.training_steps:,} steps" * (len(tested_steps) > 1)
        same = known.setdefault(evolved, [])
        equal = (p == config.params and not differences(e, source) for e, p in same)
        before = next((i for i, is_this in enumerate(equal) if is_this), len(same))
        if before == len(same):
            same.append((source, config.params))
        evolved += f" ({before + 1})" * (before > 0)
        if (evolved, tested) in found:
            raise UserError(f"{title} is another test of the same reservoirs in {tested}: omit it")
        arms = list(dict.fromkeys(data.lifetimes.arm)) if len(data.lifetimes) else []
        arm = evolved_arm(arms)
        if arm is None:
            raise UserError(f"{title} has no evolved agent: omit it")
        found[evolved, tested] = (data.lifetimes, source.learner, arm)
    return found


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
    if page.exists() and not config.overwrite:
        raise UserError(f"{page} exists; --overwrite replaces it")
    with writing(folder):
        check_writable(str(folder))
    names = list(dict.fromkeys(n.strip() for n in (config.study or "").split(",") if n.strip()))
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
    agents = agents_of(studies)
    agents += [f"{title}: {agent}" for title, d in named.items() for agent in agents_of([d])]
    if baseline is not None and baseline not in agents:
        raise UserError(f"--baseline {baseline!r}: no study has it{nearest(baseline, agents)}")
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
            text = f"{title}. {describe(section.data) if section.data else ''}"
            comparison.write_tables(table, place, name, text)
        if config.attach and section.data is not None:
            _attach(section, section.data, place, sink)
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


def _attach(section: Section, data: StudyData, place: Path, sink: Sink) -> None:
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
                earned = f"{episode.rewards.sum():,.1f}"
                said = f"{about} One episode without exploration, return {earned}."
                section.film, section.filmed = (file, said), trial
        add_behaviour(section, episode or trace(spec, agent), about)


# -- the page --

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1, h2 { line-height: 1.2 } h2 { border-top: 2px solid #0072b2; padding-top: 1rem; margin-top: 3rem;
  overflow-wrap: anywhere }
img, video { max-width: 100%; height: auto } figure { margin: 1.5rem 0 }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  overflow-wrap: anywhere }
th { overflow-wrap: normal } table.data td { overflow-wrap: normal; white-space: nowrap }
td + td, th + th { font-variant-numeric: tabular-nums }
details { margin: 1rem 0 } summary { cursor: pointer }
"""


def as_html(sections: Sequence[Section]) -> str:
    """One page with everything in it: no other file, no network."""
    names = ", ".join(s.title for s in sections if s.data is not None)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(names)}</title><style>{_STYLE}</style></head><body>",
        "<h1>Report</h1>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.data is not None:
            parts += _what_was_run(section.data)
        for _, title, table in section.tables:
            parts += [f"<h3>{html.escape(title)}</h3>", _html_table(table)]
            if table.attrs.get("remark"):
                parts.append(f"<p>{html.escape(table.attrs['remark'])}</p>")
        if section.film is not None:
            file, said = section.film
            film = base64.b64encode(file.read_bytes()).decode()
            parts.append(
                f'<figure><video controls loop muted src="data:video/mp4;base64,{film}"></video>'
                f"<figcaption>{html.escape(said)}</figcaption></figure>"
            )
        for _, title, figure in section.figures:
            parts += [f"<h3>{html.escape(title)}</h3>", _html_figure(title, figure)]
        if section.missing:
            items = "".join(
                f"<li>{html.escape(title)}: {html.escape(reason)}</li>"
                for title, reason in section.missing
            )
            parts.append(f"<h3>Not shown</h3><ul>{items}</ul>")
    return "\n".join([*parts, "</body></html>", ""])


def _html_figure(title: str, figure: Figure) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (file,) = save(figure, folder, "figure", ["png"])
        image = base64.b64encode(file.read_bytes()).decode()
    alt = html.escape(f"{title}. {caption_of(figure)}", quote=True)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{image}"></figure>'


def _what_was_run(data: StudyData) -> list[str]:
    states = data.trials.state.value_counts() if len(data.trials) else {}
    facts: dict[str, Any] = {
        "what": describe(data),
        "kind": data.kind,
        "storage": data.address,
        "trials": ", ".join(f"{n} {s.lower()}" for s, n in states.items()) or "none",
    }
    done = data.trials
    if len(done):
        done = done[(done.state == "COMPLETE") & done.fitness.notna()]
    if data.kind in ("evolution", "journal") and len(done):
        best = done.loc[done.fitness.idxmax()]
        # A trial need not have all parameters that were searched.
        values = ", ".join(f"{n} {_plain(best[n])}" for n in data.space if not pd.isna(best[n]))
        facts["best trial"] = (
            f"{best.trial}, fitness {number_text(best.fitness)} "
            f"(a maximum over noisy values): {values}"
        )
    if data.winner is not None:
        values = ", ".join(f"{n} {_plain(v)}" for n, v in data.winner.params.items())
        facts["winner"] = f"{data.winner.title}, {data.winner.reached}: {values}"
    for name, test in data.tested.items():
        facts[f"test {name}"] = test.line
    if isinstance(data.config, TestStudy):
        facts["hyperparameters"] = ", ".join(
            f"{n} {_plain(v)}" for n, v in data.config.params.items()
        )
    if len(data.lifetimes) and "seed_reservoir" in data.lifetimes:
        roles = [c for c in data.lifetimes if c.startswith("seed_")]
        seeds = data.lifetimes[roles].drop_duplicates()
        rows = [
            ", ".join(f"{c.removeprefix('seed_')} {row[c]}" for c in roles)
            for _, row in seeds.head(SEEDS_SHOWN).iterrows()
        ]
        rows += [f"and {len(seeds) - len(rows)} more"] * (len(seeds) > len(rows))
        facts["seeds of lifetimes"] = "; ".join(rows)
    facts["commit"] = data.commit or "not stored"
    facts["versions"] = ", ".join(f"{k} {v}" for k, v in data.versions.items()) or "not stored"
    shown = "".join(
        f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in facts.items()
    )
    parts = [f"<table>{shown}</table>"]
    if data.stored:
        settings = "".join(
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
            for k, v in data.stored.items()
        )
        parts.append(
            f"<details><summary>Whole configuration</summary><table>{settings}</table></details>"
        )
    return parts


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _html_table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<table class="data"><tr>{head}</tr>{body}</table>'
