"""What every test starts from: fixed seeds, and no way out to the network."""

import random
import signal
import socket

import numpy as np
import pytest
import torch

from facezoo import errors

# The networks of the tests are so small that a second thread costs more than it brings.
torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and tests of Ctrl-C would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (for code under test that draws from the global generator)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_warned_of_yet():
    errors._WARNED.clear()


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    """Connections leave this machine only in tests that are marked ``hub``."""
    if request.node.get_closest_marker("hub"):
        return
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL:
            raise ConnectionRefusedError(
                f"a test connects to {address}; use a server on 127.0.0.1 or mark the test hub"
            )
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
