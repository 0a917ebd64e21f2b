"""ERL-Re²'s update in the plainest form: separate networks, autograd, and a policy encoded anew for
every row of a batch.

The slow reference that the tests compare with and that the benchmark takes its ratio from.
"""

import torch
from torch import nn
from torch.nn import functional as F

STD_EPS = 1e-6


class LayerNorm(nn.Module):
    """The published one: standard deviation with n - 1, epsilon added to it."""

    def __init__(self, n):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return self.gain * centred / (x.std(-1, keepdim=True) + STD_EPS) + self.shift


class Representation(nn.Module):
    def __init__(self, observations, norm):
        super().__init__()
        self.l1, self.n1 = nn.Linear(observations, 400), norm(400)
        self.l2, self.n2 = nn.Linear(400, 300), norm(300)

    def forward(self, s):
        return torch.tanh(self.n2(self.l2(torch.tanh(self.n1(self.l1(s))))))


class Value(nn.Module):
    """One critic; with `pr`, one PeVFA."""

    def __init__(self, norm, inputs, pr=0, features=300):
        super().__init__()
        self.l1, self.n1 = nn.Linear(inputs + pr, 400), norm(400)
        self.l2, self.n2 = nn.Linear(400, 300), norm(300)
        self.out = nn.Linear(300, 1)
        if pr:
            self.e1, self.e2, self.e3 = (
                nn.Linear(features + 1, pr),
                nn.Linear(pr, pr),
                nn.Linear(pr, pr),
            )

    def code(self, head, batch):
        rows = head.expand(batch, *head.shape)  # the same policy again for every row
        return self.e3(F.leaky_relu(self.e2(F.leaky_relu(self.e1(rows))))).mean(1)

    def forward(self, x, head=None):
        if head is not None:
            x = torch.cat([x, self.code(head, len(x))], 1)
        x = F.leaky_relu(self.n1(self.l1(x)))
        return self.out(F.leaky_relu(self.n2(self.l2(x))))


def act(head, z):
    return torch.tanh(F.linear(z, head[:, :-1], head[:, -1]))


