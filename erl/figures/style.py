"""What all figures share: size, colours, labels, captions, files.

Colours are Okabe and Ito's, told apart by readers with any form of colour blindness, and each group
has a marker and a line style too, so that prints without colour serve. Sequential maps are
`cividis`. Figures are made without pyplot: they belong to whoever asked for them, and no window or
global state stays behind.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogFormatterSciNotation

from erl.errors import UserError
from erl.figures.flags import FORMATS
from erl.files import write_whole, writing

WIDTH = 6.5  # inches: the text of a page
SEQUENTIAL = "cividis"
CYCLIC = "twilight"
CAPTION_SIZE = 7.0
TICK_LETTERS = 66  # that have room side by side below axes of the width of the page
LETTERS_AN_INCH = 15  # of names of ticks
TURNED_LETTERS = 6  # that a line takes below the axes if it is turned by 20 degrees
UPRIGHT_LETTERS = 30  # in a line of a name that is upright
LEGEND_LETTERS = 88  # that have room in a line of a legend, of which each entry takes eight more
# Okabe and Ito (2008); their yellow is left out, which is hard to see on paper. A grey of middle
# lightness is the eighth, since a test with controls has many agents.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "*", "<", ">", "h", "d")
LINES: tuple[Any, ...] = (
    *("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2, 1, 2))),
    *((0, (9, 2)), (0, (9, 2, 3, 2)), (0, (2, 1)), (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1, 1, 1))),
    *((0, (7, 4)), (0, (3, 1, 3, 1, 1, 1)), (0, (9, 1, 1, 1))),
)
LOOKS = len(COLOURS) * len(LINES)  # that differ in colour or line
# Agents of a test, by their names, and their places among the looks. In places 8 apart the colour
# is the same and the line another one: so are the two lower learning rates, and memories of one
# kind that see different things. Other agents have what is free, the learner alone place 0.
PLACES = {
    r"(RES|CONTEXT)_.*_0\.0001": 4,
    r"(RES|CONTEXT)_.*_0\.00005": 12,
    "(RES|CONTEXT)_.*": 1,
    "STACK_.*": 2,
    "INPUTS_RecurrentPPO": 14,
    "INPUTS_.*": 10,
    "RANDOM_.*": 3,
    "NOREC_.*": 5,
    "RecurrentPPO": 6,
    "EVOLVED_.*": 7,
}

RC: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "erl",
    "text.parse_math": False,  # names may have dollars
}

# What the parameters are, beside their names in studies.
NAMES = {
    "sr": "spectral radius",
    "lr": "leak rate",
    "iss": "input scaling",
    "units": "neurons",
    "rc_connectivity": "recurrent connectivity",
    "input_connectivity": "input connectivity",
    "bias": "bias scale",
    "bias_connectivity": "share of neurons with a bias",
}

P = ParamSpec("P")


@dataclass(frozen=True)
class Look:
    """How one group of several is drawn."""

    colour: str
    marker: str
    line: Any


def _settings() -> Any:
    """Matplotlib's defaults with this project's style over them."""
    usual: Any = matplotlib.rcParamsDefault
    defaults = {k: v for k, v in usual.items() if "backend" not in k}
    return {**defaults, **RC}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws a figure, in this project's style whatever the caller's is."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_settings()):
            return draw(*args, **kwargs)

    return wrapped


def attempt(draw: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function draws, or the sentence that says why the data do not allow it: for notebooks,
    which go on then.
    """
    try:
        return draw(*args, **kwargs)
    except UserError as e:
        return f"not shown: {e}"


