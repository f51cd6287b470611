"""Listing, describing, downloading and loading by name, on a package with a tiny family."""

import ast
import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import OtherFace, TinyFace, same_tensors, use_tiny_families
from torch import nn

import facezoo
from facezoo.errors import LicenseError, UnknownNameError, UnsupportedError, WeightsMismatchError
from facezoo.hub.families import FAMILIES

CPU = {"device": "cpu"}
REAL_FAMILIES = dict(FAMILIES)
CHECKPOINTS = Path(facezoo.__file__).parent / "checkpoints"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    return use_tiny_families(monkeypatch, tmp_path / "checkpoints")


def test_models_and_checkpoints_are_listed_by_pattern_and_detectors_are_not():
    assert facezoo.list_models() == ["other-face", "tiny-face"]
    assert facezoo.list_models("tiny*") == ["tiny-face"]
    assert facezoo.list_models(pretrained=True) == ["tiny-face.first", "tiny-face.wide"]
    assert facezoo.list_models("*wide", pretrained=True) == ["tiny-face.wide"]


def test_info_gives_the_card_of_a_checkpoint_or_of_the_default_one():
    assert facezoo.info("tiny-face").tag == "first"
    assert facezoo.info("tiny-face.wide").architecture == {"width": 9}
    assert facezoo.info("face-detector").tag == "v1"
    with pytest.raises(UnknownNameError, match="did you mean tiny-face"):
        facezoo.info("tiny-fac")
    with pytest.raises(UnknownNameError, match="pretrained=False"):
        facezoo.info("other-face")


def test_info_gives_the_card_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facezoo.load("tiny-face.wide").save_pretrained("mine")
    for name in ("mine", Path("mine")):
        assert facezoo.info(name).architecture["width"] == 9


def test_download_returns_the_verified_file_of_each_name(folder):
    files = facezoo.download(["tiny-face", "tiny-face.wide"])
    assert files["tiny-face"] == folder / "tiny-face.first.safetensors"
    assert files["tiny-face.wide"] == folder / "tiny-face.wide.safetensors"
    assert list(facezoo.download("face-detector.v1")) == ["face-detector.v1"]
    with pytest.raises(UnknownNameError):
        facezoo.download(["tiny-face", "nothing"])


def test_a_loaded_model_is_in_eval_mode_and_follows_its_card():
    model = facezoo.load("tiny-face", **CPU)
    assert isinstance(model, TinyFace)
    assert not model.training
    assert model.labels == ("happy", "sad")
    assert model.preprocessing.std == (0.25, 0.5, 0.5)
    assert model.card is facezoo.info("tiny-face")
    assert model.head.weight.dtype == torch.float32
    assert facezoo.load("tiny-face.wide", **CPU).architecture["width"] == 9


def test_dtype_and_device_are_chosen():
    assert facezoo.load("tiny-face", dtype="bfloat16", **CPU).head.weight.dtype == torch.bfloat16
    assert facezoo.load("tiny-face", dtype=torch.float64, **CPU).head.bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "there is no device 'cuda': torch sees 0 CUDA devices"),
        (torch.device("cuda:1"), "there is no device 'cuda:1': torch sees 0 CUDA devices"),
        ("gpu", "unknown device 'gpu'; expected 'cpu', 'cuda'"),
        ("meta", "models do not run on device 'meta'; expected 'cpu', 'cuda'"),
    ],
)
def test_an_absent_or_unknown_device_is_an_error(device, message):
    with pytest.raises(RuntimeError, match=message):
        facezoo.load("tiny-face", device=device)


@pytest.mark.parametrize("dtype", ["int8", torch.bool, "float8_e4m3fn", "half-ish"])
def test_a_dtype_that_models_cannot_run_in_is_rejected(dtype):
    with pytest.raises(ValueError, match=r"unknown dtype .* expected"):
        facezoo.load("tiny-face", dtype=dtype, **CPU)


def test_random_weights_have_the_architecture_of_the_checkpoint_and_no_card():
    model = facezoo.load("tiny-face.wide", pretrained=False, **CPU)
    assert model.architecture["width"] == 9
    assert model.card is None
    assert not same_tensors(model, facezoo.load("tiny-face.wide", **CPU))
    other = facezoo.load("other-face", pretrained=False, width=5, **CPU)
    assert isinstance(other, OtherFace)
    assert other.architecture == {"width": 5, "num_classes": 2}


