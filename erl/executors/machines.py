"""Which machines and cores there are."""

import os

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
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
