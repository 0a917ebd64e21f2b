"""CogScale's tasks: the readout is a ridge regression, and memory is what it takes."""

import builtins

import numpy as np
import pytest
from servers import needed

from erl.errors import UserError
from erl.figures import retention
from erl.figures.style import caption_of
from erl.worlds.reservoirs import ReservoirParams, make_node

MEMORY = ReservoirParams(units=40, sr=0.95, lr=1.0, iss=0.2, input_connectivity=1.0)
NONE = ReservoirParams(units=40, sr=0.0, lr=1.0, input_connectivity=1.0)


def test_states_are_those_of_reservoirpys_node():
    sequences = np.random.default_rng(0).normal(size=(3, 20, 2))
    states = retention.states_of(MEMORY, 5, sequences)
    for sequence, state in zip(sequences, states):
        assert state == pytest.approx(make_node(MEMORY, 2, 5).run(sequence), abs=1e-9)


def test_the_readout_finds_a_linear_answer_and_leaves_masked_steps_out():
    rng = np.random.default_rng(0)
    states, weights = rng.normal(size=(4, 30, 6)), rng.normal(size=(6, 2))
    targets = states @ weights + 0.7
    targets[:, :10] = retention.MASKED
    readout = retention.Readout(states[:3], targets[:3], states[3:], targets[3:])
    assert readout(states)[:, 10:] == pytest.approx(targets[:, 10:], abs=1e-4)
    assert readout.ridge == min(retention.RIDGES)


def test_without_states_the_answer_is_the_mean_of_the_training_set():
    targets = np.random.default_rng(0).normal(3.0, 1.0, size=(4, 30, 2))
    targets[:, :10] = retention.MASKED
    nothing = np.zeros((2, 30, 0))
    # On the second half a smaller answer would be better.
    readout = retention.Readout(nothing, targets[:2], nothing, np.full_like(targets[2:], 1.0))
    mean = targets[:2, 10:].reshape(-1, 2).mean(0)
    assert readout(nothing)[0, 0] == pytest.approx(mean, abs=1e-12)


def test_a_delayed_copy_takes_a_memory():
    needed("cogscale")
    frame = retention.retention(
        {"memory": [MEMORY], "none": [NONE]}, ["discrete_postcasting"], seeds=(0, 1)
    )
    errors = frame.groupby("group").error.mean()
    assert len(frame) == 5
    assert errors["memory"] < 0.1
    assert errors["none"] > 0.5  # of three symbols
    assert errors[retention.CONSTANT] > 0.5


def test_every_task_has_an_error_and_its_place_in_the_figure():
    needed("cogscale")
    small = ReservoirParams(units=8, sr=0.9, lr=0.8, input_connectivity=1.0)
    frame = retention.retention({"a": [small]})
    assert set(frame.task) == set(retention.task_names())
    assert np.isfinite(frame.error).all()
    figure = retention.profile(frame)
    numbers, symbols = figure.axes
    found = {}
    for axes in (numbers, symbols):
        names = [t.get_text().replace(" ", "_") for t in axes.get_yticklabels()]
        for line in axes.lines:
            if line.get_marker() == "o":
                found[names[round(line.get_ydata()[0])]] = line.get_xdata()[0]
    ours = frame[frame.group == "a"].set_index("task").error
    assert found == pytest.approx(ours.to_dict())
    assert "a 1" in caption_of(figure)


def test_the_best_published_networks_do_as_well_here():
    """Their errors are the best of a search; ours are medians over seeds, so a tenth may lie
    between them.
    """
    needed("cogscale")
    assert set(retention.published()) == set(retention.task_names())
    tasks = ["continuous_postcasting", "adding_problem", "induction_heads", "sinus_forecasting"]
    frame = retention.published_errors(tasks, range(3))
    assert len(frame) == 12
    median = frame.groupby("task").error.median()
    reported = frame.groupby("task").published.first()
    assert set(median.index) == set(tasks)
    assert (median <= 1.1 * reported).all()
    figure = retention.profile(frame)
    stars = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "*"]
    assert sorted(line.get_xdata()[0] for line in stars) == sorted(reported)


def test_bad_input(monkeypatch):
    needed("cogscale")
    with pytest.raises(UserError, match=r"no task 'simple_cpy'; did you mean simple_copy"):
        retention.retention({"a": [NONE]}, ["simple_cpy"])
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "cogscale":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install cogscale"):
        retention.task_names()
