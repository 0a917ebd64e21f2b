"""Hand-written gradients against autograd, in double precision."""

import numpy as np
import pytest
import torch
from torch import nn

from erl.networks.cohort_networks import (
    ACTIVATIONS,
    ActorCritic,
    Adam,
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    MultiCategorical,
)

N, BATCH, N_INPUTS, N_OUTPUTS = 3, 11, 5, 5
N_VALUES = (3, 2)  # of two choices


def make(
    activation: str, kind: type[Distribution], pi: list[int], vf: list[int]
) -> tuple[ActorCritic, np.ndarray, np.ndarray]:
    """A layout, weights in which padding is zero, and inputs with the constant one."""
    rng = np.random.default_rng(0)
    net = ActorCritic(N_INPUTS, N_OUTPUTS, pi, vf, activation, kind, N_VALUES)
    weights = np.zeros((N, net.n_params))
    for row in weights:
        for view in net.named(row).values():
            view[...] = 0.7 * rng.normal(size=view.shape)
    x = np.ones((N, BATCH, N_INPUTS + 1))
    x[..., :-1] = rng.normal(size=(N, BATCH, N_INPUTS))
    return net, weights, x


def module(
    net: ActorCritic, row: np.ndarray, part: str, activation: str
) -> tuple[nn.Sequential, dict[str, nn.Parameter]]:
    """The same network in PyTorch, and its parameters under the layout's names."""
    head = {"policy": "action_net", "value": "value_net"}[part]
    named = {
        k: v for k, v in net.named(row).items() if k.startswith((f"mlp_extractor.{part}_net", head))
    }
    layers, parameters = [], {}
    for name in [k.removesuffix(".weight") for k in named if k.endswith(".weight")]:
        weight = named[f"{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        for kind in ("weight", "bias"):
            parameter = getattr(layer, kind)
            parameter.data = torch.tensor(named[f"{name}.{kind}"])
            parameters[f"{name}.{kind}"] = parameter
        layers += [layer] if name == head else [layer, getattr(nn, activation)()]
    return nn.Sequential(*layers), parameters


@pytest.mark.parametrize("hidden", [[], [8], [7, 9, 6]], ids=str)
@pytest.mark.parametrize("kind", [Gaussian, Categorical, MultiCategorical, Bernoulli])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_autograd(
    activation: str, kind: type[Distribution], hidden: list[int]
) -> None:
    net, weights, x = make(activation, kind, hidden, [6, *hidden])
    rng = np.random.default_rng(1)
    if kind is Gaussian:
        actions = rng.normal(size=(N, N_OUTPUTS, BATCH))
    else:
        values = {Categorical: [N_OUTPUTS], MultiCategorical: N_VALUES, Bernoulli: [2] * N_OUTPUTS}
        drawn = [rng.integers(n, size=(N, BATCH)) for n in values[kind]]
        actions = np.stack(drawn, axis=1).astype(float)
    d_log_prob, d_value, d_entropy = (
        rng.normal(size=(N, BATCH)),
        rng.normal(size=(N, BATCH)),
        rng.normal(size=(N, 1)),
    )

    grads = np.zeros_like(weights)
    policy, value, distribution = (
        net.policy(weights, grads),
        net.value(weights, grads),
        net.distribution(weights, grads),
    )
    log_prob = distribution.log_prob(policy.forward(x), actions)
    entropy = np.broadcast_to(distribution.entropy(), log_prob.shape)
    policy.backward(distribution.backward(d_log_prob, d_entropy))
    v = value.forward(x)[:, 0]
    value.backward(d_value[:, None])

    for i in range(N):
        inputs, a = torch.tensor(x[i, :, :-1]), torch.tensor(actions[i])
        actor, parameters = module(net, weights[i], "policy", activation)
        critic, more = module(net, weights[i], "value", activation)
        parameters |= more
        output = actor(inputs)
        if kind is Gaussian:
            parameters["log_std"] = nn.Parameter(torch.tensor(net.named(weights[i])["log_std"]))
            marginals = [torch.distributions.Normal(output.T, parameters["log_std"].exp()[:, None])]
            chosen = [a]
        elif kind is Bernoulli:
            marginals, chosen = [torch.distributions.Bernoulli(logits=output.T)], [a]
        else:
            parts = output.split(list(values[kind]), dim=1)
            marginals = [torch.distributions.Categorical(logits=part) for part in parts]
            chosen = list(a)
        log_probs = [m.log_prob(c).reshape(-1, BATCH) for m, c in zip(marginals, chosen)]
        entropies = [m.entropy().reshape(-1, BATCH) for m in marginals]
        their_log_prob, their_entropy = (torch.cat(x).sum(dim=0) for x in (log_probs, entropies))
        their_value = critic(inputs)[:, 0]
        np.testing.assert_allclose(log_prob[i], their_log_prob.detach(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(entropy[i], their_entropy.detach(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(v[i], their_value.detach()[...], rtol=1e-10, atol=1e-10)

        loss = (their_log_prob * torch.tensor(d_log_prob[i])).sum() + (
            their_value * torch.tensor(d_value[i])
        ).sum()
        loss += (their_entropy * torch.tensor(d_entropy[i])).sum()
        loss.backward()
        ours = net.named(grads[i])
        assert ours.keys() == parameters.keys()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(
                ours[name], parameter.grad, rtol=1e-9, atol=1e-9, err_msg=name
            )


@pytest.mark.parametrize("max_norm", [1e9, 0.5])
def test_adam_equals_pytorchs_with_clipped_gradients(max_norm: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 48)).astype(np.float32)
    eps, rates = [1e-5, 1e-8], [1e-3, 1e-2]
    theirs = [nn.Parameter(torch.tensor(row)) for row in weights]
    optimizers = [torch.optim.Adam([p], lr=lr, eps=e) for p, lr, e in zip(theirs, rates, eps)]
    first, second, steps = np.zeros_like(weights), np.zeros_like(weights), np.zeros(2, np.float32)
    adam = Adam(weights, first, second, steps, eps)
    for _ in range(20):
        grads = rng.normal(size=weights.shape).astype(np.float32)
        for i in range(2):
            theirs[i].grad = torch.tensor(grads[i])
            nn.utils.clip_grad_norm_([theirs[i]], max_norm)
            optimizers[i].step()
            adam.step(i, grads[i], rates[i], max_norm)
    for i in range(2):
        state = optimizers[i].state[theirs[i]]
        np.testing.assert_allclose(weights[i], theirs[i].detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(first[i], state["exp_avg"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(second[i], state["exp_avg_sq"], rtol=1e-5, atol=1e-7)
        assert steps[i] == state["step"] == 20


def test_blocks_of_all_agents_are_aligned_alike() -> None:
    net = ActorCritic(7, 3, [5], [9], "Tanh", Gaussian)
    assert net.n_params % 16 == 0
    rows = np.zeros((2, net.n_params), np.float32)
    starts = [
        {k: v.__array_interface__["data"][0] % 64 for k, v in net.named(row).items()}
        for row in rows
    ]
    assert starts[0] == starts[1]
