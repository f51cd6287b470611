"""Checkpoints in formats of others: ONNX, programs of ``torch.export``, and timm.

What is exported is a stage: from prepared crops, normalised as ``facezoo.json`` says, to features,
probabilities or pictures; or from aligned meshes to codes or meshes. Finding and aligning stays
with this package.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.errors import UnsupportedError
from facezoo.hub.tensors import digest_of
from facezoo.models.base import FaceModel
from facezoo.models.capabilities import STAGES
from facezoo.models.identity_removal import NAME
from facezoo.models.mesh_base import MeshModel
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.results import Result, flatten_rows
from facezoo.version import __version__

FORMATS = ("onnx", "torch-export", "timm")
TOLERANCE = 1e-4
"""How far an exported stage may be from the model, in any number it gives."""
DESCRIPTION = "facezoo.json"
OPSET = 18
_VERSIONS = {"facezoo": __version__, "torch": str(torch.__version__)}
INPUT = "images"
"""Name of the input; of a model of meshes, too."""

Run = Callable[[Tensor], Tensor]
Model = FaceModel | MeshModel


class Stage(nn.Module):
    """One stage of a model as a module of its own: prepared crops or meshes in, one tensor out."""

    def __init__(self, model: Model, capability: str) -> None:
        super().__init__()
        self.model = model
        self.capability = capability

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D), probabilities (B, K) or normalised crops of crops (B, 3, S, S).

        Of a model of meshes: codes (B, D) or meshes (B, N, 3) of points (B, N, 3), millimetres.
        """
        if self.capability in _MESHES and isinstance(self.model, MeshModel):
            meshes: Tensor = self.model(images)[_MESHES[self.capability]]
            return meshes
        if isinstance(self.model, MeshModel):
            codes: Tensor = getattr(self.model, STAGES[self.capability])(images)
            return codes
        result = self.model.stage(self.capability)(images)
        if isinstance(result, Result):
            result = flatten_rows(result)
        return result.softmax(-1) if self.capability == "predict_expression" else result


_MESHES = {"reconstruct": 0, "neutralize": 1}
"""Place of a mesh in what a ``MeshModel`` gives: as it is, and without its expression."""


def stage_names(model: Model) -> dict[str, str]:
    """What can be exported of a model: capabilities by the name of the stage."""
    unexported = model.unexported if isinstance(model, FaceModel) else ()
    able = [name for name in model.capabilities() if name in STAGES and name not in unexported]
    names = {name: name.removeprefix("encode_") for name in able}
    return {names[name].replace("predict_expression", "probabilities"): name for name in names}


