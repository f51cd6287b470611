"""How fast StyleGAN2 draws faces, beside a plain implementation in the same run.

    python benchmarks/synthesis.py [--sizes 64 256] [--batches 1 32] [--json synthesis.json]

The plain one follows the equations of the paper: it loops over the batch, and modulates and
demodulates the weights of every convolution for every sample. Both have the same weights, and the
difference of their images is reported. They are timed in turn, so that the machine's moods fall on
both alike; the ratio is the median over the pairs.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from facezoo.models.latent_simclr import StyleGANGenerator


def main(options: argparse.Namespace) -> dict:
    device = torch.device(options.device)
    torch.manual_seed(0)
    results = []
    for size in options.sizes:
        generator = StyleGANGenerator(size, max_channels=options.max_channels).eval().to(device)
        generator = generator.to(memory_format=torch.channels_last)
        plain = Plain(generator)
        for batch in options.batches:
            result = {"size": size, "batch": batch, **compare(generator, plain, batch, options)}
            print(json.dumps(result))
            results.append(result)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "max_channels": options.max_channels,
        "repeats": options.repeats,
        "results": results,
    }


@torch.inference_mode()
def compare(generator, plain, batch, options) -> dict:
    """Images per second of both, the ratio of their times, and how far their images differ."""
    codes = torch.randn(batch, generator.num_codes, generator.style_dim, device=options.device)
    noise = generator.stored_noise()
    ways = {"facezoo": lambda: generator(codes, noise), "plain": lambda: plain(codes, noise)}
    seconds = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        images = {name: timed(way, seconds[name], options.device) for name, way in ways.items()}
        if repeat == 0:  # the first round warms up the allocator and the kernels' choice
            seconds = {name: [] for name in ways}
    ours, theirs = seconds["facezoo"], seconds["plain"]
    difference = (images["facezoo"] - images["plain"]).abs().max() / images["plain"].abs().max()
    return {
        "images_per_second": {
            k: round(batch / statistics.median(s), 3) for k, s in seconds.items()
        },
        "times_faster": round(
            statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2
        ),
        "relative_difference": float(difference),
    }


def timed(way, seconds: list[float], device: str) -> torch.Tensor:
    begin = time.perf_counter()
    images = way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - begin)
    return images


class Plain:
    """StyleGAN2 synthesis without any of the package's layers."""

    def __init__(self, generator: StyleGANGenerator) -> None:
        state = {name: t.contiguous() for name, t in generator.state_dict().items()}
        self.state, self.layers = state, generator.num_layers

    def __call__(self, codes, noise) -> torch.Tensor:
        return torch.cat([self.draw(row, noise) for row in codes])

    def draw(self, code, noise) -> torch.Tensor:
        """One image of one code (L, D)."""
        features, colours = self.state["input.input"], None
        for k in range(self.layers):
            name = "conv1" if k == 0 else f"convs.{k - 1}"
            weight = self.modulated(f"{name}.conv", code[k])
            if k % 2:
                features = F.conv_transpose2d(features, weight.transpose(0, 1), stride=2)
                features = self.filtered(F.pad(features, (1, 1, 1, 1)))
            else:
                features = F.conv2d(features, weight, padding=1)
            features = features + self.state[f"{name}.noise.weight"] * noise[k]
            features = features + self.state[f"{name}.activate.bias"][None, :, None, None]
            features = F.leaky_relu(features, 0.2) * math.sqrt(2)
            if k % 2 == 0:
                name = "to_rgb1" if k == 0 else f"to_rgbs.{k // 2 - 1}"
                weight = self.modulated(f"{name}.conv", code[k + 1], demodulate=False)
                seen = F.conv2d(features, weight) + self.state[f"{name}.bias"]
                colours = seen if colours is None else seen + self.enlarged(colours)
        return colours

    def modulated(self, name, style, demodulate=True) -> torch.Tensor:
        """Weights of one convolution for one style (D,), (out, in, k, k)."""
        stored, width = self.state[f"{name}.weight"][0], len(style)
        factors = self.state[f"{name}.modulation.weight"] @ style / math.sqrt(width)
        factors = factors + self.state[f"{name}.modulation.bias"]
        weight = stored / math.sqrt(stored[0].numel()) * factors[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        return weight

    def filtered(self, images) -> torch.Tensor:
        line = torch.tensor([1.0, 3.0, 3.0, 1.0], device=images.device)
        kernel = (line[:, None] * line / 16).expand(images.shape[1], 1, 4, 4)
        return F.conv2d(images, kernel, groups=images.shape[1])

    def enlarged(self, colours) -> torch.Tensor:
        _, channels, height, width = colours.shape
        stretched = colours.new_zeros(1, channels, 2 * height, 2 * width)
        stretched[:, :, ::2, ::2] = colours
        return self.filtered(F.pad(stretched, (2, 1, 2, 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], metavar="S")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], metavar="B")
    parser.add_argument("--max-channels", type=int, default=512, metavar="C")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    text = json.dumps(main(arguments), indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
