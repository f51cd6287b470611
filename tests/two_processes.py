"""Commands in two processes that work together."""

import os
import subprocess
import sys


def launch(*words):
    """Run in two processes, as ``accelerate launch`` starts them, with one thread each.

    Returns:
        The finished process, with what it printed.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    # More threads add in another order than the one that conftest.py leaves the tests.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, *meeting, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=alone)
