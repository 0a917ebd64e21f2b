"""What reservoirs retain: CogScale's memory tasks with a linear readout of their states.

CogScale (Bendi-Ouis, De Coudenhove and Hinaut, 2026; `pip install cogscale`) has 14 tasks on
sequences: forecasting, copying after a delay, completing patterns, adding, sorting, brackets and
others. A reservoir is fixed, so only the readout learns a task: ridge regression from the state
(and a constant) to the target, its regularisation chosen on the validation set. Errors are
CogScale's own: mean squared error for numbers, share of wrong symbols otherwise.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erl.errors import UserError, nearest
from erl.figures.style import Look, caption, legend_above, logarithmic, looks, new, styled
from erl.worlds.reservoirs import ReservoirBank, ReservoirParams

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
# CogScale marks steps at which no answer is asked for with this target.
MASKED = -100.0
CONSTANT = "constant answer"
# Networks with published hyperparameters, and what was reported of them.
PUBLISHED = "hyperparameters of the report"
REPORTED = "error of the report"


def _cogscale() -> ModuleType:
    try:
        import cogscale
    except ImportError:
        raise UserError("CogScale's tasks need another package: pip install cogscale") from None
    return cogscale


def task_names() -> list[str]:
    """CogScale's tasks.

    Raises:
        UserError: CogScale is not installed.
    """
    return list(_cogscale().tasks)


def published() -> dict[str, tuple[ReservoirParams, float]]:
    """By task, the best echo state network of 100 units that CogScale's authors found for the
    difficulty `small`, and the error that they report.
    """
    text = (Path(__file__).parent / "cogscale.toml").read_text(encoding="utf-8")
    return {
        task: (ReservoirParams(units=100, sr=row["sr"], lr=row["lr"], iss=row["iss"]), row["error"])
        for task, row in tomllib.loads(text).items()
    }


def published_errors(tasks: Sequence[str] | None = None, seeds: Sequence[int] = (0,)) -> Any:
    """The networks of `published`, each on its task, with this project's reservoir and readout.

    Args:
        tasks: CogScale's names; by default all.
        seeds: of the weights.

    Returns:
        As `retention`, in the group `PUBLISHED`, with the column `published`: the reported error.
    """
    frames = []
    for task, (params, error) in published().items():
        if tasks is None or task in tasks:
            frame = retention({PUBLISHED: [params]}, [task], seeds)
            frames.append(frame[frame.group == PUBLISHED].assign(published=error))
    return pd.concat(frames, ignore_index=True)


def states_of(params: ReservoirParams, seed: int, sequences: np.ndarray) -> np.ndarray:
    """States of a reservoir that is driven by sequences, from zero each: (n, T, units).

    Args:
        params: of the reservoir.
        seed: of its weights.
        sequences: (n, T, features).
    """
    n, length, features = sequences.shape
    bank = ReservoirBank([(params,)] * n, [seed] * n, features)
    states = np.empty((n, length, params.units))
    for t in range(length):
        states[:, t] = bank.step(sequences[:, t])
    return states


class Readout:
    """Ridge regression from states to targets, its regularisation chosen on other data.

    Args:
        states: (n, T, units), to fit. Without units the answer is the mean of the targets.
        targets: (n, T, outputs); steps that are masked are left out.
        other_states, other_targets: to choose the regularisation on.
    """

    def __init__(
        self,
        states: np.ndarray,
        targets: np.ndarray,
        other_states: np.ndarray,
        other_targets: np.ndarray,
    ) -> None:
        x, y = _asked(states, targets)
        x2, y2 = _asked(other_states, other_targets)
        gram, moments = x.T @ x, x.T @ y
        if not states.shape[-1]:  # a constant alone is not regularised: it answers the mean
            self.ridge, self.weights = 0.0, y.mean(0, keepdims=True)
            return
        scale = np.trace(gram) / len(gram)
        fits = [np.linalg.solve(gram + r * scale * np.eye(len(gram)), moments) for r in RIDGES]
        errors = [float(np.mean((x2 @ w - y2) ** 2)) for w in fits]
        best = int(np.argmin(errors))
        self.ridge, self.weights = RIDGES[best], fits[best]

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Answers (n, T, outputs) for states (n, T, units)."""
        return _with_constant(states) @ self.weights


def _with_constant(states: np.ndarray) -> np.ndarray:
    return np.concatenate([states, np.ones((*states.shape[:-1], 1))], axis=-1)


