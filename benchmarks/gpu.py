"""What a GPU has to show, in at most five minutes: the tests that can run there, and the speed of
TD3's cohorts and of ERL-Re2's updates beside the CPU.

    python benchmarks/gpu.py                    # on a machine with a GPU
    python benchmarks/gpu.py --device cpu       # a rehearsal

Prints each part with its time, and goes on after one that fails; the exit code says whether any
did.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from erl.cli import exit_after

ROOT = Path(__file__).parent.parent
SECONDS = 285


def parts(device: str) -> list[tuple[str, list[str]]]:
    """Name and command of each, the most important ones first."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    speed = [sys.executable, "benchmarks/off_policy.py", "--rounds", "1", "--seconds", "3"]
    nets = ["--nets", "256x256x256", "--device", device]
    return [
        ("equality of devices", [*tests, "tests/learners/test_off_policy_device.py"]),
        ("TD3", [*speed, *nets, "--algorithms", "TD3", "--sizes", "1,21"]),
        ("networks and graphs", [*tests, "tests/networks/test_off_policy.py", "-k", "captured"]),
        ("ERL-Re2", [sys.executable, "benchmarks/erl_re2.py", "--device", device, "--rounds", "2"]),
        ("SAC", [*speed, *nets, "--algorithms", "SAC", "--sizes", "21"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    import torch

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU, a rehearsal"
    print(f"{name}; PyTorch {torch.__version__}", flush=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "ERL_TEST_DEVICE": arguments.device}
    end, failed = time.monotonic() + SECONDS, []
    for title, command in parts(arguments.device):
        begun = time.monotonic()
        print(f"\n== {title}", flush=True)
        try:
            left = max(1.0, end - begun)
            code = subprocess.run(command, cwd=ROOT, env=env, timeout=left).returncode
        except subprocess.TimeoutExpired:
            code = 1
            print(f"left after {SECONDS} s in all")
        # 5: no test of these names.
        if code not in (0, 5):
            failed.append(title)
        print(f"-- {title}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"\nfailed: {', '.join(failed) or 'nothing'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    exit_after(main)
