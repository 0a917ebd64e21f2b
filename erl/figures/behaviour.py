"""Figures of behaviour: what an agent saw, what its reservoir made of it, and what it did.

All functions take an episode (`erl.lifetimes.trace.Trace`), or arrays that are computed from one
here. Time is in seconds where the environment tells how long a step is, and in steps otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import signal

from erl.cli import plural
from erl.errors import UserError
from erl.figures.style import (
    COLOURS,
    CYCLIC,
    band,
    caption,
    curve,
    legend,
    legend_above,
    logarithmic,
    looks,
    new,
    styled,
)
from erl.lifetimes.trace import Trace
from erl.statistics import number_text
from erl.worlds.reservoirs import ReservoirParams, effective_radius, make_node, memory_profile

# Lines that can be told apart in one panel; more become an image.
LINES = 8
# Steps that an episode has at least for a spectrum.
SHORTEST = 16
# What repeats less often in an episode, or holds a smaller share of the motion, is no gait.
CYCLES, RHYTHM = 3, 0.1


def _with_reservoir(episode: Trace) -> None:
    if not episode.states.shape[1]:
        raise UserError("this agent has no reservoir")


def _about(episode: Trace) -> str:
    """What was played, for captions."""
    task = episode.spec.task
    hidden = ", velocities hidden" if task.del_obs else ""
    hidden += f", arguments {task.kwargs}" if task.kwargs else ""
    return (
        f"{task.env_id}{hidden}, {episode.spec.learner.name}, reservoir seed "
        f"{episode.spec.seeds.reservoir}; one episode without exploration, seed {episode.seed}, "
        f"{plural(len(episode), 'step')}, return {number_text(episode.rewards.sum())}"
        + ("." if episode.ended else " so far.")
    )


def _rows(axes: Axes, times: np.ndarray, values: np.ndarray, name: str) -> None:
    """Columns over time: lines, or an image where they are many."""
    if values.shape[1] <= LINES:
        for i, look in enumerate(looks(range(values.shape[1])).values()):
            curve(axes, times, values[:, i], look, linewidth=1.0, label=str(i + 1))
        if values.shape[1] > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)
        axes.set_ylabel(name)
        return
    # Each row on its own scale: units differ.
    low, high = values.min(0), values.max(0)
    shown = (values - low) / np.where(high > low, high - low, 1.0)
    _image(axes, times, shown, "cividis", Normalize(0, 1))
    axes.set_ylabel(f"{name}\n(each to its range)")


def _image(axes: Axes, times: np.ndarray, values: np.ndarray, cmap: str, norm: Normalize) -> None:
    step = times[1] - times[0] if len(times) > 1 else 1.0
    axes.imshow(
        values.T,
        aspect="auto",
        cmap=cmap,
        norm=norm,
        interpolation="nearest",
        extent=(times[0], times[-1] + step, values.shape[1] + 0.5, 0.5),
    )
    axes.grid(False)


@styled
def aligned(episode: Trace, first: int = 0, last: int | None = None, about: str = "") -> Figure:
    """Observations, reservoir state, actions and reward of an episode over the same time.

    Args:
        episode: of an agent, with a reservoir or without.
        first, last: steps that are shown.
        about: for the caption.
    """
    stop = len(episode) if last is None else min(last, len(episode))
    if not 0 <= first < stop:
        raise UserError(f"steps {first} to {stop} are not in an episode of {len(episode)}")
    has_state = episode.states.shape[1] > 0
    figure, rows = new(
        3 + has_state,
        1,
        height=5.2 + 1.2 * has_state,
        sharex=True,
        height_ratios=[1.2, *([2.0] if has_state else []), 1.0, 0.8],
    )
    part = slice(first, stop)
    times = episode.times[part]
    _rows(rows[0], times, episode.observations[part], "observation")
    if has_state:
        states = episode.states[part]
        # Neurons with like activity lie together: sorted by the phase of their first components.
        largest = float(np.abs(states).max()) or 1.0
        _image(rows[1], times, states[:, by_phase(states)], "PuOr_r", Normalize(-largest, largest))
        rows[1].set_ylabel("neuron (sorted)")
        figure.colorbar(rows[1].images[0], ax=rows[1], label="state", pad=0.01)
    chosen = _chosen(episode.actions[part])
    if chosen is None:
        _rows(rows[-2], times, episode.actions[part], "action")
    else:
        rows[-2].plot(times, chosen, ".", color=COLOURS[0], markersize=3)
        rows[-2].set_yticks(range(episode.actions.shape[1]))
        rows[-2].set_ylabel("action chosen")
    curve(rows[-1], times, episode.rewards[part], looks(["reward"])["reward"], linewidth=1.0)
    rows[-1].set_ylabel("reward")
    rows[-1].set_xlabel(f"time ({episode.time_unit})")
    return caption(figure, _about(episode), about)


def _chosen(actions: np.ndarray) -> np.ndarray | None:
    """The numbers of discrete actions (T,), which a trace holds one-hot; None for others."""
    one_hot = actions.shape[1] > 1 and np.all((actions == 0) | (actions == 1))
    return actions.argmax(1) if one_hot and np.all(actions.sum(1) == 1) else None


def by_phase(states: np.ndarray) -> np.ndarray:
    """The order of neurons (units,) by the angle of their loadings on the first two principal
    components.
    """
    components = principal_components(states)[1]
    return np.argsort(np.arctan2(components[1], components[0]), kind="stable")


def principal_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first two principal components of a trajectory.

    Args:
        values: (T, dim).

    Returns:
        Projection (T, 2), components (2, dim), share of the variance (2,). A component that does
        not exist (one dimension, or no variance) is zero.
    """
    centred = values - values.mean(0)
    _, sizes, components = np.linalg.svd(centred, full_matrices=False)
    shares = sizes**2 / max(float((sizes**2).sum()), np.finfo(float).tiny)
    missing = max(0, 2 - len(sizes))
    components = np.pad(components, ((0, missing), (0, 0)))[:2]
    return centred @ components.T, components, np.pad(shares, (0, missing))[:2]


