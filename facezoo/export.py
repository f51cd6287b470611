"""Stages of a checkpoint in other formats: ONNX, programs of ``torch.export``, and timm.

A stage maps prepared crops to features, probabilities or images, or aligned meshes to codes or
meshes. ``facezoo.json`` describes the preparation. The face detector is exported apart from them;
alignment is not exported.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.errors import UnsupportedError, explained_import
from facezoo.hub.card import card_named
from facezoo.hub.tensors import digest_of
from facezoo.models.base import FaceModel
from facezoo.models.capabilities import STAGES
from facezoo.models.identity_removal import NAME
from facezoo.models.mesh_base import MeshModel
from facezoo.preprocess.bundled import load_detector
from facezoo.preprocess.detector import DETECTOR, FaceDetector, cells_of, decode
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.pipeline import DEFAULT
from facezoo.results import Result, flatten_rows
from facezoo.runtimes import open_onnx, write_onnx
from facezoo.version import __version__

FORMATS = ("onnx", "torch-export", "timm")
TOLERANCE = 1e-4
"""Largest accepted difference between an exported stage and the model, in any number."""
DESCRIPTION = "facezoo.json"
INPUT = "images"
"""Name of the input, also for meshes."""
VERSIONS = {"facezoo": __version__, "torch": str(torch.__version__)}

Run = Callable[[Tensor], Tensor]
Model = FaceModel | MeshModel

_MESHES = {"reconstruct": 0, "neutralize": 1}
"""Index of a mesh in the output of a ``MeshModel``."""


class Stage(nn.Module):
    """One stage of a model as a module: prepared crops or meshes in, one tensor out."""

    def __init__(self, model: Model, capability: str) -> None:
        super().__init__()
        self.model = model
        self.capability = capability

    def forward(self, images: Tensor) -> Tensor:
        """Map crops (B, 3, S, S) or points (B, N, 3) in millimeters to one tensor.

        Crops give features (B, D), probabilities (B, K) or normalized crops (B, 3, S, S); points
        give codes (B, D) or meshes (B, N, 3).
        """
        result: Any
        if isinstance(self.model, FaceModel):
            result = self.model.stage(self.capability)(images)
            result = flatten_rows(result) if isinstance(result, Result) else result
            return result.softmax(-1) if self.capability == "predict_expression" else result
        if self.capability in _MESHES:
            result = self.model(images)[_MESHES[self.capability]]
        else:
            result = getattr(self.model, STAGES[self.capability])(images)
        return result


def stage_names(model: Model) -> dict[str, str]:
    """Return the capabilities that can be exported, by the name of the stage."""
    unexported = getattr(model, "unexported", ())
    names = [name for name in model.capabilities() if name in STAGES and name not in unexported]
    short = (name.replace("predict_expression", "probabilities") for name in names)
    return {key.removeprefix("encode_"): name for key, name in zip(short, names, strict=True)}


def export(
    model: Model, out: str | Path, kind: str = "onnx", stages: str | Sequence[str] | None = None
) -> list[Path]:
    """Write stages of a model in another format, and compare each with the model.

    Files appear when all stages have been compared. A folder may hold several formats and stages
    of one checkpoint; ``facezoo.json`` describes them all.

    Args:
        model: the model to export; it is copied to the CPU in float32 and not changed.
        out: a folder. ``onnx`` writes ``<stage>.onnx``, ``torch-export`` writes ``<stage>.pt2``,
            ``timm`` writes a folder ``<stage>`` for ``timm.create_model("local-dir:...")``. All
            write ``facezoo.json``, which describes the preparation of crops.
        kind: one of ``FORMATS``.
        stages: one or several keys of ``stage_names``; None for all that the format supports.

    Returns:
        The files, or folders, in the order of the stages.

    Raises:
        ImportError: if the extra ``[export]`` is missing.
        TypeError: if ``model`` is not a model.
        UnsupportedError: if the model or the format has no such stage.
        ValueError: if the format is unknown, or ``out`` holds another checkpoint.
        RuntimeError: if an exported stage differs from the model by more than ``TOLERANCE``.

    Examples:
        >>> from facezoo.export import export
        >>> [path.name for path in export(model, tmp / "onnx", stages=["expression"])]
        ['expression.onnx']
    """
    if kind not in FORMATS:
        raise ValueError(f"unknown format {kind!r}; expected one of {', '.join(FORMATS)}")
    if not isinstance(model, FaceModel | MeshModel):
        raise TypeError(
            f"model must be the result of facezoo.load, got {type(model).__name__}; "
            "load the model first"
        )
    plain = deepcopy(model).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    plain = plain.eval().requires_grad_(False)
    if isinstance(plain, FaceModel):
        plain.set_runtime("torch")
    requested = _requested(plain, kind, stages)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    description = _describe(plain)
    formats = _formats_in(folder, description)
    inputs = _inputs(plain)
    entries = formats.get(kind, {}).get("stages", {})
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        files = []
        for name, capability in requested.items():
            stage = Stage(plain, capability)
            # torch and timm load the file on the default device.
            with torch.no_grad(), torch.device("cpu"):
                path, run = _WRITERS[kind](stage, name, Path(scratch), inputs[:2])
                # Three inputs, since two were traced.
                entries[name] = {"file": path.name, **_compare(stage, run, inputs, name)}
            files.append(path)
        for path in files:
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
        paths = [path.replace(folder / path.name) for path in files]
    formats[kind] = {"stages": entries, "versions": VERSIONS}
    text = json.dumps({**description, "formats": formats}, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return paths


class DetectorStage(nn.Module):
    """The face detector with its decoding, for images of any size."""

    def __init__(self, detector: FaceDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to scores (B, A), boxes (B, A, 4), landmarks (B, A, 5, 2)."""
        centers, bases = cells_of(images.shape[-2], images.shape[-1], images.device)
        candidates = decode(self.detector.raw(images), centers, bases)
        return candidates.logits.sigmoid(), candidates.boxes, candidates.landmarks


