"""Jobs in processes of their own: results, errors, killed workers, and a parent that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from istd.runs.workers import WorkerDied, run_jobs

pytestmark = pytest.mark.slow

TIMEOUT = 120  # seconds; a guard against hanging


def work(kind, x):
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleeps":
        print(os.getpid(), flush=True)
        time.sleep(TIMEOUT)
    return 2 * x, torch.get_num_threads()


def test_a_killed_worker_costs_its_own_result_alone():
    jobs = {kind: (kind, 3) for kind in ("killed", "good")}
    found = dict(run_jobs(jobs, work, at_once=2, threads=1))
    assert found["good"]() == (6, 1)
    with pytest.raises(WorkerDied, match="killed by SIGKILL; a machine short of memory"):
        found["killed"]()


def test_workers_die_with_their_parent():
    code = "from tests.istd.test_workers import work; from istd.runs.workers import run_jobs\n"
    code += "if __name__ == '__main__': list(run_jobs({1: ('sleeps', 0)}, work, at_once=1, threads=1))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
        deadline = time.monotonic() + TIMEOUT / 2
        while _alive(worker):
            assert time.monotonic() < deadline, "the worker outlives its parent"
            time.sleep(0.05)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
