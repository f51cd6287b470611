"""Reference vectors that are not part of the project: the folder FACEZOO_GOLDEN names."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch


def folder():
    """The folder, or a skipped test."""
    place = os.environ.get("FACEZOO_GOLDEN")
    if not place:
        pytest.skip("FACEZOO_GOLDEN does not name the folder of reference vectors")
    return Path(place)


def arrays(name):
    return np.load(folder() / f"{name}.npz")


def variants(name):
    return json.loads((folder() / f"{name}_state_dict.json").read_text())["variants"]


def weights(entry):
    """The pseudo-random weights of a network, by the rule of the reference vectors."""
    tensors = {}
    for key, shape, _, kind in entry["tensors"]:
        random = _generator(entry["fill_prefix"] + key)
        if kind == "norm":
            values = random.uniform(0.5, 1.5, shape)
        elif kind == "bias":
            values = 0.02 * random.standard_normal(shape)
        else:
            scale = {"weight": 1, "weight2": 2}[kind]
            values = scale * random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        tensors[key] = torch.from_numpy(values.astype(np.float32))
    return tensors


def inputs(name):
    described = json.loads((folder() / f"{name}_state_dict.json").read_text())["inputs"]
    return {key: _input(entry) for key, entry in described.items()}


def relative_error(value, wanted):
    """Largest difference over the largest wanted value."""
    value, wanted = np.asarray(value, dtype=float), np.asarray(wanted, dtype=float)
    assert value.shape == wanted.shape
    return np.abs(value - wanted).max() / np.abs(wanted).max()


def _input(entry):
    random, kind = _generator(entry["seed"]), entry["dist"]
    if "normal" in kind:
        values = random.standard_normal(entry["shape"])
    else:
        values = random.uniform(-1, 1, entry["shape"])
    if kind.startswith("relu"):
        values = np.maximum(values, 0)
    return torch.from_numpy(values.astype(np.float32))


def _generator(seed):
    return np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode())))
