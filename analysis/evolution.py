# %% [markdown]
# # Evolution
#
# What an evolution tried, where, and what came of it. One cell to change: the next one.
#
# A study's address is `STORAGE#STUDY`, or the path of a journal of ER-MRL's. Paths are relative to
# the folder of this notebook: `..` is the folder in which the scripts run. Several studies are
# shown side by side at the end.

# %% tags=["parameters"]
STUDIES = ["sqlite:///../studies.db#CartPole-v1_memory_50k_steps"]

# %%
# %matplotlib inline
from erl.figures import attempt, evolution, report, two_levels
from erl.studies.data import read_study

studies = [read_study(address) for address in STUDIES]
data = studies[0]
about = report.describe(data)
about

# %%
attempt(evolution.summary, data.trials, data.space)

# %% [markdown]
# ## Optimisation history
#
# The line is a maximum over noisy values: partly luck. What the best hyperparameters reach is seen
# in the test, on seeds that the evolution did not use (`results.ipynb`).

# %%
attempt(evolution.optimisation_history, data.trials, about, data.winner)

# %% [markdown]
# ## Where the sampler searched
#
# For CMA-ES the outlines are its own distribution, replayed from the study; for other samplers they
# are mean and covariance of each generation's trials. Studies of other programs do not say what
# their sampler was: there they are mean and covariance of each ten trials.

# %%
attempt(report.map_figure, data, about)

# %% [markdown]
# ## Hyperparameters and fitness

# %%
attempt(evolution.parallel_coordinates, data.trials, data.space, about)

# %%
attempt(evolution.slices, data.trials, data.space, about)

# %%
attempt(evolution.contours, data.trials, data.space, about=about)

# %% [markdown]
# fANOVA gives each parameter the share of the variance that it explains alone, over the whole range
# that was searched. What parameters do only together is in no share. PED-ANOVA asks what tells the
# best trials from the rest. They may disagree: a parameter can ruin an agent at one end of its
# range and not matter among the good ones.

# %%
attempt(report.importance_figure, data, about)

# %% [markdown]
# ## Both levels
#
# Above, evolution over development: a point is a trial, the mean of its lifetimes. Below, what
# happened within the lifetimes of chosen trials: the generations of the inner evolution where the
# learner is a population (ERL-Re2), learning curves otherwise. `chosen={"title": number}` shows
# others.

# %%
attempt(two_levels.two_levels, data.trials, data.lifetimes, data.generations, about=about)

# %% [markdown]
# ## Memory of what evolved
#
# The evolved hyperparameters, drawn with 20 seeds, beside reservoirs drawn from the search space.

# %%
attempt(report.memory_figure, data, about)

# %% [markdown]
# ## Several studies
#
# With one study there is nothing to compare.

# %%
report.show(report.together(studies))