def _asked(states: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States with a constant, and targets, at the steps where an answer is asked for."""
    asked = np.any(targets != MASKED, axis=-1)
    return _with_constant(states)[asked], targets[asked].astype(float)


def retention(
    groups: Mapping[str, Sequence[ReservoirParams]],
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Errors of reservoirs on CogScale's tasks, in the difficulty `small`.

    Args:
        groups: hyperparameters by the name of the group; each is drawn with every seed.
        tasks: CogScale's names; by default all.
        seeds: of the weights. All reservoirs see the same sequences.

    Returns:
        Columns `task`, `category` (CogScale's), `group`, `member`, `seed`, `error`; the group
        `CONSTANT` answers the mean target of the training set at every step.

    Raises:
        UserError: CogScale is not installed, or an unknown task.
    """
    cogscale = _cogscale()
    known = task_names()
    wanted = known if tasks is None else list(tasks)
    for task in wanted:
        if task not in known:
            raise UserError(f"CogScale has no task {task!r}{nearest(task, known)}")
    rows = []
    for task in wanted:
        data = cogscale.build_task(task, difficulty="small", seed=0)
        category = data["category"]
        nothing = {part: np.zeros((*data[f"X_{part}"].shape[:2], 0)) for part in _PARTS}
        rows.append((task, category, CONSTANT, 0, 0, _error(cogscale, data, nothing)))
        for group, members in groups.items():
            for member, params in enumerate(members):
                for seed in seeds:
                    states = {p: states_of(params, seed, data[f"X_{p}"]) for p in _PARTS}
                    error = _error(cogscale, data, states)
                    rows.append((task, category, group, member, seed, error))
    return pd.DataFrame(rows, columns=["task", "category", "group", "member", "seed", "error"])


_PARTS = ("train", "valid", "test")


def _error(cogscale: ModuleType, data: Mapping[str, Any], states: Mapping[str, Any]) -> float:
    """CogScale's error of a readout of these states on the test set."""
    targets = {part: np.asarray(data[f"Y_{part}"], dtype=float) for part in _PARTS}
    several = data["category"] == "multi_classification"
    if several:  # CogScale takes answers above zero for yes
        targets = {p: np.where(y == MASKED, y, 2 * y - 1) for p, y in targets.items()}
    readout = Readout(states["train"], targets["train"], states["valid"], targets["valid"])
    answers = readout(states["test"])
    truth = np.asarray(data["Y_test"], dtype=float)
    return float(cogscale.compute_score(Y=truth, Y_hat=answers, category=data["category"]))


def _draw_groups(
    axes: Axes, part: pd.DataFrame, tasks: Sequence[str], styles: Mapping[str, Look]
) -> dict[str, Line2D]:
    """Median and quartiles of the errors of each group, a row for each task.

    Returns:
        A mark of each group, for the legend.
    """
    drawn: dict[str, Line2D] = {}
    for g, (group, look) in enumerate(styles.items()):
        offset = (g - (len(styles) - 1) / 2) * 0.6 / max(1, len(styles))
        for i, task in enumerate(tasks):
            errors = part[(part.task == task) & (part.group == group)].error
            if not len(errors):
                continue
            low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75])
            axes.plot([low, high], [i + offset] * 2, color=look.colour, linewidth=2.5)
            [drawn[group]] = axes.plot(
                middle, i + offset, look.marker, color=look.colour, markersize=5
            )
    return drawn


def _draw_references(
    axes: Axes,
    part: pd.DataFrame,
    tasks: Sequence[str],
    known: Mapping[str, tuple[ReservoirParams, float]],
) -> dict[str, Line2D]:
    """The published error of each task, and that of a constant answer.

    Returns:
        A mark of each, for the legend.
    """
    drawn: dict[str, Line2D] = {}
    for i, task in enumerate(tasks):
        if task in known:
            [drawn[REPORTED]] = axes.plot(
                known[task][1], i, marker="*", linestyle="", color="black", markersize=6
            )
        constant = part[(part.task == task) & (part.group == CONSTANT)].error
        if len(constant):
            [drawn[CONSTANT]] = axes.plot(
                [constant.iloc[0]] * 2,
                [i - 0.4, i + 0.4],
                color="0.4",
                linestyle="--",
                linewidth=1,
            )
    return drawn


@styled
def profile(frame: pd.DataFrame, about: str = "") -> Figure:
    """Errors on each task, by group (`retention`): median and quartiles, and the error of the best
    published network of 100 units.

    Args:
        frame: from `retention`.
        about: for the caption.
    """
    if not len(frame):
        raise UserError("there are no errors to show")
    kinds = {
        "mean squared error": frame[frame.category == "regression"],
        "share of wrong answers": frame[frame.category != "regression"],
    }
    kinds = {name: part for name, part in kinds.items() if len(part)}
    heights = [part.task.nunique() for part in kinds.values()]
    figure, rows = new(
        len(kinds),
        1,
        height=1.2 + 0.34 * sum(heights),
        height_ratios=heights,
        squeeze=False,
    )
    styles = looks([g for g in frame.group.unique() if g != CONSTANT])
    drawn: dict[str, Line2D] = {}
    for axes, (name, part) in zip(rows[:, 0], kinds.items()):
        tasks = list(dict.fromkeys(part.task))
        drawn |= _draw_groups(axes, part, tasks, styles)
        drawn |= _draw_references(axes, part, tasks, published())
        axes.set_yticks(range(len(tasks)), [t.replace("_", " ") for t in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlabel(name)
        if name == "mean squared error":
            logarithmic(axes)
        else:
            axes.set_xlim(left=-0.02)
    legend_above(figure, drawn)
    sizes = ", ".join(
        f"{group} {len(part.drop_duplicates(['member', 'seed']))}"
        for group, part in frame[frame.group != CONSTANT].groupby("group", sort=False)
    )
    return caption(
        figure,
        "Retention on CogScale's tasks: error of a linear readout of the reservoir's state (median "
        f"and quartiles over reservoirs: {sizes}), lower is better; the dashed line answers the "
        "mean of the training set. The star is the error that CogScale's authors report for their "
        "best network of 100 units.",
        about,
    )