def export_detector(out: str | Path) -> list[Path]:
    """Write the bundled face detector as ONNX, and compare it with the model.

    Boxes and landmarks are decoded to pixels of the input; NMS is left to the caller.

    Args:
        out: a folder for ``detections.onnx`` and ``facezoo.json``, which describes inputs, outputs
            and thresholds.

    Raises:
        ImportError: if the extra ``[export]`` is missing.
        ValueError: if ``out`` holds another checkpoint.
        RuntimeError: if the result differs from the model by more than ``TOLERANCE``, as a share of
            the side of the image.
    """
    _check_onnx()
    import onnxruntime

    detector, card, config = load_detector(torch.device("cpu")), card_named(DETECTOR), DEFAULT
    stage = DetectorStage(deepcopy(detector).to(memory_format=torch.contiguous_format)).eval()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["scores", "boxes", "landmarks"]
    description = {
        "checkpoint": card.name,
        "weights_sha256": card.weights.sha256,
        "licenses": asdict(card.licenses),
        "input": {"name": INPUT, "colors": "RGB", "range": [-1, 1], "padding": 0, "sides": 64},
        "outputs": names,
        "score_threshold": config.score_threshold,
        "nms_iou": config.nms_iou,
    }
    formats = _formats_in(folder, description)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 3, 192, 320, generator=generator, dtype=torch.float32, device="cpu")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        path = Path(scratch) / "detections.onnx"
        write_onnx(stage, path, inputs[:2], INPUT, names, (0, 2, 3), FaceDetector.multiple)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        images = inputs[..., :128, :256].contiguous()  # of another size than those traced
        with torch.inference_mode():
            expected = stage(images)
        results = session.run(None, {INPUT: images.numpy()})
        difference = max(
            float(np.abs(result - value.numpy()).max()) / (1 if name == "scores" else 256)
            for name, result, value in zip(names, results, expected, strict=True)
        )
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the exported detector differs from the model by {difference:.2e} of the side of "
                f"the image, more than {TOLERANCE}"
            )
        path = path.replace(folder / path.name)
    entry = {"file": path.name, "largest_difference": difference}
    formats["onnx"] = {"stages": {"detections": entry}, "versions": VERSIONS}
    text = json.dumps({**description, "formats": formats}, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return [path]


def _requested(model: Model, kind: str, stages: str | Sequence[str] | None) -> dict[str, str]:
    names = stage_names(model)
    if isinstance(model, MeshModel) and kind != "torch-export":
        raise UnsupportedError(
            f"{model.model_name} cannot be exported as {kind}: its float32 numbers differ by more "
            f"than {TOLERANCE} from one runtime to another; export it as torch-export"
        )
    if kind == "timm":
        able = model.timm_stages if isinstance(model, FaceModel) else ()
        # A timm model ends before identity is removed.
        excluded = "expression" if hasattr(model, NAME) else ""
        names = {name: names[name] for name in able if name in names and name != excluded}
    if not names:
        raise UnsupportedError(f"{model.model_name} has no stage that {kind} supports")
    stages = [stages] if isinstance(stages, str) else stages
    if unknown := [name for name in stages or () if name not in names]:
        raise UnsupportedError(
            f"{model.model_name} has no stage {unknown[0]!r} for {kind}; it has {', '.join(names)}"
        )
    return {name: names[name] for name in stages} if stages else names


def _inputs(model: Model) -> Tensor:
    """Return three random crops, or three meshes near the template."""
    generator = torch.Generator().manual_seed(0)
    meshes = isinstance(model, MeshModel)
    shape = model.template_mm.shape if meshes else model.input_shape
    noise = torch.randn(3, *shape, generator=generator, dtype=torch.float32, device="cpu")
    return model.template_mm + noise if meshes else noise


def _compare(stage: Stage, run: Run, inputs: Tensor, name: str) -> dict[str, Any]:
    with torch.inference_mode():
        expected = stage(inputs)
    result = run(inputs)
    difference = float("inf")
    if result.shape == expected.shape:
        difference = float((result - expected).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"exported {name} {tuple(result.shape)} differs from the model "
            f"{tuple(expected.shape)} by {difference:.2e}, more than {TOLERANCE}"
        )
    return {"shape": list(expected.shape[1:]), "largest_difference": difference}


def _describe(model: Model) -> dict[str, Any]:
    """Describe a model and its input, for all formats."""
    common = {
        "checkpoint": model.card.name if model.card else model.model_name,
        "weights_sha256": model.card.weights.sha256 if model.card else None,
        # The present tensors, which may differ from those of the checkpoint.
        "tensors_sha256": digest_of(model),
        "licenses": asdict(model.card.licenses) if model.card else None,
        "labels": list(model.labels),
    }
    if isinstance(model, MeshModel):
        shape = list(model.template_um.shape)
        frame = {"name": INPUT, "shape": shape, "units": "mm", "frame": "template"}
        return {**common, "input": frame}
    return {
        **common,
        "input": {"name": INPUT, "shape": list(model.input_shape), "colors": "RGB"},
        "preprocessing": asdict(model.preprocessing),
        "fingerprint": fingerprint(model.preprocessing),
    }


def _formats_in(folder: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Read the formats of this checkpoint that a folder holds.

    Raises:
        ValueError: if it holds another checkpoint.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(description))
    differences = [key for key in now if before.get(key) != now[key]]
    if differences or "formats" not in before:
        raise ValueError(
            f"{folder} holds an export of {before.get('checkpoint')!r} that differs from "
            f"{now['checkpoint']!r} in {', '.join(differences) or 'its layout'}; choose another "
            "folder"
        )
    return before["formats"]


def _write_onnx(stage: Stage, name: str, folder: Path, inputs: Tensor) -> tuple[Path, Run]:
    _check_onnx()
    path = folder / f"{name}.onnx"
    write_onnx(stage, path, inputs, INPUT, [name], (0,))
    return path, open_onnx(path, "onnxruntime")


def _check_onnx() -> None:
    with explained_import("exporting ONNX needs an extra: pip install 'facezoo[export]'"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def _write_program(stage: Stage, name: str, folder: Path, inputs: Tensor) -> tuple[Path, Run]:
    path = folder / f"{name}.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(stage, (inputs,), dynamic_shapes=shapes), path)
    run: Run = torch.export.load(path).module()
    return path, run


# Entries of timm about its own weights of a backbone.
_OTHER_WEIGHTS = {
    *("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
    *("test_input_size", "test_crop_pct"),
}


def _write_timm(stage: Stage, name: str, folder: Path, inputs: Tensor) -> tuple[Path, Run]:
    import timm
    from timm.models import save_for_hf

    path, model = folder / name, stage.model
    assert isinstance(model, FaceModel)
    network, preprocessing = model.as_timm(name), model.preprocessing
    features = [f"{name}_{d}" for d in range(network(inputs).shape[1])]
    settings = {
        "input_size": list(model.input_shape),
        "fixed_input_size": False,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    labels = list(model.labels) if name == "probabilities" else features
    config = {"label_names": labels, "pretrained_cfg": settings}
    save_for_hf(network, str(path), model_config=config, safe_serialization=True)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    # Transformers reads the number of classes at the top level, and a second one confuses it.
    config.get("model_args", {}).pop("num_classes", None)
    entries = config["pretrained_cfg"]
    config["pretrained_cfg"] = {k: v for k, v in entries.items() if k not in _OTHER_WEIGHTS}
    if model.card is not None:
        config["pretrained_cfg"]["license"] = model.card.licenses.weights
    (path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    loaded = timm.create_model(f"local-dir:{path}", pretrained=True).float().eval()

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        result: Tensor = loaded(crops)
        return result.softmax(-1) if name == "probabilities" else result

    return path, run


_WRITERS: dict[str, Callable[[Stage, str, Path, Tensor], tuple[Path, Run]]] = {
    "onnx": _write_onnx,
    "torch-export": _write_program,
    "timm": _write_timm,
}
