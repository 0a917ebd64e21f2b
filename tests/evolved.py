"""What tests of the CEM-RL and AES-RL families share."""

from itertools import pairwise

import numpy as np
import torch

from erl.learners import Outputs, get_learner
from erl.learners.core.run import Run
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

REACH = "toy_environments:Reach-v0"
NAMES = ("CEM-RL", "P-CEM-RL", "ACEM-RL", "(1+1)-ES", "AES-RL")
SMALL = {
    "hidden": [8, 8],
    "batch_size": 16,
    "learning_starts": 100,
    "buffer_size": 2000,
}
# Where the clock orders something.
COSTS = {"actor_update_cost": 0.25, "critic_update_cost": 0.5}
OWN = {
    "CEM-RL": {"population_size": 4, "rl_population": 2},
    "P-CEM-RL": {"population_size": 4, "rl_population": 2, "actor_workers": 3},
    "ACEM-RL": {"population_size": 4, "critic_job": 20, "actor_workers": 3},
    "(1+1)-ES": {"mean_evaluations": 1, "critic_job": 20, "actor_workers": 3},
    "AES-RL": {
        "mean_update_param": 3.0,
        "mean_evaluations": 1,
        "critic_job": 20,
        "actor_workers": 3,
    },
}


def lifetime(name, steps=600, seed=0, env_id=REACH, context=None, ep_eval=2, **settings):
    waits = name in ("CEM-RL", "P-CEM-RL") and not settings.get("critic_workers")
    learner = LearnerSpec(name, {**SMALL, **({} if waits else COSTS), **OWN[name], **settings})
    seeds = Seeds.derive(seed, "single", 0)
    return LifetimeSpec(Task(env_id), learner, steps, seeds, context, ep_eval)


def train(spec, ledger=None, **outputs):
    """The agent, and the ledger."""
    ledger = ledger or Ledger()
    (agent,) = get_learner(spec.learner.name).train([spec], [ledger], [Outputs(**outputs)])
    if isinstance(agent, Exception):
        raise agent
    return agent, ledger


def at_work(spec):
    """The algorithm at work on a lifetime."""
    learner = get_learner(spec.learner.name)
    learner.check(spec)
    settings = learner.settings.from_learner_config(spec.learner.config, spec.task.env_id)
    return learner.algorithm(Run([spec], [Ledger()], [Outputs()], [settings]))


def until(work, told):
    """Go on until so many individuals have been told."""
    while work.told < told:
        work.iterate()


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.model.policy.parameters()])


def act(genes, sizes, seen):
    """An actor's actions, layer by layer."""
    begin, h = 0, np.asarray(seen, np.float32)
    for inputs, outputs in pairwise(sizes):
        weight = genes[begin : begin + inputs * outputs].reshape(inputs, outputs)
        begin += inputs * outputs
        h = np.tanh(h @ weight + genes[begin : begin + outputs])
        begin += outputs
    return h


def episode(env, genes, sizes, seed):
    """The return of an episode in Gymnasium, and how long it was."""
    seen, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        seen, reward, terminated, truncated, _ = env.step(act(genes, sizes, seen))
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps
