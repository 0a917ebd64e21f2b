"""Figures of behaviour against signals whose answer is known."""

import dataclasses

import numpy as np
import pytest

from erl.errors import UserError
from erl.figures import behaviour
from erl.figures.style import caption_of
from erl.lifetimes.trace import Trace
from erl.worlds.own_context import OwnContext
from erl.worlds.reservoirs import (
    Context,
    ReservoirParams,
    effective_radius,
    make_node,
    memory_profile,
)
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

STEP, FREQUENCY = 0.05, 1.25


def walk(steps=400, units=12, step=STEP, frequency=FREQUENCY):
    """An episode with a gait: three observations, and neurons with the gait or twice of it."""
    t = np.arange(steps + 1) * (step or 1.0)
    cycle = 2 * np.pi * frequency * t
    observations = np.stack([np.sin(cycle), 3 * np.cos(cycle), np.zeros_like(t)], 1)
    phases = np.linspace(0, 2 * np.pi, units, endpoint=False)
    times = np.where(np.arange(units) < units // 3, 2, 1)
    states = 0.5 * np.sin(times * cycle[:, None] + phases)
    spec = LifetimeSpec(
        Task("Swimmer-v4"), LearnerSpec(), 1000, Seeds.published(3), Context((ReservoirParams(),))
    )
    rng = np.random.default_rng(0)
    return Trace(
        spec,
        7,
        observations,
        states,
        np.zeros((steps + 1, 5)),
        rng.normal(size=(steps, 1)),
        rng.normal(size=steps),
        True,
        step,
    )


def test_a_sine_has_its_amplitude_at_its_frequency():
    t = np.arange(200) * 0.1
    frequencies, amplitudes = behaviour.spectrum(
        np.stack([2 * np.sin(2 * np.pi * 1.5 * t) + 5, 0 * t], 1), 0.1
    )
    peak = np.argmax(amplitudes[:, 0])
    assert frequencies[peak] == pytest.approx(1.5)
    assert amplitudes[peak, 0] == pytest.approx(2.0)
    assert not amplitudes[:, 1].any()
    assert frequencies[-1] == pytest.approx(5.0)
    # The last one of an even number of rows has no mirror.
    alternating = np.tile([[1.0], [-1.0]], (100, 1))
    assert behaviour.spectrum(alternating)[1][-1, 0] == pytest.approx(1.0)


def test_dominant_frequencies_lie_between_the_lines_of_the_spectrum():
    t = np.arange(300) * 0.05
    for frequency in (0.71, 1.234, 3.3):
        found = behaviour.dominant_frequencies(np.sin(2 * np.pi * frequency * t)[:, None], 0.05)
        assert found[0] == pytest.approx(frequency, abs=0.01)
    assert np.isnan(behaviour.dominant_frequencies(np.ones((50, 1)))).all()


def test_a_drift_or_one_slow_wave_is_no_dominant_frequency():
    t = np.arange(300) * 0.05
    beat = 0.2 * np.sin(2 * np.pi * 1.25 * t)
    slow = np.stack([2 * t, 3 * np.sin(np.pi * t / t[-1])], 1) + beat[:, None]
    found = behaviour.dominant_frequencies(slow, 0.05)
    assert found == pytest.approx(1.25, abs=0.01)
    falls = np.stack([np.exp(-t), np.sin(np.pi * t / t[-1]), 1 - np.exp(-t / 3)], 1)
    assert np.isnan(behaviour.dominant_frequencies(falls, 0.05)).all()
    assert behaviour.dominant_frequencies(np.sin(2 * np.pi * 0.2 * t)[:, None], 0.05) == (
        pytest.approx(0.2, abs=0.01)  # three cycles
    )


def test_the_gait_and_its_phase():
    episode = walk()
    rhythm = behaviour.gait(episode)
    assert rhythm.frequency == pytest.approx(FREQUENCY, rel=0.01)
    assert rhythm.strength > 0.95
    turned = np.unwrap(rhythm.phase)
    slope = np.polyfit(episode.times[50:-50], turned[50:-50], 1)[0] / (2 * np.pi)
    assert slope == pytest.approx(FREQUENCY, rel=0.02)


def test_where_there_is_no_gait():
    with pytest.raises(UserError, match="too short"):
        behaviour.gait(walk(10))
    still = walk()
    still.observations[:] = 1.0
    with pytest.raises(UserError, match="no observation changes"):
        behaviour.gait(still)


def test_a_drift_is_no_gait():
    drift = walk()
    rng = np.random.default_rng(0)
    slow = np.sin(np.pi * np.arange(401) / 401)[:, None]
    drift.observations[:] = 5 * slow + 0.01 * rng.normal(size=(401, 3))
    with pytest.raises(UserError, match="no rhythm holds a 10th of the motion"):
        behaviour.gait(drift)


def test_discrete_actions_are_shown_by_their_number():
    episode = walk()
    numbers = np.random.default_rng(0).integers(0, 3, len(episode))
    discrete = dataclasses.replace(episode, actions=np.eye(3)[numbers])
    axes = behaviour.aligned(discrete).axes[2]
    assert list(axes.lines[0].get_ydata()) == list(numbers)


def test_principal_components_are_those_of_the_covariance():
    values = np.random.default_rng(0).normal(size=(100, 4)) @ np.diag([4, 2, 1, 0.1])
    projection, components, shares = behaviour.principal_components(values)
    eigen, vectors = np.linalg.eigh(np.cov(values.T))
    assert shares == pytest.approx(eigen[::-1][:2] / eigen.sum())
    assert np.abs(components[0] @ vectors[:, -1]) == pytest.approx(1.0)
    assert projection == pytest.approx((values - values.mean(0)) @ components.T)
    assert behaviour.principal_components(values[:, :1])[0][:, 1].tolist() == [0.0] * 100


def test_rows_are_aligned_in_time():
    episode = walk()
    figure = behaviour.aligned(episode, 100, 200)
    observation, state, action, reward = figure.axes[:4]
    times = episode.times[100:200]
    for i in range(3):
        assert list(observation.lines[i].get_xdata()) == list(times)
        assert list(observation.lines[i].get_ydata()) == list(episode.observations[100:200, i])
    image = state.images[0]
    order = behaviour.by_phase(episode.states[100:200])
    assert np.array(image.get_array()) == pytest.approx(episode.states[100:200, order].T)
    assert sorted(order) == list(range(12))
    assert image.get_extent()[:2] == pytest.approx([times[0], times[-1] + STEP])
    assert list(action.lines[0].get_ydata()) == list(episode.actions[100:200, 0])
    assert list(reward.lines[0].get_ydata()) == list(episode.rewards[100:200])
    assert reward.get_xlabel() == "time (s)"
    assert "reservoir seed 3" in caption_of(figure)
    assert "seed 7, 400 steps" in caption_of(figure)
    assert "arguments" not in caption_of(figure)
    task = Task("Swimmer-v4", kwargs={"forward_reward_weight": 0.5})
    slow = dataclasses.replace(episode, spec=dataclasses.replace(episode.spec, task=task))
    words = 'Swimmer-v4, arguments {"forward_reward_weight": 0.5}, PPO'
    assert words in caption_of(behaviour.aligned(slow, 100, 200))
    with pytest.raises(UserError, match="steps 400 to 400 are not in"):
        behaviour.aligned(episode, 400)


def test_an_episode_of_one_step_is_seen():
    figure = behaviour.aligned(walk(steps=1))
    for axes in (figure.axes[0], figure.axes[2], figure.axes[3]):
        assert axes.lines
        assert all(drawn.get_marker() != "None" for drawn in axes.lines)


@pytest.mark.parametrize(
    ("earned", "said"), [(0.4539, "0.4539"), (-0.25, "-0.25"), (12345.6, "12,346")]
)
def test_captions_have_the_digits_of_a_return(earned, said):
    episode = dataclasses.replace(walk(steps=20), rewards=np.full(20, earned / 20))
    assert f"20 steps, return {said}." in caption_of(behaviour.aligned(episode))


def test_spectra_are_those_of_the_episode():
    episode = walk()
    figure = behaviour.spectra(episode)
    observation, action, state = figure.axes
    _, expected = behaviour.spectrum(episode.observations, STEP)
    assert list(observation.lines[1].get_ydata()) == list(expected[:, 1])
    _, expected = behaviour.spectrum(episode.states, STEP)
    assert list(state.lines[0].get_ydata()) == list(np.median(expected, axis=1))
    assert state.get_xlabel() == "frequency (Hz)"
    assert len(action.lines) == 1


def test_a_spectrum_of_a_short_episode_says_how_long_it_is():
    episode = walk()
    parts = {n: getattr(episode, n)[:16] for n in ("observations", "states", "inputs")}
    parts |= {n: getattr(episode, n)[:15] for n in ("actions", "rewards")}
    with pytest.raises(UserError, match="needs at least 16 steps; this episode has 15"):
        behaviour.spectra(dataclasses.replace(episode, **parts))


def test_frequencies_of_neurons_against_the_gait():
    figure = behaviour.frequencies(walk())
    axes = figure.axes[0]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(FREQUENCY, rel=0.01)
    counts = {round(p.get_x() + p.get_width() / 2, 3): p.get_height() for p in axes.patches}
    assert sum(counts.values()) == 12
    assert sum(n for f, n in counts.items() if abs(f - FREQUENCY) < 0.1) == 8
    assert sum(n for f, n in counts.items() if abs(f - 2 * FREQUENCY) < 0.1) == 4
    assert "8 of all 12 neurons (67%) have it" in caption_of(figure)
    assert "Without a rhythm" not in caption_of(figure)


def test_neurons_without_a_rhythm_count_among_all(tmp_path):
    episode = walk()
    episode.states[:, 4:10] = 1.0  # of eight with the gait two are left
    figure = behaviour.frequencies(episode)
    assert "2 of all 12 neurons (17%) have it" in caption_of(figure)
    assert "Without a rhythm, and not shown: 6 neurons." in caption_of(figure)
    episode.states[:] = 1.0
    with pytest.raises(UserError, match="no neuron of this reservoir has a rhythm"):
        behaviour.frequencies(episode)


def test_the_plane_is_coloured_by_the_phase():
    episode = walk(step=None, frequency=0.0625)
    figure = behaviour.phase_plane(episode)
    points = figure.axes[0].collections[0]
    projection = behaviour.principal_components(episode.states)[0]
    assert np.array(points.get_offsets()) == pytest.approx(projection)
    assert np.array(points.get_array()) == pytest.approx(behaviour.gait(episode).phase)
    assert "cycles per step" in caption_of(figure)


def test_an_agent_without_a_reservoir():
    episode = walk(units=0)
    for draw in (behaviour.frequencies, behaviour.phase_plane):
        with pytest.raises(UserError, match="has no reservoir"):
            draw(episode)
    for context in (None, Context((), own=OwnContext("module:Class"))):
        spec = dataclasses.replace(episode.spec, context=context)
        with pytest.raises(UserError, match="has no reservoir"):
            behaviour.node_difference(dataclasses.replace(episode, spec=spec))
    assert len(behaviour.aligned(episode).axes) == 3
    assert len(behaviour.spectra(episode).axes) == 2


def test_memory_is_that_of_reservoirpys_observables():
    plain = ReservoirParams(units=30, sr=0.9, lr=1.0, input_connectivity=1.0)
    frame = behaviour.memory({"evolved": [plain], "other": [plain]}, lags=12, seeds=(0, 1))
    assert list(frame.group) == ["evolved"] * 2 + ["other"] * 2
    assert frame["profile"][1] == pytest.approx(memory_profile(plain, 1, 12))
    assert frame.capacity[0] == pytest.approx(frame["profile"][0].sum())
    assert frame["profile"][0][0] > 0.9  # it recalls the step before
    # Without recurrence and leak there is nothing to recall from.
    assert (
        memory_profile(ReservoirParams(units=30, sr=0.0, input_connectivity=1.0), 0, 5).max() < 0.05
    )
    node = make_node(plain, 1, 0)
    weights = node.W.toarray() if hasattr(node.W, "toarray") else node.W
    assert effective_radius(plain, 1, 0) == pytest.approx(np.abs(np.linalg.eigvals(weights)).max())
    figure = behaviour.memory_profiles(frame)
    left, right = figure.axes
    middle = np.median(np.stack(frame["profile"][:2]), axis=0)
    assert left.lines[0].get_ydata() == pytest.approx(middle)
    assert list(right.lines[0].get_xdata()) == list(frame.radius[:2])
    with pytest.raises(UserError, match="no reservoir whose memory"):
        behaviour.memory({})
