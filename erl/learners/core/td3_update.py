"""TD3's two gradient steps, for whoever takes them: one member, many side by side, or actors of an
evolution that share critics.

Fujimoto, van Hoof and Meger, "Addressing Function Approximation Error in Actor-Critic Methods",
ICML 2018, arXiv 1802.09477.
"""

from typing import Any

import torch
from torch import Tensor

from erl.learners.core.off_policy import Block
from erl.learners.core.replay import Batch
from erl.networks.perceptrons import Perceptrons
from erl.networks.trained import Trained


def critic_step(block: Block[Any], batch: Batch, noise: Tensor, critics: Trained) -> Tensor:
    """Descend the squared error of every critic (algorithm 1, lines 7 to 11).

    Args:
        block: the networks; its settings have `gamma`, `target_policy_noise` and
            `target_noise_clip`.
        batch: a minibatch of each member, (n, batch, …).
        noise: standard normal (n, batch, actions).
        critics: the block's critics, which take a step of Adam.

    Returns:
        The critics' losses, summed, (n,).
    """
    clip = block.column("target_noise_clip")
    noise = (noise * block.column("target_policy_noise")).clamp_(-clip, clip)
    next_actions = block.actor_target.forward(batch.next_observations, keep=False).output
    next_actions = (next_actions.tanh() + noise).clamp_(-1.0, 1.0)
    next_pairs = block.for_critics(batch.next_pairs(next_actions))
    next_q_values = block.by_member(block.critic_target.forward(next_pairs, keep=False).output)
    target_q_values = batch.targets(next_q_values.amin(1), block.column("gamma"))

    q_values = block.critic.forward(block.for_critics(batch.pairs))
    error = block.by_member(q_values.output) - target_q_values.unsqueeze(1)
    batch_size = error.shape[2]
    block.critic.backward(q_values, (error * (2.0 / batch_size)).view_as(q_values.output))
    critics.step(block.begin, block.end)
    return error.square_().sum((1, 2, 3)).div_(batch_size)


def actor_step(
    actor: Perceptrons,
    first_critic: Perceptrons,
    batch: Batch,
    actors: Trained,
    begin: int,
    end: int,
) -> Tensor:
    """Ascend each actor's first critic (algorithm 1, line 13).

    Args:
        actor: members `begin` to `end` of `actors`.
        first_critic: a critic of each.
        batch: a minibatch of each, (n, batch, …); its actions are overwritten.
        actors: they take a step of Adam.
        begin, end: which.

    Returns:
        The negative mean values (n,).
    """
    outputs = actor.forward(batch.observations)
    actions = outputs.output.tanh()
    q_values = first_critic.forward(batch.pairs_with(actions))
    batch_size, n_observations = actions.shape[1], batch.observations.shape[-1]
    d = torch.full_like(q_values.output, -1.0 / batch_size)
    d = first_critic.backward(q_values, d, weights=False, inputs=slice(n_observations, None))
    actor.backward(outputs, d * (1.0 - actions.square()))
    actors.step(begin, end)
    return q_values.output.sum((1, 2)).div_(-batch_size)