def export(
    model: Model,
    out: str | Path,
    kind: str = "onnx",
    stages: Sequence[str] | None = None,
) -> list[Path]:
    """Write stages of a model in another format, each compared with the model before it counts.

    Files appear under their names when all stages have been compared. A folder may hold several
    formats and stages of one checkpoint; ``facezoo.json`` describes them all.

    Args:
        model: what to export; it is copied to the CPU in float32 and not changed.
        out: a folder. ``onnx`` gives ``<stage>.onnx``, ``torch-export`` gives ``<stage>.pt2``,
            ``timm`` gives a folder ``<stage>`` for ``timm.create_model("local-dir:...")``; beside
            them ``facezoo.json`` says how crops are prepared.
        kind: one of ``FORMATS``.
        stages: keys of ``stage_names``; None for all that the format can hold.

    Returns:
        The files, or folders, in the order of the stages.

    Raises:
        ImportError: if the extra ``[export]`` is missing.
        TypeError: if ``model`` is none, such as the name of one.
        UnsupportedError: if the model has no such stage, or the format cannot hold it.
        ValueError: if there is no such format, or ``out`` holds another checkpoint.
        RuntimeError: if an exported stage differs from the model by more than ``TOLERANCE``.
    """
    if kind not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if not isinstance(model, FaceModel | MeshModel):
        raise TypeError(f"model must be one that facezoo.load gives, got {type(model).__name__}")
    plain = deepcopy(model).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    plain = plain.eval().requires_grad_(False)
    wanted = _chosen(plain, kind, stages)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    common, formats = _common(plain), _described(folder, plain)
    images = _inputs(plain)
    said = {}
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        made = []
        for name, capability in wanted.items():
            stage = Stage(plain, capability)
            with torch.no_grad():
                path, run = _WRITERS[kind](stage, name, Path(scratch), images[:2])
            # Other numbers of other crops than those that were traced.
            said[name] = {"file": path.name, **_compared(stage, run, images, name)}
            made.append(path)
        paths = [_moved(path, folder) for path in made]
    stages_before = formats.get(kind, {}).get("stages", {})
    formats[kind] = {"stages": {**stages_before, **said}, "versions": _VERSIONS}
    text = json.dumps({**common, "formats": formats}, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return paths


def _moved(path: Path, folder: Path) -> Path:
    """A file or folder in its final place, instead of what was there."""
    target = folder / path.name
    if target.is_dir():
        shutil.rmtree(target)
    return path.replace(target)


def _described(folder: Path, model: Model) -> dict[str, Any]:
    """The formats that a folder holds of this checkpoint.

    Raises:
        ValueError: if it holds another one.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return {}
    said = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_common(model)))
    differ = [key for key in now if said.get(key) != now[key]]
    if differ or "formats" not in said:
        raise ValueError(
            f"{folder} holds an export of {said.get('checkpoint')!r} that differs from "
            f"{now['checkpoint']!r} in {', '.join(differ) or 'its layout'}; give another folder"
        )
    formats: dict[str, Any] = said["formats"]
    return formats


def _inputs(model: Model) -> Tensor:
    """Three random crops, or meshes near the template."""
    draw = torch.Generator().manual_seed(0)
    if isinstance(model, MeshModel):
        return model.template_mm + torch.randn(3, *model.template_mm.shape, generator=draw)
    return torch.randn(3, *model.input_shape, generator=draw)


def _chosen(model: Model, kind: str, stages: Sequence[str] | None) -> dict[str, str]:
    there = stage_names(model)
    if isinstance(model, MeshModel) and kind != "torch-export":
        raise UnsupportedError(
            f"{model.model_name} cannot be exported as {kind}: its float32 numbers differ by more "
            f"than {TOLERANCE} from one runtime to another; export it as torch-export"
        )
    if kind == "timm":
        able = model.timm_stages if isinstance(model, FaceModel) else ()
        left_out = "expression" if hasattr(model, NAME) else ""
        there = {name: there[name] for name in able if name in there and name != left_out}
    if not there:
        raise UnsupportedError(f"{model.model_name} has no stage that {kind} can hold")
    if lacking := [name for name in stages or () if name not in there]:
        raise UnsupportedError(
            f"{model.model_name} has no stage {lacking[0]!r} for {kind}; it has {', '.join(there)}"
        )
    return {name: there[name] for name in stages} if stages else there


def _compared(stage: Stage, run: Run, images: Tensor, name: str) -> dict[str, Any]:
    with torch.inference_mode():
        wanted = stage(images)
    got = run(images)
    if got.shape != wanted.shape:
        raise RuntimeError(
            f"exported {name} gives {tuple(got.shape)} for {tuple(wanted.shape)} of the model"
        )
    difference = float((got - wanted).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"exported {name} differs from the model by {difference:.2e}, more than {TOLERANCE}"
        )
    return {"shape": list(wanted.shape[1:]), "largest_difference": difference}


def _common(model: Model) -> dict[str, Any]:
    """What is true of all stages in every format."""
    return {
        "checkpoint": model.card.name if model.card else model.model_name,
        "weights_sha256": model.card.weights.sha256 if model.card else None,
        # Of the tensors as they are now, which need no longer be those of the checkpoint.
        "tensors_sha256": digest_of(model),
        "licenses": asdict(model.card.licenses) if model.card else None,
        **_input(model),
        "labels": list(model.labels),
    }


def _input(model: Model) -> dict[str, Any]:
    if isinstance(model, MeshModel):
        shape = list(model.template_um.shape)
        return {"input": {"name": INPUT, "shape": shape, "units": "mm", "frame": "template"}}
    return {
        "input": {"name": INPUT, "shape": list(model.input_shape), "colours": "RGB"},
        "preprocessing": asdict(model.preprocessing),
        "fingerprint": fingerprint(model.preprocessing),
    }


def _write_onnx(stage: Stage, name: str, folder: Path, images: Tensor) -> tuple[Path, Run]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("exporting ONNX needs an extra: pip install 'facezoo[export]'") from error
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts about one another
        torch.onnx.export(
            stage,
            (images,),
            path,
            input_names=[INPUT],
            output_names=[name],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(crops: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: crops.numpy()})[0])

    return path, run


def _write_program(stage: Stage, name: str, folder: Path, images: Tensor) -> tuple[Path, Run]:
    path = folder / f"{name}.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(stage, (images,), dynamic_shapes=shapes), path)
    run: Run = torch.export.load(path).module()
    return path, run


def _write_timm(stage: Stage, name: str, folder: Path, images: Tensor) -> tuple[Path, Run]:
    import timm
    from timm.models import save_for_hf

    path, model = folder / name, stage.model
    assert isinstance(model, FaceModel)
    network = model.as_timm(name)
    preprocessing = model.preprocessing
    numbered = [f"{name}_{d}" for d in range(network(images).shape[1])]
    config = {
        "label_names": list(model.labels) if name == "probabilities" else numbered,
        "pretrained_cfg": {
            "input_size": list(model.input_shape),
            "fixed_input_size": False,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
    }
    save_for_hf(network, str(path), model_config=config, safe_serialization=True)
    _say_what_holds(path / "config.json", model)
    loaded = timm.create_model(f"local-dir:{path}", pretrained=True).eval()

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        result: Tensor = loaded(crops)
        return result.softmax(-1) if name == "probabilities" else result

    return path, run


_OF_OTHER_WEIGHTS = (
    "tag",
    "license",
    "description",
    "origin_url",
    "paper_name",
    "paper_ids",
    "notes",
    "test_input_size",
    "test_crop_pct",
)
"""What timm knows of the weights that it has for a backbone itself."""


def _say_what_holds(path: Path, model: FaceModel) -> None:
    """Say nothing of other weights of the backbone, and the number of classes at the root alone.

    Transformers passes that number on from there too.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    said = config["pretrained_cfg"]
    config["pretrained_cfg"] = {k: v for k, v in said.items() if k not in _OF_OTHER_WEIGHTS}
    if model.card is not None:
        config["pretrained_cfg"]["license"] = model.card.licenses.weights
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


_WRITERS: dict[str, Callable[[Stage, str, Path, Tensor], tuple[Path, Run]]] = {
    "onnx": _write_onnx,
    "torch-export": _write_program,
    "timm": _write_timm,
}