def new(
    rows: int = 1, columns: int = 1, height: float = 3.2, width: float = WIDTH, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, as `pyplot.subplots` gives them.

    Args:
        rows, columns: of axes.
        height, width: of the figure, in inches, without its caption.
        options: of `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def looks(groups: Iterable[Any]) -> dict[Any, Look]:
    """A colour, a marker and a line style for each group, in order."""
    return {name: _look(i) for i, name in enumerate(groups)}


def _look(place: int) -> Look:
    """The look of a place: in the first eight all differs. Of the `LOOKS` no two have the same
    colour and line, and none the same marker and line, so that prints without colour serve.
    """
    place %= LOOKS
    return Look(
        COLOURS[place % len(COLOURS)],
        MARKERS[place % len(MARKERS)],
        LINES[(place + place // len(COLOURS)) % len(LINES)],
    )


def agent_looks(agents: Iterable[str]) -> dict[str, Look]:
    """How agents are drawn: those of a test by their names (`PLACES`), alike in every figure, and
    the others by what is free, in their order. No two of at most `LOOKS` agents have the same
    colour and line style.
    """
    names = list(dict.fromkeys(agents))
    places: dict[str, int] = {}
    for name in names:
        place = next((i for form, i in PLACES.items() if re.fullmatch(form, name)), None)
        if place is not None and place not in places.values():
            places[name] = place
    for name in names:
        if name not in places:
            places[name] = next(i for i in count() if i not in places.values())
    return {name: _look(places[name]) for name in names}


def label(parameter: str) -> str:
    """What a searched parameter is: `sr_2` is "spectral radius (sr_2)"."""
    stem = re.sub(r"_\d+$", "", parameter)
    if stem in NAMES:
        return f"{NAMES[stem]} ({parameter})"
    return parameter.removeprefix("learner.")


def curve(axes: Axes, x: Any, y: Any, look: Look, **options: Any) -> Line2D:
    """Draw a line; where it has but one point, of which no line is seen, a mark.

    Args:
        axes: drawn on.
        x, y: of its points.
        look: of its group.
        options: of `Axes.plot`.
    """
    usual: dict[str, Any] = {"color": look.colour, "linestyle": look.line}
    if len(x) == 1:
        usual["marker"] = look.marker
    return axes.plot(x, y, **(usual | options))[0]


def band(axes: Axes, x: Any, low: Any, high: Any, look: Look, strength: float = 0.18) -> Any:
    """Draw the range around a `curve`; where it has but one point, an error bar.

    Args:
        axes: drawn on.
        x, low, high: of its points.
        look: of the group.
        strength: how opaque it is.
    """
    if len(x) == 1:
        return axes.vlines(x, low, high, color=look.colour, linewidth=1.0)
    return axes.fill_between(x, low, high, color=look.colour, alpha=strength, linewidth=0)


def some_alike(found: Mapping[Any, Look]) -> str:
    """A sentence on groups that are drawn alike, as of more than `LOOKS` some are; else empty."""
    different = len(set(found.values()))
    if different == len(found):
        return ""
    return f"Some look alike: {len(found)} are drawn in {different} ways."


class Powers(LogFormatterSciNotation):
    """Powers of ten as plain text, 10⁻², since no text of a figure is read as mathematics."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a value; empty where there is no room for it."""
        text = str(super().__call__(x, pos))
        text = re.sub(r"\^\{(.*?)\}", lambda power: power[1].translate(_RAISED), text)
        text = text.removeprefix(r"$\mathdefault{").removesuffix("}$")
        return text.replace(r"\times", "×")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def logarithmic(axes: Axes, which: str = "x") -> None:
    """Make an axis logarithmic.

    Args:
        axes: drawn on.
        which: `x` or `y`.
    """
    getattr(axes, f"set_{which}scale")("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(Powers())
    axis.set_minor_formatter(Powers(labelOnlyBase=False))


def environment_names(env_ids: Iterable[str]) -> dict[str, str]:
    """What environments are called, by their ids: without the module, except where two of them
    would then have the same name.
    """
    known = dict.fromkeys(env_ids)
    names = Counter(env_id.rpartition(":")[2] for env_id in known)
    bare = {env_id: env_id.rpartition(":")[2] for env_id in known}
    return {env_id: name if names[name] == 1 else env_id for env_id, name in bare.items()}


def legend(on: Axes | Figure, drawn: Mapping[str, Any], **options: Any) -> Legend:
    """A legend with all these names; Matplotlib alone leaves out those that begin with `_`.

    Args:
        on: axes, or a figure.
        drawn: what is drawn, by its name.
        options: of Matplotlib's `legend`.
    """
    made = on.legend([*drawn.values()], ["-"] * len(drawn), **options)
    for text, name in zip(made.get_texts(), drawn):
        text.set_text(name)
    return made


def legend_above(
    figure: Figure, drawn: Mapping[str, Any], title: str = "", colour: str | None = None
) -> None:
    """A legend above all axes, with as many columns as its longest name has room for. It makes the
    figure longer: the axes keep their height.

    Args:
        figure: drawn on.
        drawn: what is drawn, by its name.
        title: above the names.
        colour: of all that it shows; by default that of what is drawn.
    """
    if not drawn:
        return
    # A name that is wider than the page has several lines.
    named = {textwrap.fill(name, LEGEND_LETTERS): handle for name, handle in drawn.items()}
    longest = max(len(line) for name in named for line in name.splitlines())
    columns = max(1, min(3, LEGEND_LETTERS // (longest + 8)))
    made = legend(figure, named, loc="outside upper center", ncols=columns, title=title)
    if colour:
        for handle, artist in zip(made.legend_handles, named.values()):
            assert handle is not None
            handle.set(color=colour, alpha=artist.get_alpha())
    height = made.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height)


def labelled(axes: Axes) -> dict[str, Any]:
    """What is drawn with a label, by the label: for `legend_above`."""
    handles, names = axes.get_legend_handles_labels()
    return dict(zip(names, handles))


def wrapped(text: str, letters: int, within: bool = True) -> str:
    """Text over several lines, broken between words, and within a word that has no room."""
    return textwrap.fill(text, letters, break_long_words=within, break_on_hyphens=False)


def ticks_beside(axes: Axes, names: Iterable[str]) -> None:
    """Names at 0, 1, 2 … beside axes, over several lines, so that the axes keep their room."""
    lines = [wrapped(name, 36) for name in names]
    axes.set_yticks(range(len(lines)), lines)


def ticks_below(axes: Axes, names: Sequence[str], letters: int = TICK_LETTERS) -> None:
    """Names at 0, 1, 2 … below axes: over several lines, and turned where a word has no room,
    upright if lines are long or would lie on those of the next name. The axes keep their height.

    Args:
        axes: drawn on.
        names: of the ticks.
        letters: that have room side by side below the axes.
    """
    room = letters // len(names)
    lines = [wrapped(name, room, within=False).splitlines() for name in names]
    turned: dict[str, Any] = {}
    longest = max(len(line) for name in lines for line in name)
    if longest > room:
        turned = {"rotation": 20, "ha": "right"}
        if longest > UPRIGHT_LETTERS or room < TURNED_LETTERS * max(map(len, lines)):
            turned = {"rotation": 90}
            lines = [wrapped(name, UPRIGHT_LETTERS).splitlines() for name in names]
            longest = max(len(line) for name in lines for line in name)
            figure = axes.get_figure(root=True)
            assert figure is not None
            figure.set_figheight(figure.get_figheight() + longest / LETTERS_AN_INCH)
    axes.set_xticks(range(len(names)), ["\n".join(name) for name in lines], **turned)


def steps_axis(axes: Axes, text: str = "environment steps") -> None:
    """The x axis counts steps: 200 k, 1 M."""
    axes.set_xlabel(text)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def caption(figure: Figure, *sentences: str) -> Figure:
    """Write a caption below a figure."""
    text = " ".join(s.strip() for s in sentences if s and s.strip())
    written = figure.supxlabel(
        text, x=0.01, ha="left", fontsize=CAPTION_SIZE, color="0.3", wrap=True
    )
    # The axes keep their height: a caption makes the figure longer.
    height = written.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height)
    return figure


def caption_of(figure: Figure) -> str:
    """A figure's caption in one line."""
    return " ".join(figure.get_supxlabel().split())


def save(
    figure: Figure, folder: str | Path, name: str, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write a figure, a file for each format, each whole or not at all.

    Raises:
        UserError: an unknown format, or the folder cannot be written.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise UserError(f"unknown format {unknown[0]!r} (known: {', '.join(FORMATS)})")
    paths = [Path(folder) / f"{name}.{f}" for f in formats]
    # Without a date the same data give the same file.
    dates: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    with matplotlib.rc_context(_settings()), writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, form in zip(paths, formats):
            write_whole(path, partial(figure.savefig, format=form, metadata=dates[form]))
    return paths
