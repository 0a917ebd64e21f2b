"""The page of a report: what was run, figures, tables and film, in one file."""

import base64
import html
import math
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from erl.cli import params_text, plural
from erl.errors import UserError
from erl.errors import describe as in_a_line
from erl.figures.style import caption_of, save
from erl.statistics import number_text
from erl.studies.configuration import EvolutionStudy, FinalsStudy, SingleStudy, TestStudy
from erl.studies.data import StudyData
from erl.worlds.arguments import Arguments

# Lifetimes whose seeds a page shows.
SEEDS_SHOWN = 20
Draw = Callable[[], Figure]


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
        about: what was run, for the captions of tables.
    """

    title: str
    data: StudyData | None = None
    figures: list[tuple[str, str, Figure]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    faults: int = 0
    tables: list[tuple[str, str, pd.DataFrame]] = field(default_factory=list)
    film: tuple[Path, str] | None = None
    filmed: int | None = None
    about: str = ""

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
    where, hides, arguments = ", ".join(config.environments), setting.del_obs, setting.env_kwargs
    if isinstance(config, TestStudy):
        hides, arguments = config.hides_velocities, config.arguments
    hidden = " with hidden velocities" if hides else ""
    hidden += f" with arguments {Arguments(arguments)}" if arguments else ""
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


def _missing(value: Any) -> bool:
    """Whether a trial lacks a parameter. None and lists are choices of other programs' studies."""
    return isinstance(value, float) and math.isnan(value)


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
        has = {n: best[n] for n in data.space}
        values = params_text({n: v for n, v in has.items() if not _missing(v)})
        facts["best trial"] = (
            f"{best.trial}, fitness {number_text(best.fitness)} "
            f"(a maximum over noisy values): {values}"
        )
    if data.winner is not None:
        values = params_text(data.winner.params)
        facts["winner"] = f"{data.winner.title}, {data.winner.reached}: {values}"
    for name, test in data.tested.items():
        facts[f"test {name}"] = test.line
    if isinstance(data.config, TestStudy):
        facts["hyperparameters"] = params_text(data.config.params)
    if len(data.lifetimes) and "seed_reservoir" in data.lifetimes:
        roles = [c for c in data.lifetimes if c.startswith("seed_")]
        seeds = data.lifetimes[roles].dropna().drop_duplicates()
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


def _html_table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<table class="data"><tr>{head}</tr>{body}</table>'
