# %% [markdown]
# # Behaviour
#
# What a trained agent does, and what its reservoir computes. One cell to change: the next one. It
# names a saved model (without `.zip`), and the study that its reservoir came from. Paths are
# relative to the folder of this notebook: `..` is the folder in which the scripts run.

# %% tags=["parameters"]
MODEL = "../models/Swimmer-v4_swim_100k_steps_trial_5_test_300k_steps/RES_PPO/seed_0"
STUDY = "sqlite:///../studies.db#Swimmer-v4_swim_100k_steps"
EPISODE = 7  # seed of the episode
STEPS = None  # of the episode; None for the whole
SHOWN = 200  # steps that are shown in detail
RESERVOIRS = 10  # seeds of the evolved reservoir, and as many that did not evolve
TASKS = None  # of CogScale; None for all

# %%
# %matplotlib inline
from pathlib import Path

from erl.figures import attempt, behaviour, report
from erl.lifetime import load_model
from erl.lifetimes.trace import trace
from erl.studies.data import read_study

spec, agent = load_model(MODEL)
data = read_study(STUDY)
spec.task, spec.context

# %% [markdown]
# ## Film
#
# Beside the frames: the state of every neuron (violet below zero, orange above), and the return so
# far.

# %%
attempt(report.film, spec, agent, Path("film.mp4"), EPISODE, STEPS)

# %% [markdown]
# ## An episode, aligned in time

# %%
episode = trace(spec, agent, EPISODE, STEPS)
attempt(behaviour.aligned, episode, 0, SHOWN)

# %% [markdown]
# ## Frequencies
#
# The gait is the dominant rhythm of the observations. A reservoir can follow it, double it, or
# average over it; the histogram tells which of its neurons do what.

# %%
attempt(behaviour.spectra, episode)

# %%
attempt(behaviour.frequencies, episode)

# %%
attempt(behaviour.phase_plane, episode)

# %% [markdown]
# ## The reservoir as a ReservoirPy node
#
# `make_node` of `erl.worlds.reservoirs` gives the agent's own reservoir: its arguments are
# `spec.context.reservoirs[0]`, the number of inputs and `spec.seeds.reservoir`. Driven by what the
# agent's reservoir was fed, it has the states that the policy saw: below is the greatest
# difference. As any node it joins readouts with `>>`.

# %%
attempt(behaviour.node_difference, episode)

# %% [markdown]
# ## Memory
#
# ReservoirPy's memory capacity and effective spectral radius: the evolved hyperparameters, over
# seeds, beside reservoirs drawn from the search space.

# %%
attempt(report.memory_figure, data, report.describe(data))

# %% [markdown]
# ## Retention
#
# CogScale's memory tasks with a linear readout: the evolved hyperparameters against reservoirs
# drawn uniformly from the search space.

# %%
attempt(report.retention_figure, data, RESERVOIRS, TASKS)
