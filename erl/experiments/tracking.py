"""Runs in Weights & Biases or MLflow (`--track`): what TensorBoard gets, sent from one place.

Lifetimes write TensorBoard logs in worker processes and on other machines. The coordinator has all
of them in one folder. A thread of it reads what is new there and sends it, so that no worker needs
the service's library, a key or a network. The study stores the id of each run and which points were
sent: a study that is continued goes on with the same runs.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erl.cli import plural, without_passwords
from erl.errors import UserError, one_line
from erl.studies.study import Study

# Seconds between two looks at the logs.
EVERY = 10.0
# A run without news for so many seconds is ended; it goes on if there is more.
IDLE = 300.0
# The axis over which Weights & Biases draws, as its own synchronisation of TensorBoard names it.
STEP = "global_step"
# Most numbers in one request to MLflow.
BATCH = 1000
_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """A scalar: its name, the step and the time of day at which it was written, in seconds."""

    tag: str
    step: int
    time: float
    value: float


class TrackedRun(Protocol):
    """A run that takes scalars.

    Attributes:
        id: by which the service knows it.
    """

    id: str

    def log(self, points: Sequence[Point]) -> None:
        """Send scalars, in the order of their steps."""

    def end(self) -> None:
        """No more comes for now."""


class Service(Protocol):
    """Where runs are sent.

    Attributes:
        name: as `--track` has it.
    """

    name: str

    def open(
        self, study: str, name: str, identity: str | None, config: Mapping[str, Any]
    ) -> TrackedRun:
        """A run of a study: the one with this id if there is one, else a new one."""

    def where(self, study: str) -> str:
        """Where a user finds the runs of a study."""


def connect(name: str) -> Service:
    """The service that `--track` names.

    Raises:
        UserError: it cannot be used: nobody is logged in, or it does not answer.
    """
    services: dict[str, type[WandB] | type[MLflow]] = {"wandb": WandB, "mlflow": MLflow}
    try:
        return services[name]()
    except Exception as e:  # each library has its own errors
        raise UserError(f"--track {name} cannot be used: {_reason(e)}") from e


def _reason(error: Exception) -> str:
    """What a library says, as a line: it may name the address of the service."""
    return without_passwords(one_line(error))


class WandB:
    """Weights & Biases. Its own environment variables (WANDB_MODE, WANDB_PROJECT, …) hold."""

    name = "wandb"

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        self._project = os.environ.get("WANDB_PROJECT", "erl")
        if wandb.setup().settings.mode == "online":
            wandb.login()

    def open(
        self, study: str, name: str, identity: str | None, config: Mapping[str, Any]
    ) -> TrackedRun:
        """See `Service`. A study is a group of runs."""
        run = self._wandb.init(
            project=self._project,
            group=study,
            name=name,
            id=identity,
            resume=None if identity is None else "allow",
            reinit="create_new",  # several runs of one process at a time
            config=dict(config),
            settings=self._wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        return _WandBRun(run)

    def where(self, study: str) -> str:
        """See `Service`."""
        return f"wandb, project {self._project}, group {study}"


class _WandBRun:
    def __init__(self, run: Any) -> None:
        self._run, self.id = run, str(run.id)

    def log(self, points: Sequence[Point]) -> None:
        """See `TrackedRun`."""
        by_step: dict[int, dict[str, float]] = {}
        for point in points:
            by_step.setdefault(point.step, {STEP: point.step})[point.tag] = point.value
        for scalars in by_step.values():
            self._run.log(scalars)

    def end(self) -> None:
        """See `TrackedRun`."""
        self._run.finish()


class MLflow:
    """MLflow. Its own environment variables (MLFLOW_TRACKING_URI, …) hold."""

    name = "mlflow"

    def __init__(self) -> None:
        import mlflow

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._address = mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient()
        self._client.search_experiments(max_results=1)  # it answers

    def open(
        self, study: str, name: str, identity: str | None, config: Mapping[str, Any]
    ) -> TrackedRun:
        """See `Service`. A study is an experiment."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        if identity is not None:
            try:
                # A run that was deleted is still there, and takes nothing.
                if self._client.get_run(identity).info.lifecycle_stage == "active":
                    self._client.update_run(identity, status="RUNNING")
                    return _MLflowRun(self._client, identity)
            except MlflowException as e:
                if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._client.get_experiment_by_name(study)
        if found is not None and found.lifecycle_stage != "active":
            raise RuntimeError(f"the experiment {study} was deleted there: restore or purge it")
        experiment = self._client.create_experiment(study) if found is None else found.experiment_id
        run = self._client.create_run(experiment, run_name=name)
        params = [Param(_allowed(key), str(value)[:500]) for key, value in config.items()]
        self._client.log_batch(run.info.run_id, params=params[:100])
        return _MLflowRun(self._client, run.info.run_id)

    def where(self, study: str) -> str:
        """See `Service`."""
        return f"mlflow at {without_passwords(self._address)}, experiment {study}"


