"""Every test runs on one thread, finds the toy environments, and writes into a folder of its own."""

import os
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
ROOT = TESTS.parent

torch.set_num_threads(1)
# Worker processes and scripts under test import the toy environments too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
sys.path.insert(0, str(TESTS))

# The top-level test*.py are scripts for users. pytest must not collect them, whichever way it is called.
collect_ignore_glob = ["../test*.py"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
