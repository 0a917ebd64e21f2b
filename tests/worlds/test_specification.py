import json
import math
import subprocess
from itertools import product
from typing import get_args

import pytest

from erl.errors import UserError
from erl.lifetimes.record import LifetimeRecord
from erl.worlds import specification
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Phase, Seeds, from_json, to_json
from erl.worlds.tasks import Task

SPEC = LifetimeSpec(
    task=Task("CartPole-v1", del_obs=True),
    learner=LearnerSpec("A2C", {"n_steps": 8, "policy_kwargs": {"net_arch": [32, 32]}}, "sb3"),
    steps=1234,
    seeds=Seeds(1, 2, 3, 4),
    context=Context(
        (ReservoirParams(units=7, sr=0.1), ReservoirParams(lr=0.3)), skip_c=True, reset_res=False
    ),
    ep_eval=3,
    fitness="final_eval",
)


@pytest.mark.parametrize(
    "spec", [SPEC, LifetimeSpec(Task("CartPole-v1"), LearnerSpec(), 1, Seeds(0, 0, 0, 0))]
)
def test_a_specification_survives_json(spec):
    assert from_json(LifetimeSpec, json.loads(json.dumps(to_json(spec)))) == spec


def test_a_record_survives_json():
    record = LifetimeRecord(
        SPEC,
        1.5,
        None,
        0,
        3,
        99,
        0.1,
        final_returns=(1.0, 2.0),
        curve=((1, 2.0), (3, 4.0)),
        error="x",
        commit=None,
    )
    assert from_json(LifetimeRecord, json.loads(json.dumps(to_json(record)))) == record


def test_what_another_version_stored_is_refused():
    with pytest.raises(UserError, match=r"another version.*colour"):
        from_json(Task, {"env_id": "CartPole-v1", "colour": "red"})


def test_seeds_of_phases_roles_and_indices_are_disjoint():
    roots, phases, indices = (0, 1, 12345), get_args(Phase), range(200)
    drawn = [
        s
        for r, p, i in product(roots, phases, indices)
        for s in to_json(Seeds.derive(r, p, i)).values()
    ]
    # 9,600 draws from 2^31 collide about 0.02 times by chance: with fixed roots this either holds
    # or does not.
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= s < 2**31 for s in drawn)
    assert math.isclose(sum(drawn) / len(drawn) / 2**30, 1.0, abs_tol=0.05)


def test_seeds_follow_from_root_phase_and_index():
    assert Seeds.derive(5, "test", 3) == Seeds.derive(5, "test", 3)
    assert Seeds.derive(5, "test", 3) != Seeds.derive(6, "test", 3)


@pytest.mark.parametrize(
    ("phase", "seeds"),
    [
        ("evolution", Seeds(1873163432, 1771249284, 975363754, 1517671685)),
        ("test", Seeds(635980857, 384596522, 1573551244, 1352343994)),
        ("single", Seeds(73979132, 146232363, 2141212141, 1650664061)),
        ("finals", Seeds(1510475571, 1218870961, 1596048436, 332241005)),
    ],
)
def test_seeds_are_those_of_earlier_versions(phase, seeds):
    """Or a stored study could not be repeated."""
    assert Seeds.derive(5, phase, 3) == seeds


def test_published_seeds_are_the_index():
    assert [Seeds.published(i) for i in range(3)] == [Seeds(i, i, i, i) for i in range(3)]


def test_another_version_of_the_format_is_refused():
    data = to_json(
        LifetimeSpec(Task("CartPole-v1"), LearnerSpec(), 10, Seeds.derive(0, "single", 0))
    )
    assert from_json(LifetimeSpec, data).steps == 10
    with pytest.raises(UserError, match="version 99"):
        from_json(LifetimeSpec, {**data, "version": 99})


@pytest.mark.parametrize(
    ("place", "known"), [("erl/worlds", True), (".venv/site-packages/erl/worlds", False)]
)
def test_the_commit_is_that_of_this_projects_checkout(place, known, tmp_path, monkeypatch):
    """And not of a checkout in whose environment it is installed."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    (tmp_path / place).mkdir(parents=True)
    monkeypatch.setattr(specification, "__file__", str(tmp_path / place / "specification.py"))
    assert (specification.commit.__wrapped__() is not None) == known
