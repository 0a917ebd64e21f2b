"""Addresses of clusters, what the scripts say of those that are not there, and the executor that
they choose.
"""

import dataclasses
import socket
import sys
from pathlib import Path

import pytest

from erl.errors import UserError
from erl.executors.local import LocalExecutor, check_cluster, default_workers
from erl.experiments.comparison import ComparisonConfig
from erl.experiments.evolution import EvolutionConfig, evolve, make_executor
from erl.studies.study import Study


@pytest.mark.parametrize(
    "cluster", ["ray", "ray:node1:6379", "ray://node1:10001", "ray://192.0.2.1:10001"]
)
def test_addresses_of_clusters(cluster):
    check_cluster(cluster)
    assert EvolutionConfig(cluster=cluster).cluster == cluster


@pytest.mark.parametrize(
    "cluster",
    [
        *(
            "",
            "Ray",
            "dask",
            "dask://node1:8786",
            "rays",
            "slurm",
            "ray:",
            "ray://",
            "ray:node1",
            "ray://node1",
        ),
        *(
            "ray://:10001",
            "ray://node1:port",
            "ray://node1:0",
            "ray://node1:65536",
            "ray:/node1:6379",
            "ray://a:1/x",
        ),
    ],
)
@pytest.mark.parametrize("config", [EvolutionConfig, ComparisonConfig])
def test_other_addresses_are_refused(config, cluster):
    with pytest.raises(UserError, match=r"ray://HOST:PORT"):
        config(cluster=cluster)


def test_without_a_cluster_lifetimes_run_in_processes_here():
    executor = make_executor(EvolutionConfig())
    assert isinstance(executor, LocalExecutor)
    assert executor.workers == default_workers()
    assert make_executor(EvolutionConfig(workers=3)).workers == 3


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["ray:", "ray://"])
def test_a_cluster_that_does_not_answer_is_refused_and_nothing_written(scheme, sink, monkeypatch):
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    with pytest.raises(UserError, match="no Ray cluster answers at 127"):
        evolve(
            EvolutionConfig(env_id="CartPole-v1", cluster=f"{scheme}127.0.0.1:{free_port()}"), sink
        )
    assert not list(Path().iterdir())


def test_a_cluster_that_runs_no_more_is_refused(sink, monkeypatch, tmp_path):
    """Ray notes the last cluster of a machine in a file, which outlives a cluster that was
    killed.
    """
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = EvolutionConfig(env_id="CartPole-v1", cluster="ray")
    with pytest.raises(
        UserError, match="no Ray cluster runs on this machine: start one with ray start"
    ):
        evolve(config, sink)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="no Ray cluster answers at 127"):
        evolve(config, sink)


def test_a_server_of_another_kind_is_refused(sink, monkeypatch):
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UserError, match="no Ray cluster answers"),
    ):
        evolve(
            EvolutionConfig(
                env_id="CartPole-v1", cluster=f"ray:127.0.0.1:{silent.getsockname()[1]}"
            ),
            sink,
        )


def test_without_ray_the_message_says_how_to_install_it(sink, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "erl.executors.ray_cluster", raising=False)
    with pytest.raises(UserError, match=r"--cluster needs Ray .*pip install"):
        evolve(EvolutionConfig(env_id="CartPole-v1", cluster="ray"), sink)
    assert not list(Path().iterdir())


def test_where_a_study_is_computed_is_no_part_of_it(quick, inline, sink, monkeypatch):
    """It may be continued on a cluster, and its configuration does not name one."""
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    config = EvolutionConfig(
        env_id="CartPole-v1",
        training_steps=64,
        nb_trials=1,
        nb_seeds=1,
        learner_config=quick,
        engine="sb3",
    )
    assert evolve(config, sink) == 0
    study = Study(config.storage, "CartPole-v1_main_0.064k_steps")
    assert "cluster" not in study.config
    with pytest.raises(
        UserError, match="no Ray cluster answers"
    ):  # and not that the study is another one
        evolve(dataclasses.replace(config, cluster=f"ray:127.0.0.1:{free_port()}"), sink)
