"""Compare the time to load a checkpoint with building the same networks by timm.

    python benchmarks/loading.py [--json loading.json]

The baseline is ``timm.create_model`` and safetensors' ``load_file`` for every backbone of
``ipd-fer`` in float32. ``facezoo.load`` also checks the SHA-256 of its file, dequantizes, builds
heads and decoder, and arranges the memory. Peak memory is measured in a separate process, above
the memory after all imports.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import median

import timm
from measuring import in_turn, stamp, write
from safetensors.torch import load_file, save_file

import facezoo

ENCODERS = ("identity_encoder", "expression_encoder", "pose_encoder")
MB = 2**20


def save_backbones(folder: Path) -> dict[str, str]:
    """Write a float32 file per encoder; return backbone names by file."""
    model = facezoo.load("ipd-fer", device="cpu")
    named = {}
    for name in ENCODERS:
        key = "pose_backbone" if name == "pose_encoder" else "backbone"
        state = getattr(model, name).backbone.state_dict()
        save_file({k: t.contiguous() for k, t in state.items()}, folder / f"{name}.safetensors")
        named[f"{name}.safetensors"] = model.architecture[key]
    return named


def bare(folder: Path, named: dict[str, str]) -> list:
    """Load the backbones without facezoo."""
    networks = []
    for file, backbone in named.items():
        network = timm.create_model(backbone, num_classes=0).eval()
        network.load_state_dict(load_file(folder / file))
        networks.append(network)
    return networks


def peak(name: str) -> tuple[float, float]:
    """Measure the peak memory of loading in a separate process, and the parameters, in MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--inner", name], capture_output=True, text=True, check=True
    )
    above, parameters = map(float, done.stdout.split())
    return above, parameters


def inner(name: str) -> None:
    """Load in this process and print the memory beyond the imports."""
    for family in ("adv3d", "ipd_fer", "latent_simclr", "latentface"):
        import_module(f"facezoo.models.{family}")
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak after the imports
    model = facezoo.load(name, device="cpu")
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    print(memory("VmHWM") - before, parameters / MB)


def memory(kind: str) -> float:
    """Read a memory value of this process from Linux, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(kind))
    return int(line.split()[1]) / 1024


def main(repeats: int) -> dict:
    """Time both, and every other checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        named = save_backbones(folder)
        ways = {name: lambda n=name: facezoo.load(n, device="cpu") for name in names()}
        timed = in_turn({"bare": lambda: bare(folder, named), **ways}, repeats)
    rows = []
    for name, one in timed.items():
        own = name != "bare"
        above, parameters = peak(name) if own else (None, None)
        rows.append(
            {
                "loaded": f"`{name}`" if own else "backbones of `ipd-fer` by timm and load_file",
                "ms": 1000 * median(one.seconds),
                "loads/s, slowest to fastest": one.spread(),
                "over bare": one.over(timed["bare"]) if name.startswith("ipd-fer") else "",
                "parameters, MB": parameters if own else "",
                "peak memory, MB": above if own else "",
            }
        )
    command = shlex.join(["python", "benchmarks/loading.py", *sys.argv[1:]])
    return {**stamp(command), "tables": {"loading": rows}}


def names() -> list[str]:
    return facezoo.list_models(pretrained=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=7, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        inner(options.inner)
    else:
        write(main(options.repeats), options.json)