class _MLflowRun:
    def __init__(self, client: Any, identity: str) -> None:
        self._client, self.id = client, identity

    def log(self, points: Sequence[Point]) -> None:
        """See `TrackedRun`."""
        from mlflow.entities import Metric

        for i in range(0, len(points), BATCH):
            metrics = [
                Metric(_allowed(p.tag), p.value, round(p.time * 1000), p.step)
                for p in points[i : i + BATCH]
            ]
            self._client.log_batch(self.id, metrics=metrics)

    def end(self) -> None:
        """See `TrackedRun`."""
        self._client.set_terminated(self.id)


def _allowed(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)


class _Followed:
    """A folder of logs, and the run to which they are sent.

    Attributes:
        sent: by the scalars' names, the last step that was sent.
    """

    def __init__(self, folder: Path, sent: dict[str, int]) -> None:
        self._log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        self.sent = sent
        self.run: TrackedRun | None = None
        self.changed = time.monotonic()

    def news(self) -> list[Point]:
        """What was written since, by step. Steps that a restarted lifetime repeats are no news."""
        self._log.Reload()
        found = [
            Point(tag, event.step, event.wall_time, event.value)
            for tag in self._log.Tags()["scalars"]
            for event in self._log.Scalars(tag)
            if event.step > self.sent.get(tag, -1)
        ]
        return sorted(found, key=lambda point: point.step)


class Tracker:
    """Sends the TensorBoard logs of a study to a service, from a thread of its own. What fails
    costs a warning, and is tried again.

    Args:
        service: where to.
        study: whose logs these are; it stores the ids of runs.
        folder: of the logs. Each folder in it with an event file is a run, named by its path.
        say: prints a line.
    """

    def __init__(
        self, service: Service, study: Study, folder: str, say: Callable[[str], None]
    ) -> None:
        self._service, self._study, self._folder, self._say = service, study, Path(folder), say
        self._followed: dict[str, _Followed] = {}
        self._failure: str | None = None
        self._failing: set[str] = set()  # folders that could not be sent the last time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(EVERY):
            self._try()

    def close(self) -> None:
        """Send what is left, and end the runs."""
        self._stop.set()
        self._thread.join()
        whole = self._try()
        for followed in self._followed.values():
            self._end(followed)
        if not whole:
            self._say(f"warning: not all was sent to {self._service.name}: run the command again")
        elif self._followed:
            count, where = len(self._followed), self._service.where(self._study.name)
            self._say(f"track:    {plural(count, 'run')} in {where}")

    def _try(self) -> bool:
        """Send what is new; False if something was in the way. It is said once."""
        try:
            self._send()
        except Exception as e:  # a network, a disk, a service
            if self._failure is None:
                self._failure = _reason(e)
                self._say(f"warning: --track {self._service.name}: {self._failure}")
            return False
        self._failure = None
        return True

    def _send(self) -> None:
        """Send what is new in every folder, last in those that failed before. A run that takes
        nothing keeps back no other one; after a second one it is the service, which is asked again
        later.

        Raises:
            Exception: what was in the way first.
        """
        if not self._folder.is_dir():
            return
        folders = {p.parent for p in self._folder.rglob("events.out.tfevents*")}
        names = {folder.relative_to(self._folder).as_posix(): folder for folder in folders}
        failures: list[Exception] = []
        for name in sorted(names, key=lambda name: (name in self._failing, name)):
            try:
                self._send_run(name, names[name])
                self._failing.discard(name)
            except Exception as e:
                self._failing.add(name)
                failures.append(e)
                if len(failures) > 1:
                    break
        if failures:
            raise failures[0]

    def _send_run(self, name: str, folder: Path) -> None:
        """Send what is new in a folder."""
        stored = self._study.tracked(self._service.name, name) or {}
        if name not in self._followed:
            self._followed[name] = _Followed(folder, dict(stored.get("sent", {})))
        followed = self._followed[name]
        points = followed.news()
        if points:
            self._log(name, followed, points, stored.get("id"))
        elif time.monotonic() - followed.changed > IDLE:
            self._end(followed)

    def _log(
        self, name: str, followed: _Followed, points: Sequence[Point], identity: str | None
    ) -> None:
        """Send scalars of one run, then store that they were sent."""
        if followed.run is None:
            config = self._study.stored or {}
            followed.run = self._service.open(self._study.name, name, identity, config)
            if identity is not None and followed.run.id != identity:  # that run is gone
                followed.sent = {}
                points = followed.news()
        followed.run.log(points)
        followed.sent |= {p.tag: p.step for p in points}  # in the order of steps
        followed.changed = time.monotonic()
        note = {"id": followed.run.id, "sent": followed.sent}
        self._study.store_tracked(self._service.name, name, note)

    def _end(self, followed: _Followed) -> None:
        if followed.run is not None:
            try:
                followed.run.end()
            except Exception as e:
                _log.warning("--track %s: a run was not ended: %s", self._service.name, _reason(e))
            followed.run = None
