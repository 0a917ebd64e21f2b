"""The share of luck that an evolution tells."""

import re

import numpy as np
import pytest
from conftest import Lines
from told_lifetimes import make, study

from erl.experiments.evolution import evolve
from erl.experiments.evolution_progress import LEAST, EvolutionProgress, Luck
from erl.experiments.forecast import Pace
from erl.search.noise import luck_share
from erl.search.space import search_space
from erl.studies.distributions import distributions, sampler_of
from erl.studies.trials import lifetime_records


@pytest.mark.slow
def test_it_is_told_while_it_runs_and_at_the_end_with_what_to_do(told, sink):
    # Nearly equal trials differ by the noise of their seeds.
    assert evolve(make(nb_trials=16, finalists=None, min_sr=1.0, max_sr=1.01), sink) == 0
    scores = [[r.fitness for r in lifetime_records(t).values()] for t in study().trials()]
    share = luck_share(np.array(scores)[:, None])
    assert Luck(study(), study().config).share == pytest.approx(share)
    assert share > 0.5
    assert any("  luck " in status for status in sink.statuses)
    (line,) = [line for line in sink.lines if line.startswith("luck:            ")]
    assert f"{share:.0%}"[:-1] in line
    assert "the latest 16 trials" in line
    assert re.search(r"; with --nb_seeds \d+ it would be about 50 %|; even 100 seeds", line)
    advice = "; --finalists 5 estimates what the best one reaches on other seeds"
    assert line.endswith(advice)
    held = Lines()
    for finalists in (0, 2, None):  # taken back, held, and held before
        evolve(make(nb_trials=16, finalists=finalists, min_sr=1.0, max_sr=1.01), held)
    assert "luck:            " in str(held)
    assert advice not in str(held)
    assert len([line for line in sink.lines if line.startswith("luck: ")]) <= 2  # one of a hint


@pytest.mark.parametrize(
    ("share", "hint"),
    [
        (0.4, None),
        (0.75, "with --nb_seeds 6 it would be about 50 %"),
        (0.99, "even 100 seeds a trial would not bring it to 50 %"),
    ],
)
def test_what_to_do_about_it(share, hint, told, sink):
    evolve(make(nb_trials=1, finalists=None), sink)
    luck = Luck(study(), study().config)
    luck.share = share
    assert luck.hint == hint


def test_what_other_coordinators_do_is_counted(told, sink):
    evolve(make(nb_trials=4, finalists=None), sink)
    with study() as mine, study() as other:
        nb_trials, steps = 14, 100
        progress = EvolutionProgress(mine, mine.config, nb_trials, sink, steps, Pace())
        of_trial = mine.config.nb_seeds * steps
        assert progress.done == 4
        space = distributions(search_space(other.config))
        sampler = sampler_of(other.config, space)
        best, _ = other.propose(2, sampler, space, lambda params: [], 1, nb_trials)
        other.store_end(best.trial_id, "COMPLETE", 1e6, None)
        begun = mine.propose(1, sampler, space, lambda params: [], 2, nb_trials)
        progress.begin(begun)
        assert "trials 5/14 (1 running)  best 1000000.00 (trial 4)" in sink.statuses[-1]
        # One of its own, and half of the 7 that nobody has begun.
        assert progress.budget == 4.5 * of_trial


def test_few_trials_and_one_seed_tell_nothing(told, sink):
    evolve(make(nb_trials=LEAST - 2, finalists=None), sink)
    assert "luck:" not in str(sink)
    evolve(make(nb_trials=1, nb_seeds=1, finalists=None, h_test="one"), sink)
    assert "luck:            unknown: with --nb_seeds 1" in str(sink)
