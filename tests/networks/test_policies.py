"""Many policies in NumPy: the perceptrons that PyTorch trains, one by one."""

import numpy as np
import pytest
import torch

from erl.networks.perceptrons import Perceptrons, Shape
from erl.networks.policies import Policies, n_parameters

SIZES = (5, 16, 8, 3)


def rows(n):
    return np.random.default_rng(0).normal(size=(n, n_parameters(SIZES))).astype(np.float32)


def test_they_are_the_perceptrons_that_are_trained():
    theta, x = rows(4), np.random.default_rng(1).normal(size=(4, 7, 5)).astype(np.float32)
    shape = Shape(5, SIZES[1:-1], 3, activation="ReLU", norm=False)
    assert n_parameters(SIZES) == shape.size(1)
    outputs = Policies(SIZES, theta)(x)
    for k in range(4):
        network = Perceptrons(shape, 1, torch.from_numpy(theta[k]))
        expected = network.forward(torch.from_numpy(x[k])).output[0]
        assert outputs[k] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)


def test_those_that_are_asked_answer_as_among_all():
    policies, x = Policies(SIZES, rows(9)), np.random.default_rng(2).normal(size=(9, 1, 5))
    whole = policies(x)
    for who in ([0, 3, 4], [8], [0, 3, 4], list(range(9)), [4, 0], [2, 0, 1, *range(3, 9)]):
        assert (policies(x[who], np.array(who)) == whole[who]).all()
    assert (policies(x) == whole).all()


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="parameters each"):
        Policies(SIZES, rows(3)[:, 1:])
