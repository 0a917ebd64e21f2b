"""Looks of agents are told apart, and stay."""

import random

import pytest

from erl.experiments.arms import known_names
from erl.figures.style import COLOURS, agent_looks
from erl.studies.configuration import EvolutionStudy

SETTINGS = {"sr": 1.0, "learner.gamma": 0.9}


@pytest.mark.parametrize(
    ("evolved", "params"),
    [
        ({}, SETTINGS),
        ({"del_obs": True}, SETTINGS),  # three learning rates
        ({}, {"sr": 1.0, "learner.learning_rate": 0.001}),
        ({"learner": "SAC"}, {"sr": 1.0}),
        ({"learner": "RecurrentPPO"}, {"sr": 1.0}),
        ({"context": "module:Class"}, SETTINGS),
        ({"nb_res": 0}, SETTINGS),
    ],
)
def test_agents_of_a_test_are_told_apart_alike_in_every_figure(evolved, params):
    names = known_names(EvolutionStudy(env_id="Swimmer-v4", **evolved), params)
    found = agent_looks(names)
    assert len({(look.colour, look.line) for look in found.values()}) == len(names)
    assert all(look.colour in COLOURS for look in found.values())
    for k in range(len(names)):
        some = random.Random(k).sample(names, k + 1)
        assert agent_looks(some) == {name: found[name] for name in some}


def test_agents_of_one_colour_are_of_one_kind():
    names = known_names(EvolutionStudy(env_id="Swimmer-v4", del_obs=True), SETTINGS)
    by_colour = {}
    for name, look in agent_looks(names).items():
        by_colour.setdefault(look.colour, []).append(name)
    assert [each for each in by_colour.values() if len(each) > 1] == [
        ["RES_PPO_0.0001", "RES_PPO_0.00005"],
        ["STACK_PPO", "INPUTS_PPO"],
        ["RecurrentPPO", "INPUTS_RecurrentPPO"],
    ]


def test_other_agents_take_what_is_free():
    names = ["RES_PPO", "RES_PPO_0.0003", *(f"log {k}" for k in range(40))]
    found = agent_looks(names)
    assert [*found] == names
    assert len({(look.colour, look.line) for look in found.values()}) == len(names)
    assert len({found[name].colour for name in names[:8]}) == 8