class Plain:
    """Networks and optimisers; `update` takes what `TwoScale.update` takes."""

    def __init__(self, settings, observations, actions):
        self.settings = settings
        self.of_actions = settings.OFF_TYPE == 1
        n, inputs = settings.n_critics, observations + actions
        norm = LayerNorm if settings.use_ln else nn.Identity

        def build():
            return (
                Representation(observations, norm),
                nn.Parameter(torch.zeros(actions, 301)),
                nn.ModuleList(Value(norm, inputs) for _ in range(n)),
                nn.ModuleList(
                    Value(norm, inputs if self.of_actions else 300, settings.pr) for _ in range(n)
                ),
            )

        self.z, self.head, self.critics, self.pevfa = build()
        self.z_target, self.head_target, self.critics_target, self.pevfa_target = build()
        self.optimisers = [
            torch.optim.Adam(p, lr=settings.learning_rate) for p in self.parameters()
        ]

    def parameters(self):
        """In the order of `TwoScale.networks`."""
        return [
            list(self.z.parameters()),
            [self.head],
            list(self.critics.parameters()),
            list(self.pevfa.parameters()),
        ]

    def target_parameters(self):
        return [
            list(self.z_target.parameters()),
            [self.head_target],
            list(self.critics_target.parameters()),
            list(self.pevfa_target.parameters()),
        ]

    def inputs(self, s, a, z):
        return torch.cat([s, a], 1) if self.of_actions else z

    def descend(self, k, grads):
        parameters = self.parameters()[k]
        for p, g in zip(parameters, grads):
            p.grad = g
        nn.utils.clip_grad_norm_(parameters, 10)
        self.optimisers[k].step()

    def losses(self, batch, draws):
        """PeVFA's and the critics' losses."""
        with torch.no_grad():
            s2, g = batch.next_observations, self.settings.gamma
            noise = (draws.noise * self.settings.smoothing).clamp(-0.5, 0.5)
            a2 = (act(self.head_target, self.z_target(s2)) + noise).clamp(-1, 1)
            q2 = torch.stack([c(torch.cat([s2, a2], 1)) for c in self.critics_target]).amin(0)
            y = batch.rewards + g * batch.not_done * q2
            if draws.value_head is not None:
                x2 = self.inputs(s2, act(draws.value_head, self.z(s2)), self.z(s2))
                v2 = torch.stack([v(x2, draws.value_head) for v in self.pevfa_target]).amin(0)
                y_policy = batch.rewards + g * batch.not_done * v2
        x = torch.cat([batch.observations, batch.actions], 1)
        critic_loss = sum(F.mse_loss(c(x), y) for c in self.critics)
        if draws.value_head is None:
            return None, critic_loss
        x = self.inputs(batch.observations, batch.actions, self.z(batch.observations).detach())
        return sum(F.mse_loss(v(x, draws.value_head), y_policy) for v in self.pevfa), critic_loss

    def policy_losses(self, batch, draws):
        """Of the RL head, and of the representation."""
        s, settings = batch.observations, self.settings
        z = self.z(s)
        rl = -self.critics[0](torch.cat([s, act(self.head, z)], 1)).mean()
        population = 0.0
        for head in draws.representation_heads if draws.representation_heads is not None else ():
            population = population - self.pevfa[0](self.inputs(s, act(head, z), z), head).mean()
        return rl, settings.actor_alpha * rl + settings.EA_actor_alpha * population

    def update(self, batch, draws, improve):
        policy_value_loss, critic_loss = self.losses(batch, draws)
        if policy_value_loss is not None:
            self.descend(3, torch.autograd.grad(policy_value_loss, self.parameters()[3]))
        self.descend(2, torch.autograd.grad(critic_loss, self.parameters()[2]))
        if improve:
            rl, shared = self.policy_losses(batch, draws)
            by_head = torch.autograd.grad(rl, [self.head], retain_graph=True)
            by_z = torch.autograd.grad(shared, self.parameters()[0])
            self.descend(1, by_head)
            self.descend(0, by_z)
            with torch.no_grad():
                for targets, sources in zip(self.target_parameters(), self.parameters()):
                    for t, p in zip(targets, sources):
                        t.lerp_(p, self.settings.tau)

    # -- the same weights as TwoScale's --

    def load(self, fast):
        """Take over all parameters and targets."""
        for flats, modules in (
            ([n.values for n in fast.networks], self.modules(False)),
            ([n.target for n in fast.networks], self.modules(True)),
        ):
            for mine, theirs in zip(modules, self.flats(fast, flats)):
                for p, value in zip(mine, theirs):
                    p.data.copy_(value)

    def modules(self, target):
        return self.target_parameters() if target else self.parameters()

    def flats(self, fast, flats):
        """The flat vectors of `TwoScale` as lists of tensors in the shapes and order of this one's
        parameters.
        """
        z, head, q, v = (flat.view(-1) for flat in flats)
        actions = self.head.shape[0]
        n = self.settings.n_critics
        encoder, value = fast._v.encoder, fast._v.value
        cut = encoder.shape.size(n)
        critic = _modules(fast._q, q)
        encoded, valued = _modules(encoder, v[:cut]), _modules(value, v[cut:])
        return [
            _modules(fast._z, z)[0],
            [head.view(actions, -1)],
            [p for k in range(n) for p in critic[k]],
            [p for k in range(n) for p in valued[k] + encoded[k]],
        ]


def _modules(network, flat):
    """For each perceptron its parameters as `torch.nn` has them: the code's matrix beside the first
    layer's.
    """
    result = []
    for layers, code in network.cut(flat):
        tensors = []
        for i, layer in enumerate(layers):
            weight = layer.weight.t()
            if i == 0 and code is not None:
                weight = torch.cat([weight, code.t()], 1)
            tensors += [weight, layer.bias]
            if layer.gain is not None:
                tensors += [layer.gain, layer.shift]
        result.append(tensors)
    return result
