# %% [markdown]
# # Results
#
# What agents learn, and how they compare: of a test, of single runs (`python -m erl`), of
# TensorBoard logs. One cell to change: the next one.
#
# A study's address is `STORAGE#STUDY`, or a folder of TensorBoard logs. Paths are relative to the
# folder of this notebook: `..` is the folder in which the scripts run. `erl studies list` has the
# names of all tests. Several tests make a generalisation matrix, and the other figures show the
# first of them. Agents of several single runs or logs are in all figures and in the table.

# %% tags=["parameters"]
STUDIES = ["sqlite:///../studies.db#CartPole-v1_memory_50k_steps_trial_16_test_50k_steps"]
BASELINE = None  # the learner alone
THRESHOLDS = None  # training returns; None for three. A table of final policies has no steps
TABLES = "../reports/tables"  # folder for CSV, Markdown and LaTeX

# %%
# %matplotlib inline
from erl.figures import attempt, comparison, learning, report
from erl.studies.data import read_study

studies = [read_study(address) for address in STUDIES]
agents = report.compared(studies, BASELINE)
lifetimes, baseline, order, about = agents.lifetimes, agents.baseline, agents.order, agents.about
measure = agents.measure  # what the evolution selected for, or else the final policy
about

# %% [markdown]
# ## Learning curves

# %%
attempt(learning.learning_curves, lifetimes, order, about)

# %% [markdown]
# ## What was reached
#
# The interquartile mean leaves out the lowest and the highest quarter of the seeds. Training
# returns include exploration; final policies act without it, in fresh episodes.

# %%
attempt(learning.interquartile_means, lifetimes, "training_return", order, about)

# %%
attempt(learning.interquartile_means, lifetimes, "final_return", order, about)

# %% [markdown]
# ## Against the baseline
#
# By the measure that the evolution selected for, which was chosen before the test began; without an
# evolution, by the final policy where it was evaluated. P = 0.5 is a tie. The p-values are those of
# Mann and Whitney's test, whose statistic is this very probability, corrected by Holm's method for
# the whole family of comparisons.

# %%
attempt(comparison.improvement, lifetimes, baseline, measure, order, about)

# %%
attempt(comparison.family, lifetimes, baseline, measure, order)

# %%
attempt(comparison.performance_profiles, lifetimes, measure, order, about)

# %% [markdown]
# ## Sample efficiency
#
# The share of seeds that have reached a return, over steps. Seeds that never reach it, also those
# that failed, keep the curve below 1, and nothing has to be assumed about them.

# %%
attempt(learning.sample_efficiency, lifetimes, THRESHOLDS, order, about)

# %% [markdown]
# ## Generalisation
#
# Several tests, each of reservoirs that evolved in one place and were tested in another, make a
# matrix.

# %%
attempt(report.matrix_figure, studies)

# %% [markdown]
# ## The table of a paper
#
# By the same measure. Only a table of training returns has the steps to each threshold. `column` of
# `report.show_table` shows the other measure, without p-values.

# %%
attempt(report.show_table, agents, THRESHOLDS, TABLES)
