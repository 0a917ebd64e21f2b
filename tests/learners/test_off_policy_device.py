"""TD3, SAC and others where networks and buffers lie on another device: the same as on the CPU, to
rounding. `tests/networks/test_captured.py` has what is recorded there, without a GPU.
"""

import os

import numpy as np
import pytest
import torch

from erl.learners import Outputs, get_learner
from erl.learners.core.replay import ReplayBuffer
from erl.learners.derl.gradient import GradientHalf
from erl.learners.derl.settings import DERLSettings
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.erl_re2.update import Draws, TwoScale, new_heads
from erl.networks.captured import Captured
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

DEVICE = os.environ.get("ERL_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
DEVICES = {"cpu": "cpu", "other": DEVICE}
on_a_device = pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU to compare the CPU with")


def trained(name, device, **config):
    """Agents of three lifetimes side by side, with different rates, and their episodes."""
    quick = {
        "batch_size": 32,
        "learning_starts": 60,
        "buffer_size": 90,
        "device": device,
        "policy_kwargs": {"net_arch": [32, 32]},
    }
    specs = [
        LifetimeSpec(
            Task("toy_environments:Reach-v0"),
            LearnerSpec(name, {**quick, "learning_rate": rate, **config}, "cohort"),
            160,
            Seeds.derive(0, "single", i),
        )
        for i, rate in enumerate([1e-3, 1e-3, "lin_2e-3"])
    ]
    ledgers = [Ledger() for _ in specs]
    agents = get_learner(name, "cohort").train(specs, ledgers, [Outputs()] * 3)
    return agents, [ledger.episodes for ledger in ledgers]


@on_a_device
@pytest.mark.parametrize(
    ("name", "config"),
    [("TD3", {"noise_type": "normal", "noise_std": 0.1}), ("SAC", {}), ("DDPG", {"n_envs": 2})],
)
def test_a_device_gives_what_the_cpu_gives(name, config):
    # As many calls as a GPU needs before it records: most of the updates are replayed.
    assert Captured._WARM < 10
    expected, episodes = trained(name, "cpu", **config)
    agents, found = trained(name, DEVICE, **config)
    for mine, theirs in zip(found, episodes):
        assert [n for _, _, n in mine] == [n for _, _, n in theirs]
        np.testing.assert_allclose([r for _, r, _ in mine], [r for _, r, _ in theirs], rtol=1e-2)
    for mine, theirs in zip(agents, expected):
        weights = theirs.model.policy.state_dict()
        for key, value in mine.model.policy.state_dict().items():
            torch.testing.assert_close(value, weights[key], rtol=1e-2, atol=1e-3)


@on_a_device
def test_erl_re2_updates_are_those_of_the_cpu():
    networks, buffers, updates = {}, {}, {}
    rng = np.random.default_rng(0)
    columns = (rng.normal(size=(300, 5)), rng.uniform(-1, 1, (300, 2)), rng.normal(size=(300, 5)))
    for name, device in DEVICES.items():
        settings = Re2Settings.from_learner_config({"device": device})
        networks[name] = TwoScale(settings, 5, 2, torch.Generator().manual_seed(0))
        buffers[name] = ReplayBuffer(300, 5, 2, device)
        buffers[name].add(*columns, np.arange(300) % 7.0, np.zeros(300))

        def update(improve, places, noise, heads, name=name):
            draws = Draws(noise, heads[0], heads[1:])
            return networks[name].update(buffers[name].batch(places), draws, improve)

        updates[name] = Captured(update, device)
    generator = torch.Generator().manual_seed(1)
    for k in range(12):
        places = torch.randint(300, (128,), generator=generator)
        noise = torch.randn(128, 2, generator=generator)
        heads = new_heads(2, 2, 300, generator)
        for name, run in updates.items():
            run(k % 2 == 0, *(t.to(DEVICES[name]) for t in (places, noise, heads)))
    for mine, theirs in zip(networks["other"].networks, networks["cpu"].networks):
        torch.testing.assert_close(mine.values.cpu(), theirs.values, rtol=1e-2, atol=1e-3)


@on_a_device
@pytest.mark.parametrize("discrete", [False, True])
def test_derl_updates_are_those_of_the_cpu(discrete):
    halves, buffers, updates = {}, {}, {}
    rng = np.random.default_rng(0)
    actions = rng.integers(2, size=(300, 1)) if discrete else rng.uniform(-1, 1, (300, 2))
    columns = (rng.normal(size=(300, 5)), actions, rng.normal(size=(300, 5)))
    for name, device in DEVICES.items():
        settings = DERLSettings(device=device, lr_policy="lin_2e-3", n_steps=3)
        generator = torch.Generator().manual_seed(0)
        halves[name] = GradientHalf(settings, 5, 2, discrete, generator)
        buffers[name] = ReplayBuffer(300, 5, actions.shape[1], device)
        buffers[name].add(*columns, np.arange(300) % 7.0, np.zeros(300))

        def update(k, places, noise, name=name):
            return halves[name].update(k, buffers[name].batch(places), noise)

        updates[name] = Captured(update, device)
    generator = torch.Generator().manual_seed(1)
    for k in range(12):
        places = torch.randint(300, (128,), generator=generator)
        noise = torch.randn(128, 0 if discrete else 2, generator=generator)
        for name, run in updates.items():
            halves[name].set_rates(1.0 - k / 12)
            run(k % 2, places.to(DEVICES[name]), noise.to(DEVICES[name]))
    for network in ("policy", "critic"):
        mine, theirs = (getattr(halves[name], network).values.cpu() for name in ("other", "cpu"))
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)


def test_auto_takes_what_there_is():
    learner = get_learner("TD3", "cohort")
    device = learner.settings.from_learner_config({"device": "auto"}).resolved_device()
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
