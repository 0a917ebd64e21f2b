"""The workers of a command, as its flags ask for them, and what is the same on all of them."""

from erl.errors import UserError
from erl.executors.jobs import Executor
from erl.executors.machines import ONE_CLUSTER, default_workers
from erl.experiments.flags import RunFlags
from erl.learners import cores
from erl.worlds.specification import LifetimeSpec, commit, versions


def local_workers(flags: RunFlags, spec: LifetimeSpec) -> int:
    """Workers on this machine: as the flags say, or as many as fit on its cores.

    Args:
        flags: how many.
        spec: a lifetime that they live, which may keep several cores busy.
    """
    return flags.workers or max(1, default_workers() // cores(spec))


def make_executor(flags: RunFlags, spec: LifetimeSpec) -> Executor:
    """The workers that the flags ask for; by default as many as fit on the cores of this machine.

    Args:
        flags: where and how.
        spec: a lifetime that they will live, which may keep several cores busy.

    Raises:
        UserError: there is no such cluster, or it cannot be used.
    """
    if flags.cluster is not None:
        try:
            from erl.executors.ray_cluster import RayExecutor
        except ImportError as e:
            raise UserError(f'--cluster needs Ray ({e}): pip install "ray[client]"') from None
        if spec.learner.config.get("actor_executor") == "ray":
            raise UserError(ONE_CLUSTER)
        n = cores(spec)
        return RayExecutor(flags.cluster, flags.workers, flags.max_retries, identify, n)
    from erl.executors.local import LocalExecutor

    return LocalExecutor(local_workers(flags, spec), flags.max_retries)


def identify() -> dict[str, str | None]:
    """What lifetimes are lived with on a machine: it must be the same on all of a cluster."""
    return {**versions(), "the commit": commit()}
