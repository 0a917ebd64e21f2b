"""One update of TD3, DDPG and SAC against Stable-Baselines3's, from the same weights, state of
Adam, minibatch and noise.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from erl.learners.core.export import off_policy_model
from erl.learners.core.replay import Batch
from erl.learners.core.telemetry import TensorBoardLogger
from erl.learners.sac import CohortSAC, SACSettings
from erl.learners.td3 import CohortTD3, DDPGSettings, TD3Settings

OBSERVATIONS, ACTIONS, BATCH, BUDGET = 5, 3, 64, 100
KINDS = {
    "TD3": (TD3Settings, CohortTD3),
    "DDPG": (DDPGSettings, CohortTD3),
    "SAC": (SACSettings, CohortSAC),
}
NETS = {"policy_kwargs": {"net_arch": [48, 32]}}


def cohort(kind, configs, actions=ACTIONS):
    settings, algorithm = KINDS[kind]
    return algorithm(
        [settings.from_learner_config({"batch_size": BATCH, **NETS, **c}) for c in configs],
        range(len(configs)),
        spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32),
        spaces.Box(-2.0, 1.0, (actions,), np.float32),
        [BUDGET] * len(configs),
    )


def draw(made, seed):
    """Minibatches and noise of all members: rows, rows of next observations, noise."""
    g, n, a = torch.Generator().manual_seed(seed), len(made), made.action_dim
    rows = torch.cat(
        [
            torch.randn(n, BATCH, OBSERVATIONS, generator=g),
            torch.rand(n, BATCH, a, generator=g) * 2 - 1,
            torch.randn(n, BATCH, 1, generator=g),
            (torch.rand(n, BATCH, 1, generator=g) > 0.2).float(),
        ],
        2,
    )
    next_rows = torch.randn(n, BATCH, OBSERVATIONS + a + 2, generator=g)
    return rows, next_rows, torch.randn(n, made.noises_per_update, BATCH, a, generator=g)


@torch.inference_mode()
def ours(made, drawn, begin=0, end=None, gradient_step=0):
    """One update of members `begin` to `end`."""
    end = len(made) if end is None else end
    made.set_rates([1.0 - steps / BUDGET for steps in made.steps])
    rows, next_rows, noise = (t[begin:end].clone() for t in drawn)
    batch = Batch(rows, next_rows, OBSERVATIONS, made.action_dim)
    course = made.course(int(made.updates[begin]), gradient_step)
    said = made.update(made.block(begin, end), batch, noise, course)
    made.updates[begin:end] += 1
    return {name: value.clone() for name, value in said.items()}


def theirs(model, drawn, i, monkeypatch):
    """Updates of Stable-Baselines3's model, one after another, and what it logs."""
    samples, draws = [], []
    for rows, next_rows, noise in ([t[i].clone() for t in each] for each in drawn):
        a = noise.shape[-1]
        samples.append(
            ReplayBufferSamples(
                rows[:, :OBSERVATIONS],
                rows[:, OBSERVATIONS : OBSERVATIONS + a],
                next_rows[:, :OBSERVATIONS],
                1.0 - rows[:, -1:],
                rows[:, -2:-1],
            )
        )
        draws += noise
    batches, normal = iter(samples), iter(draws)
    with monkeypatch.context() as patch:
        patch.setattr(model.replay_buffer, "sample", lambda *_, **__: next(batches))
        patch.setattr(
            torch.Tensor, "normal_", lambda self, mean, std: self.copy_(mean + std * next(normal))
        )
        patch.setattr(
            "torch.distributions.normal._standard_normal", lambda *_, **__: next(normal).clone()
        )
        logger = TensorBoardLogger(None)
        model.set_logger(logger)
        model.train(len(drawn), BATCH)
    return dict(logger.name_to_value)


def parameters(model):
    """Every number that an update changes, by name."""
    found = {f"policy.{name}": p for name, p in model.policy.state_dict().items()}
    optimisers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    if getattr(model, "ent_coef_optimizer", None) is not None:
        found["log_ent_coef"] = model.log_ent_coef.detach()
        optimisers["ent_coef"] = model.ent_coef_optimizer
    for name, optimiser in optimisers.items():
        for k, parameter in enumerate(p for g in optimiser.param_groups for p in g["params"]):
            for part, value in optimiser.state.get(parameter, {}).items():
                found[f"{name}.{k}.{part}"] = value
    return found


