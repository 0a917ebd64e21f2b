from errno import ENOSPC

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from erl.errors import UserError
from erl.experiments import display
from erl.experiments.display import EvolutionLog, generation_scalars
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.studies.data import read_trials, sampler_path
from erl.studies.storage import DEFAULT_STORAGE, StorageError
from erl.studies.study import Study

ENV = "toy_environments:Recall-v0"
NAME = f"{ENV}_main_0.064k_steps"
FOLDER = f"logs/{NAME.replace(':', '_')}/evolution"


def config(quick, **more):
    settings = {"training_steps": 64, "nb_trials": 12, "nb_seeds": 1, "units": 5, "popsize": 4}
    settings |= {"learner_config": quick, "engine": "sb3", "workers": 1}
    return EvolutionConfig(env_id=ENV, **(settings | more))


def logged():
    log = EventAccumulator(FOLDER)
    log.Reload()
    tags = log.Tags()["scalars"]
    return {tag: [(e.step, pytest.approx(e.value)) for e in log.Scalars(tag)] for tag in tags}


def test_tensorboard_shows_best_mean_and_where_the_sampler_was(quick, told, sink):
    evolve(config(quick, nb_trials=8), sink)
    assert evolve(config(quick), sink) == 0  # it goes on; the log is written anew
    data = read_trials(Study(DEFAULT_STORAGE, NAME))
    fitness = data.trials.fitness.to_numpy().reshape(3, 4)
    found = logged()
    steps = [4, 8, 12]
    best = np.maximum.accumulate(fitness.max(1))
    assert found["evolution/best"] == list(zip(steps, best))
    assert found["evolution/mean"] == list(zip(steps, fitness.mean(1)))
    path = sampler_path(data)
    for k, name in enumerate(path.parameters[0]):
        means = [float(data.space[name].value(m[k])) for m in path["mean"]]
        assert found[f"mean/{name}"] == list(zip(steps, means))
        widths = [float(np.sqrt(c[k, k])) for c in path["cov"]]
        assert found[f"std/{name}"] == list(zip(steps, widths))


def test_a_generation_without_a_result_or_with_open_trials_has_no_scalars(quick, told, sink):
    evolve(config(quick, nb_trials=4, sampler="Random"), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    data = read_trials(study)
    assert len(generation_scalars(data)) == 1
    data.trials.loc[3, "state"] = "RUNNING"
    assert generation_scalars(data) == []
    data.trials.loc[:, "state"] = "FAIL"
    assert generation_scalars(data) == [(0, 4, {})]
    # Of several coordinators a later generation may end first. It waits for the one before.
    data.trials.loc[2:, "generation"] = 1
    data.trials.loc[0, "state"] = "RUNNING"
    assert generation_scalars(data) == []
    data.trials.loc[0, "state"] = "FAIL"
    assert generation_scalars(data) == [(0, 2, {}), (1, 4, {})]


def test_each_generation_is_written_once_and_in_order(quick, told, sink, monkeypatch):
    evolve(config(quick, nb_trials=4, sampler="Random"), sink)
    log, written = EvolutionLog(Study(DEFAULT_STORAGE, NAME), "log"), []
    monkeypatch.setattr(log, "_write", lambda step, scalars: written.append(step))
    for ended in ([], [(0, 2, {}), (1, 4, {})], [(0, 2, {}), (1, 4, {}), (2, 6, {})]):
        monkeypatch.setattr("erl.experiments.display.generation_scalars", lambda _, e=ended: e)
        log.update()
    assert written == [2, 4, 6]


def test_a_log_that_cannot_be_written_costs_a_warning(quick, told, sink, caplog, monkeypatch):
    def refuse(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(display.EvolutionLog, "_write", refuse)
    assert evolve(config(quick, nb_trials=4), sink) == 0
    assert "the evolution is not in TensorBoard: No space left" in caplog.text


def test_a_full_temporary_disk_costs_the_picture_and_a_storage_that_fails_ends_the_command(
    quick, inline, sink, caplog, monkeypatch
):
    def full(path, write):
        raise OSError(ENOSPC, "No space left on device")

    def gone(*arguments, **named):
        raise StorageError("cannot use the storage")

    monkeypatch.setattr(display, "CURVE_SECONDS", 0.0)
    with monkeypatch.context() as disk:
        disk.setattr("erl.figures.style.write_whole", full)
        assert evolve(config(quick, nb_trials=2, popsize=2, sampler="Random"), sink) == 0
    assert caplog.text.count("not all its files in the dashboard") == 2
    assert "cannot be written: No space left" in caplog.text
    assert len(Study(DEFAULT_STORAGE, NAME).trials("COMPLETE")) == 2
    monkeypatch.setattr(Study, "attach", gone)
    with pytest.raises(UserError, match="cannot use the storage; finished lifetimes are stored"):
        evolve(config(quick, nb_trials=3, popsize=2, sampler="Random"), sink)


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError, RuntimeError])
@pytest.mark.parametrize("method", ["flush", "close"])
def test_a_disk_that_fills_up_costs_the_log_and_not_the_evolution(
    method, error, quick, told, sink, caplog, monkeypatch
):
    """While a generation is written, or at the end."""
    lived, refused, work = [], [], getattr(EventFileWriter, method)

    def full(self):
        if len(lived) > 4:  # of the second generation
            refused.append(method)
            raise error("No space left on device")
        work(self)

    told.before = staticmethod(lived.append)
    monkeypatch.setattr(EventFileWriter, method, full)
    assert evolve(config(quick), sink) == 0
    assert len(lived) == 12
    assert refused == [method]  # a writer that failed is used no more
    assert caplog.text.count("the evolution is not in TensorBoard: No space left") == 1
    assert any(line.startswith("best trial") for line in sink.lines)
    assert logged()["evolution/best"][0][0] == 4
