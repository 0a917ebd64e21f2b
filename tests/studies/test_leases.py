from types import SimpleNamespace

import optuna
import pytest

from erl.studies import leases
from erl.studies.leases import Lease


def places(study):
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return {k: v and v["owner"]["id"] for k, v in attrs.items() if k.startswith("lease:")}


def made():
    study = optuna.create_study(storage="sqlite:///studies.db")
    return study, lambda: Lease(study._storage, study._study_id)


def test_a_study_has_as_many_places_as_it_ever_had_coordinators_at_a_time():
    study, lease = made()
    for _ in range(3):  # one after the other
        one = lease()
        one.start()
        assert places(study) == {"lease:0": one.owner["id"]}
        one.stop()
        assert places(study) == {"lease:0": None}
    first, second = lease(), lease()
    first.start()
    second.start()
    assert places(study) == {"lease:0": first.owner["id"], "lease:1": second.owner["id"]}
    first.stop()
    third = lease()
    third.start()
    assert places(study) == {"lease:0": third.owner["id"], "lease:1": second.owner["id"]}
    for one in (second, third):
        one.stop()
    assert not study.user_attrs


def test_the_place_of_a_coordinator_that_was_killed_is_taken_or_freed():
    study, lease = made()
    for place in range(2):
        owner = {**lease().owner, "pid": 2**22 + 7, "started": 1.0}
        kept = {"owner": owner, "renewals": 5}
        study._storage.set_study_system_attr(study._study_id, f"lease:{place}", kept)
    newcomer = lease()
    newcomer.start()
    assert places(study) == {"lease:0": newcomer.owner["id"], "lease:1": None}
    newcomer.stop()


def test_two_that_took_one_place_at_once_have_one_each_after_the_next_renewal(monkeypatch):
    study, lease = made()
    one, other = lease(), lease()
    looked = other.look
    monkeypatch.setattr(other, "look", dict)  # it sees none yet
    leases.at_work.update({one.owner["id"], other.owner["id"]})
    one._renew()
    other._renew()
    assert places(study) == {"lease:0": other.owner["id"]}
    monkeypatch.setattr(other, "look", looked)
    one._renew()
    other._renew()
    assert len(places(study)) == 2
    assert places(study).pop("lease:0") == other.owner["id"]
    assert one.owner["id"] in places(study).values()
    other.stop()
    one.stop()
    assert set(places(study).values()) == {None}


def test_a_hundred_that_begin_at_once_soon_have_a_place_each(monkeypatch):
    """In rounds in which all read before any of them writes."""
    study = optuna.create_study()
    everyone = [Lease(study._storage, study._study_id) for _ in range(100)]
    leases.at_work.update(one.owner["id"] for one in everyone)
    settled, rounds = False, 0
    while not settled:
        seen = everyone[0]._leases()
        monkeypatch.setattr(Lease, "look", lambda _, seen=seen: dict(seen))
        settled = sum(one._renew() for one in everyone) == len(everyone)
        rounds += 1
        assert rounds <= 10
    held = [owner for owner in places(study).values() if owner is not None]
    assert sorted(held) == sorted(one.owner["id"] for one in everyone)
    for one in everyone:
        one.stop()


@pytest.fixture
def two_machines(monkeypatch):
    """A study, a clock in the test's hands, and coordinators elsewhere and here."""
    study, lease = made()
    now = [0.0]
    monkeypatch.setattr("erl.studies.leases.time", SimpleNamespace(monotonic=lambda: now[0]))
    elsewhere, here = lease(), lease()
    elsewhere.owner = {**elsewhere.owner, "machine": "elsewhere"}
    return study, now, elsewhere, here


def test_a_place_elsewhere_is_free_when_its_lease_was_not_renewed_for_long(two_machines):
    study, now, elsewhere, here = two_machines
    leases.at_work.add(here.owner["id"])
    elsewhere._renew()
    here._renew()

    def wait(seconds):
        for _ in range(4):
            now[0] += seconds / 4
            here._renew()

    wait(leases.LEASE_SECONDS - 1)
    both = {"lease:0": elsewhere.owner["id"], "lease:1": here.owner["id"]}
    assert places(study) == both
    wait(2)
    assert places(study) == {"lease:0": None, "lease:1": here.owner["id"]}
    elsewhere._renew()  # it was only slow
    assert places(study) == both
    here.stop()


def test_an_outage_of_the_storage_is_no_sign_that_a_coordinator_is_gone(two_machines):
    """While it lasts nobody can renew, and who looks first afterwards sees the old count."""
    study, now, elsewhere, here = two_machines
    study.tell(study.ask(), 0.0)
    trial = study.ask()
    study._storage.set_trial_system_attr(trial._trial_id, "owner", elsewhere.owner)
    running = study._storage.get_trial(trial._trial_id)
    for _ in range(2):
        elsewhere._renew()
        here.look()
        now[0] += leases.LEASE_SECONDS / 4
    assert here.owner_lives(running, False)
    now[0] += 5 * leases.LEASE_SECONDS  # nobody can look
    here.look()
    assert here.owner_lives(running, False)
    elsewhere._renew()
    here.look()
    assert here.owner_lives(running, False)
    for _ in range(4):
        now[0] += leases.LEASE_SECONDS / 4
        here.look()
    assert here.owner_lives(running, False) is False


def test_users_of_one_machine_do_not_look_for_each_others_processes(monkeypatch):
    """Where /proc hides them, a process that runs looks like one that has ended."""
    owner = leases.myself()
    assert leases.is_here(owner)
    monkeypatch.setattr("os.getuid", lambda: 4321)
    assert not leases.is_here(owner)
