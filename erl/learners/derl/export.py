"""DERL's policies as models of Stable-Baselines3, which predict, save, load and train on there.

Continuous: TD3, with critics and targets. Discrete: PPO, which draws from a categorical policy too;
its value network is new, since DERL's critics value actions and not states.
"""

from typing import Any

from gymnasium import spaces
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from erl.learners.core.export import copy_layers, set_up
from erl.learners.derl.gradient import GradientHalf
from erl.learners.derl.settings import DERLSettings


def to_sb3(
    settings: DERLSettings,
    gradient: GradientHalf,
    observation_space: spaces.Box,
    action_space: spaces.Space,
    steps: int,
) -> BaseAlgorithm:
    """The policy as it is now, without environment: set one to train on.

    Args:
        settings: of the agent.
        gradient: its networks.
        observation_space: of what the policy sees.
        action_space: of the environment.
        steps: environment steps that went into it.
    """
    s, hidden = settings, list(settings.hidden)
    if isinstance(action_space, spaces.Discrete):
        kwargs = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": nn.ReLU}
        model: BaseAlgorithm = PPO(
            "MlpPolicy",
            None,  # type: ignore[arg-type]
            learning_rate=s.rates(1.0)[0],
            gamma=s.gamma,
            ent_coef=s.ent_coef,
            policy_kwargs=kwargs,
            device="cpu",
            _init_setup_model=False,
        )
    else:
        model = TD3(
            "MlpPolicy",
            None,  # type: ignore[arg-type]
            learning_rate=s.rates(1.0)[0],
            buffer_size=1,
            batch_size=s.batch_size,
            tau=s.tau,
            gamma=s.gamma,
            policy_kwargs={"net_arch": hidden, "activation_fn": nn.ReLU},
            device="cpu",
            _init_setup_model=False,
        )
    set_up(model, observation_space, action_space, 1, steps)
    g = gradient
    pairs: list[tuple[nn.Module, Any]]
    if isinstance(model, PPO):
        policy: Any = model.policy
        actor = nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
        pairs = [(actor, g.pi.members[0])]
    else:
        assert isinstance(model, TD3)
        pairs = [
            (model.actor.mu, g.pi.members[0]),
            (model.actor_target.mu, g.pi_target.members[0]),
            *zip(model.critic.q_networks, g.q.members),
            *zip(model.critic_target.q_networks, g.q_target.members),
        ]
    for network, (layers, _) in pairs:
        copy_layers(network, layers)
    return model
