"""Measure how fast StyleGAN2 draws faces, compared with a plain implementation.

    python benchmarks/synthesis.py [--sizes 64 256] [--checkpoint latent-simclr] [--json FILE]

The plain implementation follows the equations of the paper: it loops over the batch, and modulates
and demodulates the weights of every convolution for every sample. Both have the same weights, are
timed in turn, and the difference of their images is reported. With a checkpoint, inversion is
timed too, in batches and one image at a time.
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import in_turn, stamp, write

from facezoo.models.latent_simclr import StyleGANGenerator, StyleGANInverter


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
    if options.checkpoint:
        results += of_checkpoint(options, device)
    rows = [
        {
            "what": r.get("what", f"synthesis, {options.max_channels} channels, random weights"),
            "image": f"{r['size']} x {r['size']}",
            "batch": r["batch"],
            **{f"{name}, images/s": value for name, value in r["images_per_second"].items()},
            "times faster": r["times_faster"],
            "relative difference": f"{r['relative_difference']:.1e}",
        }
        for r in results
    ]
    return {
        **stamp(shlex.join(["python", "benchmarks/synthesis.py", *sys.argv[1:]]), options.device),
        "max_channels": options.max_channels,
        "repeats": options.repeats,
        "tables": {"synthesis": rows},
    }


@torch.inference_mode()
def compare(generator, plain, batch, options) -> dict:
    """Compare speed and images of both implementations."""
    codes = torch.randn(batch, generator.num_codes, generator.style_dim, device=options.device)
    noise = generator.stored_noise()
    ways = {"facezoo": lambda: generator(codes, noise), "plain": lambda: plain(codes, noise)}
    return outcome(ways, batch, options)


def of_checkpoint(options, device) -> list[dict]:
    """Time synthesis and inversion of a trained generator."""
    inverter = StyleGANInverter.from_pretrained(options.checkpoint).to(device)
    inverter = inverter.to(memory_format=torch.channels_last)
    generator, plain = inverter.generator, Plain(inverter.generator)
    results = []
    for batch in options.batches:
        made = compare(generator, plain, batch, options)
        back = invert(inverter, plain, batch, options)
        for what, result in (("synthesis", made), ("inversion and synthesis", back)):
            said = {"what": f"{what}, {options.checkpoint}", "size": generator.size}
            results.append({**said, "batch": batch, **result})
            print(json.dumps(results[-1]))
    return results


@torch.inference_mode()
def invert(inverter, plain, batch, options) -> dict:
    """Time inversion and synthesis, in batches and one image at a time."""
    side = inverter.generator.size
    images = torch.rand(batch, 3, side, side, device=options.device) * 2 - 1
    noise = inverter.generator.stored_noise()

    def ours() -> torch.Tensor:
        found = inverter.encode(images)
        return inverter.synthesize(found.w_plus, found.feature, noise)

    def one_by_one() -> torch.Tensor:
        found = [inverter.encode(image[None]) for image in images]
        drawn = [plain.draw(f.w_plus[0], noise, {inverter.layer: f.feature}) for f in found]
        return torch.cat(drawn)

    return outcome({"facezoo": ours, "plain": one_by_one}, batch, options)


def outcome(ways, batch, options) -> dict:
    timed = in_turn(ways, options.repeats, options.device)
    ours, theirs = ways["facezoo"](), ways["plain"]()
    return {
        "images_per_second": {name: round(timed[name].per_second(batch), 3) for name in ways},
        "times_faster": round(timed["plain"].over(timed["facezoo"]), 2),
        "relative_difference": float((ours - theirs).abs().max() / theirs.abs().max()),
    }


class Plain:
    """StyleGAN2 synthesis without the layers of facezoo."""

    def __init__(self, generator: StyleGANGenerator) -> None:
        state = {name: t.contiguous() for name, t in generator.state_dict().items()}
        self.state, self.layers = state, generator.num_layers

    def __call__(self, codes, noise) -> torch.Tensor:
        return torch.cat([self.draw(row, noise) for row in codes])

    def draw(self, code, noise, swapped=None) -> torch.Tensor:
        """Draw one image of one code (L, D), with replaced features of some layers."""
        features, colors = self.state["input.input"], None
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
            features = (swapped or {}).get(k + 1, features)
            if k % 2 == 0:
                name = "to_rgb1" if k == 0 else f"to_rgbs.{k // 2 - 1}"
                weight = self.modulated(f"{name}.conv", code[k + 1], demodulate=False)
                seen = F.conv2d(features, weight) + self.state[f"{name}.bias"]
                colors = seen if colors is None else seen + self.enlarged(colors)
        return colors

    def modulated(self, name, style, demodulate=True) -> torch.Tensor:
        """Modulate the weights of one convolution by a style (D,), (out, in, k, k)."""
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

    def enlarged(self, colors) -> torch.Tensor:
        _, channels, height, width = colors.shape
        stretched = colors.new_zeros(1, channels, 2 * height, 2 * width)
        stretched[:, :, ::2, ::2] = colors
        return self.filtered(F.pad(stretched, (2, 1, 2, 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], metavar="S")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], metavar="B")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="time a checkpoint of latent-simclr too"
    )
    parser.add_argument("--max-channels", type=int, default=512, metavar="C")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the numbers")
    arguments = parser.parse_args()
    write(main(arguments), arguments.json)