# -- frequencies --


def spectrum(values: np.ndarray, step: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude spectrum of each column, without its mean, under a Hann window.

    Args:
        values: (T, dim).
        step: time between two rows.

    Returns:
        Frequencies (n,) from above 0 to the Nyquist frequency, and amplitudes (n, dim): a sine of
        amplitude 1 at one of these frequencies has a peak of 1.

    Raises:
        UserError: fewer than `SHORTEST` rows.
    """
    n = len(values)
    if n < SHORTEST:
        raise UserError(f"a spectrum needs at least {SHORTEST} rows; there are {n}")
    window = signal.windows.hann(n, sym=False)
    weighted = (values - values.mean(0)) * window[:, None]
    amplitudes = np.abs(np.fft.rfft(weighted, axis=0)) * 2 / window.sum()
    if n % 2 == 0:  # the Nyquist frequency has no mirror
        amplitudes[-1] /= 2
    return np.fft.rfftfreq(n, step)[1:], amplitudes[1:]


def dominant_frequencies(values: np.ndarray, step: float = 1.0) -> np.ndarray:
    """The frequency of the highest peak of each column's spectrum, (dim,), among those that repeat
    at least `CYCLES` times.

    It is refined by a parabola through the logarithms of the peak and its neighbours. NaN for a
    column that does not move, or whose spectrum only falls from slower movements.
    """
    # A drift, such as a growing position, is no rhythm.
    frequencies, amplitudes = spectrum(signal.detrend(values, axis=0), step)
    first = int(np.argmax(frequencies >= CYCLES / (len(values) * step)))
    found = np.array([_peak(frequencies[first:], a) for a in amplitudes[first:].T])
    highest = first + np.argmax(amplitudes[first:], axis=0)
    columns = np.arange(amplitudes.shape[1])
    falls = (highest == first) & (first > 0)
    falls &= amplitudes[highest - 1, columns] > amplitudes[highest, columns]
    return np.where(falls, np.nan, found)


def _peak(frequencies: np.ndarray, amplitudes: np.ndarray) -> float:
    if amplitudes.max() <= 1e-12:
        return math.nan
    i = int(np.argmax(amplitudes))
    if not 0 < i < len(amplitudes) - 1:
        return float(frequencies[i])
    a, b, c = np.log(np.maximum(amplitudes[i - 1 : i + 2], 1e-300))
    curvature = a - 2 * b + c
    shift = 0.5 * (a - c) / curvature if curvature else 0.0
    return float(frequencies[i] + shift * (frequencies[1] - frequencies[0]))


@dataclass(frozen=True)
class Gait:
    """The rhythm of an episode.

    Attributes:
        frequency: of the dominant peak.
        phase: (T + 1,), in radians within [-pi, pi), along the cycle.
        strength: share of the signal's variance within half an octave around the frequency: near 1
            for a regular gait, small where there is no rhythm.
    """

    frequency: float
    phase: np.ndarray
    strength: float


def gait(episode: Trace) -> Gait:
    """The gait: dominant rhythm of the first principal component of the standardised observations,
    and its phase by the analytic signal (Hilbert transform) of that band.

    It repeats at least `CYCLES` times, and holds at least a share of `RHYTHM` of the variance.

    Raises:
        UserError: an episode that is too short, in which nothing moves, or without a rhythm.
    """
    observed = episode.observations
    spread = observed.std(0)
    moving = observed[:, spread > 1e-9] / spread[spread > 1e-9]
    step = episode.seconds or 1.0
    if len(observed) < SHORTEST or not moving.shape[1]:
        raise UserError(
            "no gait: the episode is too short"
            if moving.shape[1]
            else "no gait: no observation changes in this episode"
        )
    motion = signal.detrend(principal_components(moving)[0][:, 0])
    frequency = float(dominant_frequencies(motion[:, None], step)[0])
    transformed = np.fft.fft(motion)
    band = np.fft.fftfreq(len(motion), step)
    inside = (band >= frequency / math.sqrt(2)) & (band <= frequency * math.sqrt(2))
    analytic = np.fft.ifft(np.where(inside, 2 * transformed, 0))
    share = float(np.var(analytic.real) / max(float(np.var(motion)), np.finfo(float).tiny))
    if not share >= RHYTHM:
        raise UserError(
            f"no gait: no rhythm holds a {1 / RHYTHM:.0f}th of the motion of this episode"
        )
    return Gait(frequency, np.angle(analytic), min(share, 1.0))


@styled
def spectra(episode: Trace, about: str = "") -> Figure:
    """Fourier spectra of observations, reservoir state and actions of an episode.

    Raises:
        UserError: an episode of fewer than `SHORTEST` steps.
    """
    if len(episode) < SHORTEST:
        raise UserError(
            f"a spectrum needs at least {SHORTEST} steps; this episode has {len(episode)}"
        )
    step = episode.seconds or 1.0
    unit = "Hz" if episode.seconds else "cycles per step"
    parts = {"observation": episode.observations, "action": episode.actions}
    if episode.states.shape[1]:
        parts["reservoir state"] = episode.states
    figure, rows = new(len(parts), 1, height=1.1 + 1.5 * len(parts), sharex=True)
    for axes, (name, values) in zip(rows, parts.items()):
        frequencies, amplitudes = spectrum(values, step)
        if amplitudes.shape[1] <= LINES:
            for i, look in enumerate(looks(range(amplitudes.shape[1])).values()):
                axes.plot(
                    frequencies,
                    amplitudes[:, i],
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=1.0,
                    label=str(i + 1),
                )
            if amplitudes.shape[1] > 1:
                axes.legend(loc="upper right", fontsize=7, ncols=2)
        else:
            low, middle, high = np.quantile(amplitudes, [0.05, 0.5, 0.95], axis=1)
            axes.fill_between(frequencies, low, high, color=COLOURS[5], alpha=0.5, linewidth=0)
            axes.plot(frequencies, middle, color=COLOURS[0])
        axes.set_ylabel(name)
        highest = float(amplitudes.max())
        if highest > 0:
            logarithmic(axes, "y")
            axes.set_ylim(highest * 1e-4, highest * 2)
    rows[-1].set_xlabel(f"frequency ({unit})")
    return caption(
        figure,
        "Amplitude spectra (Hann window, mean removed), over four decades below the highest peak.",
        f"More than {LINES} columns: median, and the range that holds 90 % of them."
        if max(v.shape[1] for v in parts.values()) > LINES
        else "",
        _about(episode),
        about,
    )


@styled
def frequencies(episode: Trace, about: str = "") -> Figure:
    """Dominant frequency of every neuron against the gait's.

    Raises:
        UserError: no reservoir, or no gait.
    """
    _with_reservoir(episode)
    rhythm = gait(episode)
    step = episode.seconds or 1.0
    unit = "Hz" if episode.seconds else "cycles per step"
    every = dominant_frequencies(episode.states, step)
    dominant = every[np.isfinite(every)]
    if not len(dominant):
        raise UserError("no neuron of this reservoir has a rhythm in this episode")
    resolution = 1 / (len(episode.states) * step)
    edges = np.arange(0, max(dominant.max(), 2 * rhythm.frequency) + 2 * resolution, resolution)
    figure, axes = new(height=2.8)
    axes.hist(dominant, bins=edges, color=COLOURS[5], edgecolor=COLOURS[0], linewidth=0.5)
    marks = {
        "gait": axes.axvline(rhythm.frequency, color=COLOURS[1]),
        "twice the gait": axes.axvline(2 * rhythm.frequency, color=COLOURS[1], linestyle=":"),
    }
    axes.set_xlabel(f"dominant frequency ({unit})")
    axes.set_ylabel("neurons")
    legend_above(figure, marks)
    near = int(np.sum(np.abs(dominant - rhythm.frequency) <= resolution))
    without = len(every) - len(dominant)
    return caption(
        figure,
        f"Dominant frequencies of {plural(len(dominant), 'neuron')}; the gait's is "
        f"{rhythm.frequency:.3g} {unit} and holds {rhythm.strength:.0%} of the variance of the "
        f"first principal component of the observations. {near} of all "
        f"{plural(len(every), 'neuron')} ({near / len(every):.0%}) have it, to the resolution of "
        f"{resolution:.2g} {unit}.",
        f"Without a rhythm, and not shown: {plural(without, 'neuron')}." if without else "",
        _about(episode),
        about,
    )


@styled
def phase_plane(episode: Trace, about: str = "") -> Figure:
    """The reservoir's state in the plane of its first two principal components, coloured by the
    phase of the gait.

    Raises:
        UserError: no reservoir, or no gait.
    """
    _with_reservoir(episode)
    rhythm = gait(episode)
    projection, _, shares = principal_components(episode.states)
    figure, axes = new(height=4.2, width=5.2)
    axes.plot(*projection.T, color="0.8", linewidth=0.6, zorder=1)
    shown = axes.scatter(
        *projection.T, c=rhythm.phase, cmap=CYCLIC, vmin=-np.pi, vmax=np.pi, s=9, zorder=2
    )
    axes.plot(*projection[0], "X", color="black", markersize=8, label="start of the episode")
    bar = figure.colorbar(shown, ax=axes, label="phase of the gait", pad=0.02)
    bar.set_ticks([-np.pi, 0, np.pi], labels=["−π", "0", "π"])
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="best")
    unit = "Hz" if episode.seconds else "cycles per step"
    return caption(
        figure,
        f"Reservoir state of every step; the gait has {rhythm.frequency:.3g} {unit} and "
        f"{rhythm.strength:.0%} of the variance of the observations' first component.",
        _about(episode),
        about,
    )


# -- what a reservoir remembers --


def node_difference(episode: Trace) -> float:
    """The greatest difference between the states of an agent's first reservoir and those of a node
    of ReservoirPy (`make_node`) that is driven by what the reservoir was fed.

    Raises:
        UserError: no reservoir, or a context of the user's own.
    """
    context = episode.spec.context
    if context is None or not context.reservoirs:
        raise UserError("this agent has no reservoir")
    inputs = episode.inputs
    node = make_node(context.reservoirs[0], inputs.shape[1], episode.spec.seeds.reservoir)
    return float(np.abs(node.run(inputs) - episode.states[:, : node.units]).max())


def memory(
    groups: Mapping[str, Sequence[ReservoirParams]], lags: int = 40, seeds: Sequence[int] = (0,)
) -> pd.DataFrame:
    """Memory profiles and effective spectral radii of reservoirs.

    Args:
        groups: hyperparameters by the name of the group; each is drawn with every seed.
        lags: the longest lag.
        seeds: of the weights.

    Returns:
        A row for each reservoir: `group`, `member`, `seed`, `profile` (array (lags,)), `capacity`
        (its sum), `radius` (effective spectral radius).
    """
    rows = []
    for group, members in groups.items():
        for member, params in enumerate(members):
            for seed in seeds:
                profile = memory_profile(params, seed, lags)
                radius = effective_radius(params, 1, seed)
                rows.append((group, member, seed, profile, float(profile.sum()), radius))
    if not rows:
        raise UserError("there is no reservoir whose memory could be shown")
    return pd.DataFrame(rows, columns=["group", "member", "seed", "profile", "capacity", "radius"])


@styled
def memory_profiles(frame: pd.DataFrame, about: str = "") -> Figure:
    """Recall over lags, and memory capacity against effective spectral radius (`memory`)."""
    figure, (left, right) = new(1, 2, height=3.0, width_ratios=(1.6, 1))
    drawn = {}
    for group, look in looks(frame.group.unique()).items():
        part = frame[frame.group == group]
        profiles = np.stack(part.profile.to_list())
        at = np.arange(1, profiles.shape[1] + 1)
        low, middle, high = np.quantile(profiles, [0.25, 0.5, 0.75], axis=0)
        drawn[group] = curve(left, at, middle, look, label=group)
        if len(profiles) > 1:
            band(left, at, low, high, look)
        right.plot(
            part.radius, part.capacity, look.marker, color=look.colour, alpha=0.7, markersize=4
        )
    right.axvline(1.0, color="0.4", linestyle="--", linewidth=1)
    if frame.radius.max() / max(frame.radius.min(), 1e-9) > 20:
        logarithmic(right)
    left.set_xlabel("lag (steps)")
    left.set_ylabel("recall (squared correlation)")
    left.set_ylim(-0.02, 1.02)
    legend(left, drawn, loc="upper right")
    right.set_xlabel("effective spectral radius")
    right.set_ylabel("memory capacity (steps)")
    sizes = ", ".join(f"{group} {len(part)}" for group, part in frame.groupby("group", sort=False))
    return caption(
        figure,
        f"Memory of reservoirs by ReservoirPy's observables: how well a linear readout recalls a "
        f"random input (median and quartiles), and the sum over {profiles.shape[1]} lags against "
        f"the effective spectral radius; above 1 the undriven reservoir does not "
        f"forget its beginning. Reservoirs: {sizes}.",
        about,
    )
