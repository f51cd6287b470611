"""Pseudo-random weights of the published layouts, by the rule of the reference vectors."""

import math
import zlib

import numpy as np
import torch
from golden_vectors import folder, variants

KINDS = {
    "weight": lambda draw, shape: draw.standard_normal(shape) / math.sqrt(np.prod(shape[1:])),
    "bias": lambda draw, shape: 0.02 * draw.standard_normal(shape),
    "norm": lambda draw, shape: draw.uniform(0.5, 1.5, shape),
    "prelu": lambda draw, shape: 0.25 + 0.02 * draw.standard_normal(shape),
    "unit": lambda draw, shape: draw.standard_normal(shape),
    "unit100": lambda draw, shape: 100 * draw.standard_normal(shape),
    "bias1": lambda draw, shape: 1 + 0.02 * draw.standard_normal(shape),
    "gain": lambda draw, shape: 0.1 * draw.standard_normal(shape),
}


def load_filled(module, family, variant):
    """Fill a module; its state dict must have the names and shapes of the variant."""
    folder()
    entry = variants(family)[variant]
    state = module.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {t[0]: t[1] for t in entry["tensors"]}
    tensors = {}
    for key, shape, _, kind in entry["tensors"]:
        if kind in ("keep", "zero"):
            tensors[key] = state[key]
            continue
        draw = np.random.Generator(
            np.random.PCG64(zlib.crc32((entry["fill_prefix"] + key).encode()))
        )
        tensors[key] = torch.from_numpy(KINDS[kind](draw, shape).astype(np.float32))
    module.load_state_dict(tensors)
    return module.eval()


def uniform_blocks(seed, shape, block):
    """Uniform in [-1, 1], every number repeated to a square of ``block`` pixels."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode())))
    small = draw.uniform(-1, 1, (*shape[:-2], shape[-2] // block, shape[-1] // block))
    return torch.from_numpy(small.repeat(block, -2).repeat(block, -1).astype(np.float32))


def statistics(value):
    """Mean, standard deviation and length, as the reference vectors store them."""
    value = value.double()
    return torch.stack([value.mean(), value.std(unbiased=False), value.norm()]).numpy()
