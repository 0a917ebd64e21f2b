"""CEM-RL and P-CEM-RL: what they are equal to, the order of their work, what counts."""

import gymnasium as gym
import numpy as np
import pytest
from evolved import REACH, at_work, episode, lifetime, train, until

from erl.errors import UserError
from erl.learners import get_learner
from erl.learners.core.bench import TrainCritics
from erl.populations.cem import CEM
from erl.worlds.ledger import Ledger

both = pytest.mark.parametrize("name", ["CEM-RL", "P-CEM-RL"])


def means(spec, generations):
    """The mean after each generation, and the algorithm."""
    work, found = at_work(spec), []
    while len(found) < generations:
        work.iterate()
        if work.generations > len(found):
            found.append(work.distribution.mean)
    work.close()
    return found, work


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@both
def test_without_individuals_that_learn_it_is_cem(name):
    """Generation by generation, on the episodes that Gymnasium gives."""
    spec = lifetime(name, 10**6, rl_population=0, learning_starts=0, var=0.1)
    work, env = at_work(spec), gym.make(REACH)
    cem = CEM(work.distribution.mean, work._rng(0), 4, var=0.1)
    for generation in range(5):
        asked = cem.ask(4)
        returns = [
            episode(
                env, genes, work.bench.sizes, work._seed(0, 4 * generation + k, of="environment")
            )
            for k, genes in enumerate(asked)
        ]
        cem.tell(asked, np.array([total for total, _ in returns]))
        until(work, 4 * (generation + 1))
        assert work.distribution.mean == pytest.approx(cem.mean, abs=1e-5)
        assert work.distribution.var == pytest.approx(cem.var, rel=1e-3)
        cem.mean = work.distribution.mean  # rounding does not add up
    assert work.critic_updates == work.actor_updates == 0
    work.close()


def test_one_worker_and_a_serial_critic_make_it_cem_rl():
    """Where one individual of a generation learns: with several, CEM-RL plays one before the
    critics learn for the next.
    """
    settings = {"rl_population": 1, "batch_size": 16}
    cem_rl, work = means(lifetime("CEM-RL", 10**6, **settings), 6)
    parallel, other = means(lifetime("P-CEM-RL", 10**6, actor_workers=1, **settings), 6)
    assert same(cem_rl, parallel)
    assert work.critic_updates == other.critic_updates > 0
    several, _ = means(lifetime("CEM-RL", 10**6), 6)
    parallel, _ = means(lifetime("P-CEM-RL", 10**6, actor_workers=1), 6)
    assert not same(several, parallel)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # Lee et al.'s code, and Pourchot and Sigaud's.
        ("in-turn", "critics 0, train 0, play 0, critics 1, train 1, play 1, play 2, play 3"),
        ("play-last", "critics 0, train 0, critics 1, train 1, play 0, play 1, play 2, play 3"),
        ("batched", "critics 0, critics 1, train 0, train 1, play 0, play 1, play 2, play 3"),
    ],
)
def test_the_order_of_a_generation(order, expected):
    work = at_work(lifetime("CEM-RL", 10**6, order=order))
    until(work, 12)  # the generations from the third on learn
    begun, job = [], work.job

    def note(worker, task):
        begun.append(f"{task[0]} {task[1].number % 4}")
        return job(worker, task)

    work.job = note
    until(work, 16)
    assert ", ".join(begun) == expected
    work.close()


@pytest.mark.parametrize(("order", "at_random"), [("in-turn", True), ("play-last", False)])
def test_in_pourchot_and_sigauds_order_nobody_plays_at_random(order, at_random):
    work = at_work(lifetime("CEM-RL", 10**6, order=order))
    until(work, 4)
    assert not work.learns
    assert [individual.random for individual in work.generation] == [at_random] * 4
    assert work.policies_told == (0 if at_random else 4)
    work.close()


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_the_batched_order_is_p_cem_rl_with_any_number_of_workers(workers):
    """Where episodes are equally long, and so stored in the same order."""
    batched, _ = means(lifetime("CEM-RL", 10**6, order="batched"), 6)
    parallel, _ = means(lifetime("P-CEM-RL", 10**6, actor_workers=workers), 6)
    assert same(batched, parallel)


def noted(spec, generations):
    """What was begun, in its order: kind, number of the individual, updates."""
    work, begun = at_work(spec), []
    given = work.workers._next_job

    def note(worker, ended):
        job = given(worker, ended)
        if job is not None:
            data = job.data
            who = None if isinstance(data, TrainCritics) else data.about.number
            stored = int(work.bench.buffer.added[0])
            begun.append((job.kind, who, job.units, stored))
        return job

    work.workers._next_job = note
    while work.generations < generations:
        work.iterate()
    work.close()
    return begun, work


def test_cem_rl_plays_each_before_the_next_one_learns():
    begun, work = noted(lifetime("CEM-RL", 10**6, learning_starts=80), 2)
    assert [job[0] for job in begun[:4]] == ["play"] * 4
    # 80 steps before: 40 updates of the critics for each of two, 80 of each actor.
    assert begun[4:12] == [
        ("train_critics", None, 40, 80),
        ("train_actor", 4, 80, 80),
        ("play", 4, None, 80),
        ("train_critics", None, 40, 100),
        ("train_actor", 5, 80, 100),
        ("play", 5, None, 100),
        ("play", 6, None, 120),
        ("play", 7, None, 140),
    ]
    assert work.critic_updates == 80
    assert work.actor_updates == 160


def test_p_cem_rl_waits_between_its_stages():
    begun, _ = noted(lifetime("P-CEM-RL", 10**6, learning_starts=80), 2)
    kinds = [job[0] for job in begun[4:12]]
    assert kinds == ["train_critics"] * 2 + ["train_actor"] * 2 + ["play"] * 4


