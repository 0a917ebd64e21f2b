"""Which machines and cores there are."""

import os
from contextlib import suppress
from pathlib import Path

from erl.errors import UserError

# A lifetime that held a CPU there while it waits for those of its workers could wait for ever.
ONE_CLUSTER = (
    "lifetimes on a cluster cannot have workers on a cluster: use --cluster or actor_executor ray, "
    "not both"
)


def check_cluster(cluster: str, flag: str = "--cluster") -> None:
    """Raise a UserError if this is no address of a cluster, by its form alone."""
    if cluster == "ray":
        return
    scheme, _, rest = cluster.partition(":")
    host, _, port = rest.removeprefix("//").rpartition(":")
    is_port = port.isdigit() and 0 < int(port) < 65536
    if scheme != "ray" or not host or "/" in host or not is_port:
        raise UserError(
            f"{flag} must be ray (a cluster on this machine), ray:HOST:PORT (one that this "
            f"machine belongs to) or ray://HOST:PORT (Ray's client), not {cluster!r}"
        )


def default_workers() -> int:
    """The cores that this process may use: those that it is bound to, no more than a container has
    processor time for, and no more than a job of SLURM, PBS or SGE has, which are not bound
    everywhere.
    """
    from joblib.externals.loky import cpu_count  # only here: help needs no library

    of_job = map(_number, ("SLURM_CPUS_PER_TASK", "NCPUS", "NSLOTS"))
    return min([cpu_count(), *filter(None, of_job)])


def memory_limits(root: Path = Path("/")) -> list[int]:
    """Bytes of memory that this process may have at most, by its SLURM job and by its control
    groups, of both versions. A container is such a group.

    Args:
        root: of the file system.
    """
    cores = _number("SLURM_CPUS_PER_TASK") or 1
    of_job = (_number("SLURM_MEM_PER_NODE"), _number("SLURM_MEM_PER_CPU") * cores)
    limits = [n << 20 for n in of_job if n]
    groups = root / "sys/fs/cgroup"
    with suppress(OSError):  # another system has none
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = groups / controllers / path.lstrip("/")
            # A container may see its own group at the top, and not its path.
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((folder / name).read_text(encoding="utf-8")))
    return limits


def _number(variable: str) -> int:
    """A whole number in the environment; 0 without one, and where SLURM sets no limit."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0