def test_licenses_that_are_not_in_the_list_are_an_error_that_names_them():
    allowed = ["apache-2.0", "research-only", "unknown"]
    assert facezoo.load("tiny-face", licenses=allowed, **CPU).card.name == "tiny-face.first"
    with pytest.raises(LicenseError, match=r"\(weights: research-only; data: unknown\)"):
        facezoo.load("tiny-face", licenses=("Apache-2.0", "MIT"), **CPU)
    with pytest.raises(LicenseError, match="none at all"):
        facezoo.load("tiny-face", licenses=(), **CPU)
    with pytest.raises(TypeError, match=r"\('MIT',\)"):
        facezoo.load("tiny-face", licenses="MIT", **CPU)
    facezoo.load("tiny-face", pretrained=False, licenses=("Apache-2.0",), **CPU)


def test_other_classes_are_an_error_that_names_reset_classifier():
    with pytest.raises(
        WeightsMismatchError, match=r"num_classes=5.*reset_classifier\(5\)"
    ) as error:
        facezoo.load("tiny-face", num_classes=5, **CPU)
    assert "head.weight (2, 4) for (5, 4)" in str(error.value)
    model = facezoo.load("tiny-face", num_classes=5, pretrained=False, **CPU)
    assert len(model.labels) == 5


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        facezoo.load("tiny-face", depth=3, **CPU)


def test_networks_are_compiled_only_on_demand(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Linear, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(TinyFace, "networks", ("head", "absent"))
    facezoo.load("tiny-face", **CPU)
    assert compiled == []
    model = facezoo.load("tiny-face", compile=True, **CPU)
    assert compiled == [model.head]


def test_a_model_without_networks_cannot_be_compiled():
    with pytest.raises(UnsupportedError, match="compile=False"):
        facezoo.load("tiny-face", compile=True, **CPU)


def test_loading_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    facezoo.load("tiny-face", **CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    facezoo.load("tiny-face", pretrained=False, **CPU)
    assert not torch.equal(torch.random.get_rng_state(), before)


def test_models_can_be_copied_and_pickled_for_workers():
    model = facezoo.load("tiny-face", **CPU)
    assert same_tensors(copy.deepcopy(model), model)
    assert pickle.loads(pickle.dumps(model)).card == model.card
    assert replace(model.card, tag="x").name == "tiny-face.x"


TYPED = """
import facezoo
from facezoo.models.ipd_fer import IPDFER
from facezoo.models.adv3d import Adv3D

a: IPDFER = facezoo.load("ipd-fer")
b: IPDFER = facezoo.load("ipd-fer.ferplus-lfw", device="cpu")
c: Adv3D = facezoo.load("adv3d.ict-neutral")
d: Adv3D = facezoo.load("ipd-fer.ferplus-lfw")
"""


def test_an_editor_finds_the_class_of_every_checkpoint_in_the_overloads_of_load():
    source = ast.parse(Path(facezoo.__file__).read_text())
    loads = [node for node in ast.walk(source) if getattr(node, "name", None) == "load"]
    overloads = {}
    for function in loads[:-2]:
        names = ast.literal_eval(function.args.args[0].annotation.slice)
        overloads |= dict.fromkeys(names, ast.unparse(function.returns))
    names = [*REAL_FAMILIES, *(path.stem for path in CHECKPOINTS.glob("*.json"))]
    families = {name: name.split(".")[0] for name in names}
    assert overloads == {n: REAL_FAMILIES[f][1] for n, f in families.items() if f in REAL_FAMILIES}


@pytest.mark.slow
def test_mypy_infers_the_class_of_a_checkpoint(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(TYPED)
    root = Path(facezoo.__file__).parent.parent
    words = f"--config-file {root}/pyproject.toml --cache-dir {root}/.mypy_cache"
    words += " --follow-imports silent user.py"
    command = [sys.executable, "-m", "mypy", *words.split()]
    environment = {**os.environ, "MYPYPATH": str(root)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if "error:" in line]
    assert len(lines) == 1, run.stdout + run.stderr
    assert lines[0].startswith("user.py:9:")
    assert 'has type "IPDFER", variable has type "Adv3D"' in lines[0]