def test_critics_beside_the_generations():
    """They train without pause, value the mean, and have no limit."""
    settings = {"critic_workers": 1, "critic_job": 7, "critic_update_cost": 0.1}
    begun, work = noted(lifetime("P-CEM-RL", 10**6, learning_starts=80, **settings), 4)
    jobs = [job for job in begun if job[0] == "train_critics"]
    assert {units for _, _, units, _ in jobs} == {7}
    assert min(stored for *_, stored in jobs) >= 80
    assert work.critic_updates > work.stored_steps
    busy = work.workers.busy[-1]
    assert busy / work.workers.clock > 0.7  # all but the first generation


def test_critics_beside_the_generations_wait_for_the_first_episode():
    settings = {"critic_workers": 1, "critic_job": 7, "critic_update_cost": 0.1}
    begun, work = noted(lifetime("P-CEM-RL", 10**6, learning_starts=0, **settings), 2)
    assert all(stored for kind, _, _, stored in begun if kind == "train_critics")
    assert work.critic_updates


def test_the_first_generations_play_at_random_and_do_not_learn():
    begun, work = noted(lifetime("CEM-RL", 10**6, learning_starts=81), 3)
    assert {job[0] for job in begun[:8]} == {"play"}
    assert "train_actor" in {job[0] for job in begun[8:]}
    assert work.told == 12


@both
def test_every_step_is_counted_and_nothing_else(monkeypatch, name):
    taken = 0
    kind = type(gym.make(REACH).unwrapped)
    step = kind.step

    def count(self, action):
        nonlocal taken
        taken += 1
        return step(self, action)

    monkeypatch.setattr(kind, "step", count)
    _, ledger = train(lifetime(name, 650))
    workers = 3 if name == "P-CEM-RL" else 1
    assert taken == ledger.steps
    assert 650 <= ledger.steps < 650 + workers


def test_a_generation_that_was_cut_short_is_not_told():
    _, ledger = train(lifetime("CEM-RL", 635))
    kept = ledger.notes()["kept"]
    assert kept["steps"][-1] == 560
    assert len(kept["fitness"][-1]) == 4
    assert len(ledger.episodes) == 31


def test_the_story_of_a_generation():
    _, ledger = train(lifetime("P-CEM-RL", 400))
    kept, totals = ledger.notes()["kept"], ledger.notes()["totals"]
    assert kept["kind"][0] == ["ES"] * 4
    assert kept["kind"][-1] == ["RL", "RL", "ES", "ES"]
    assert kept["steps"] == kept["uncounted_steps"] == [80, 160, 240, 320, 400]
    assert kept["individuals"] == [4, 8, 12, 16, 20]
    assert totals == {"rl": 6, "es": 14}
    assert kept["rl_share"] == [None, None, 0.5, 0.5, 0.5]  # of those that learning began with
    returns = [total for fitness in kept["fitness"] for total in fitness]
    assert returns == pytest.approx([r for _, r, _ in ledger.episodes], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("CEM-RL", {"actor_workers": 2}, "CEM-RL's actor_workers must be 1, not 2"),
        ("CEM-RL", {"critic_workers": 1}, "CEM-RL's critic_workers must be 0, not 1"),
        ("CEM-RL", {"rl_population": 5}, "rl_population must be at most population_size, 4"),
        ("CEM-RL", {"population_size": 1}, "population_size must be a whole number from 2"),
        ("P-CEM-RL", {"order": "batched"}, "P-CEM-RL has no setting 'order'"),
        ("CEM-RL", {"order": "last"}, "order must be in-turn or play-last or batched"),
        (
            "P-CEM-RL",
            {"critic_workers": 1, "critic_update_cost": 0},
            "critic_update_cost must be above 0 for critics with a worker of their own",
        ),
        ("P-CEM-RL", {"critic_workers": 2}, "critic_workers must be 0 or 1, not 2"),
        ("P-CEM-RL", {"hidden": []}, "hidden must be a list of at least one width"),
        ("P-CEM-RL", {"learning_starts": 600}, "starts to learn after learning_starts = 600"),
        (
            "CEM-RL",
            {"learning_starts": 597},
            "learning_starts = 597 steps, from at least 4 more, but a lifetime has only 600",
        ),
    ],
)
def test_what_cannot_be_is_refused(name, settings, message):
    spec = lifetime(name, **settings)
    with pytest.raises(UserError, match=message):
        get_learner(name).check(spec)


def test_where_nobody_plays_at_random_a_short_budget_is_enough():
    spec = lifetime("CEM-RL", 100, order="play-last", learning_starts=200)
    get_learner("CEM-RL").check(spec)
    train(spec)


@both
def test_generations_at_random_teach_nothing(name):
    """Two of 80 steps each: the third one is the first that learns, and needs 80 steps more."""
    learner, settings = get_learner(name), {"learning_starts": 81, "eval_freq": 50}
    for steps in (100, 200, 239):
        spec = lifetime(name, steps, **settings)
        learner.check(spec)
        with pytest.raises(RuntimeError, match="nothing was learned within"):
            train(spec)
    train(lifetime(name, 240, **settings))
    # Where none plays at random, the first generation is enough.
    train(lifetime(name, 80, learning_starts=0))
    learner.check(lifetime(name, 600, learning_starts=596))


@both
def test_what_was_learned_before_a_kill_counts(name, tmp_path):
    """The first generation that learns ends after 240 steps, and the next one is cut short."""
    spec, outputs = lifetime(name, 300), {"checkpoint": str(tmp_path / "a.pkl")}

    def kill(steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, Ledger(on_step=kill), **outputs, checkpoint_seconds=0.0)
    _, ledger = train(spec, **outputs)
    assert ledger.earlier[0] >= 240