CASES = {
    "TD3": ("TD3", {}),
    "TD3 with the actor": ("TD3", {"policy_delay": 1}),
    "TD3, three critics, tanh": (
        "TD3",
        {
            "policy_delay": 1,
            "policy_kwargs": {
                "net_arch": {"pi": [32], "qf": [48, 32, 16]},
                "activation_fn": "Tanh",
                "n_critics": 3,
            },
        },
    ),
    "TD3, other constants": (
        "TD3",
        {
            "policy_delay": 1,
            "gamma": 0.9,
            "tau": 0.1,
            "learning_rate": 3e-3,
            "target_policy_noise": 0.4,
            "target_noise_clip": 0.3,
            "policy_kwargs": {
                **NETS["policy_kwargs"],
                "optimizer_kwargs": {"eps": 1e-5, "betas": [0.8, 0.99], "weight_decay": 0.01},
            },
        },
    ),
    "TD3, one critic": (
        "TD3",
        {"policy_delay": 1, "policy_kwargs": {"net_arch": [48, 32], "n_critics": 1}},
    ),
    "TD3, a schedule": ("TD3", {"policy_delay": 1, "learning_rate": "lin_4e-3"}),
    "DDPG": ("DDPG", {}),
    "SAC": ("SAC", {}),
    "SAC, a schedule": ("SAC", {"learning_rate": "lin_4e-3"}),
    "SAC, fixed coefficient": ("SAC", {"ent_coef": 0.2, "gamma": 0.9, "tau": 0.1}),
    "SAC, other constants": (
        "SAC",
        {
            "ent_coef": "auto_0.1",
            "target_entropy": -1.5,
            "learning_rate": 3e-3,
            "policy_kwargs": {
                "net_arch": {"pi": [32], "qf": [48, 32]},
                "activation_fn": "LeakyReLU",
                "n_critics": 3,
            },
        },
    ),
    "SAC without entropy": ("SAC", {"ent_coef": 0.0}),
    "SAC, wide critics": (
        "SAC",
        {"policy_kwargs": {"net_arch": {"pi": [48, 32], "qf": [192, 192]}}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("actions", [ACTIONS, 1])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_stable_baselines3s(case, n, actions, monkeypatch):
    kind, config = CASES[case]
    made = cohort(kind, [config] * n, actions)
    made.steps[:] = BUDGET // 2  # in the middle of schedules
    for seed in range(5):
        ours(made, draw(made, seed))
    models = [off_policy_model(made, i, BUDGET) for i in range(n)]
    for seed in (5, 6):
        drawn = draw(made, seed)
        said = ours(made, drawn)
        for i, model in enumerate(models):
            expected = theirs(model, [drawn], i, monkeypatch)
            for name, value in said.items():
                torch.testing.assert_close(
                    value[i].double(),
                    torch.tensor(float(expected[f"train/{name}"]), dtype=torch.float64),
                    rtol=1e-4,
                    atol=1e-5,
                )
            assert_equal(made, i, model)


@pytest.mark.parametrize("updates", [2, 3])
def test_sacs_targets_follow_at_every_second_update_of_an_iteration(updates, monkeypatch):
    made = cohort("SAC", [{"target_update_interval": 2, "tau": 0.1}])
    model = off_policy_model(made, 0, BUDGET)
    drawn = [draw(made, seed) for seed in range(updates)]
    for k, each in enumerate(drawn):
        ours(made, each, gradient_step=k)
    theirs(model, drawn, 0, monkeypatch)
    assert_equal(made, 0, model)


def test_members_part_where_their_rates_do():
    """A GPU's recorded graphs, which have one rate for all, are recorded anew then, once."""
    made = cohort("SAC", [{"learning_rate": "lin_1e-3"}] * 2)
    recorded = []
    for remaining in ([1.0, 1.0], [0.5, 0.5], [0.5, 1.0], [0.4, 0.4], [0.3, 0.9]):
        made.set_rates(remaining)
        assert made.actor.rates == [1e-3 * r for r in remaining]
        recorded.append((made._captured, made.log_ent_coef.alike))
    assert recorded[0] == recorded[1] == (recorded[1][0], True)
    assert recorded[2] == recorded[3] == recorded[4] == (recorded[2][0], False)
    assert recorded[2][0] is not recorded[1][0]
    made.keep([1])
    made.set_rates([0.3])
    assert made.actor.alike


def test_statistics_are_the_latest():
    """Members take updates together, then apart, then together: the last one counts."""
    made = cohort("TD3", [{"policy_delay": 1}] * 2)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(80, 2, 1, OBSERVATIONS)).astype(np.float32)
    for now, after in pairwise(observations):
        actions, rewards = made.act(now), rng.normal(size=(2, 1))
        made.record(now, actions, after, rewards, np.zeros((2, 1), bool), [])
    said = []
    for due in ([1, 1], [1, 0], [1, 1]):
        made.learn(due, [1.0, 1.0])
        said.append([made.statistics(i)["critic_loss"] for i in range(2)])
    assert said[0][0] != said[1][0] != said[2][0] != said[0][0]
    assert said[0][1] == said[1][1] != said[2][1]
    together = made._said[0, 2, True]["critic_loss"]
    assert said[2] == together.tolist()


def assert_equal(made, i, model):
    """All numbers of a member and of a model, up to rounding."""
    found, wanted = parameters(off_policy_model(made, i, BUDGET)), parameters(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # Beside single precision's own rounding of sums that nearly cancel.
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-7, msg=name)
