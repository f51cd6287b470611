"""Automatic registration of meshes in other topologies, poses and units: accuracy and time.

    python benchmarks/registration.py DATA docs/results/registration.json adv3d --meshes 50
    python benchmarks/registration.py DATA out.json adv3d --meshes 5 --only rotated "10 % holes"
    python benchmarks/registration.py DATA out.json adv3d --only sizes --heads head.obj body.glb
    python benchmarks/registration.py DATA out.json adv3d --only searches

DATA is the folder of ICT-3D. Test meshes in full resolution are resampled, so the corresponding
vertices are known. ``--heads`` adds other meshes, for which only the surface distance is known.
The results are written after each row. An interrupted run resumes: rows that are in the file, of
the same checkpoint and number of meshes, are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import stamp
from numpy.typing import NDArray
from torch import Tensor

from facezoo.data.ict import FACE, IctFaces
from facezoo.data.resampling import (
    Array,
    Change,
    cut_at_the_neck,
    decimated,
    front_half,
    noisy,
    unchanged,
    with_holes,
    without,
)
from facezoo.evaluate.meshes import rank_one
from facezoo.evaluate.probes import linear_probe
from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh
from facezoo.geometry.registration import Similarity
from facezoo.models.mesh_base import MeshModel
from facezoo.models.mesh_registration import FACE_MM


@dataclass(frozen=True)
class Sample:
    """A resampled test mesh with its truth."""

    mesh: Mesh
    to_mm: Similarity
    """From the numbers of the mesh to the frame of ICT-3D, mm."""
    truth: Array
    """The corresponding vertices in the frame of ICT-3D, mm, (2300, 3)."""
    neutral: Array
    identity: int
    expression: int


def subdivided(vertices, triangles, _):
    """Split every triangle into four."""
    import trimesh

    points, corners = trimesh.remesh.subdivide(vertices, triangles)
    return points, corners.astype(np.int64)


def face_mask(landmarks: NDArray[np.int64]) -> Change:
    """Keep the surface within 20 mm of the 68 landmarks."""

    def change(vertices, triangles, _):
        distances = np.linalg.norm(vertices[:, None] - vertices[landmarks], axis=2).min(1)
        return without(distances > 20, vertices, triangles)

    return change


def with_eyes_and_teeth(eyes: Array) -> Change:
    """Add two eyeballs and a block of teeth."""

    def change(vertices, triangles, _):
        import trimesh

        parts = [trimesh.Trimesh(vertices, triangles, process=False)]
        for eye in eyes:
            ball = trimesh.creation.icosphere(3, radius=12.0)
            ball.apply_translation(eye - [0, 0, 12.5])
            parts.append(ball)
        teeth = trimesh.creation.box([42, 14, 22])
        teeth.apply_translation([0, eyes[0, 1] - 66, eyes[0, 2] - 16])
        whole = trimesh.util.concatenate([*parts, teeth])
        return np.array(whole.vertices), np.array(whole.faces, np.int64)

    return change


def samples(
    faces: IctFaces, full: IctFaces, kept: NDArray[np.int64], name: str, change: Change, count: int
) -> list[Sample]:
    """Resample ``count`` test meshes with other identities and expressions."""
    test = [i for i in range(300) if i % 10 in (2, 5, 8)]
    generator = np.random.default_rng(sum(map(ord, name)))
    result = []
    for number in range(count):
        identity, expression = number % len(test), int(generator.integers(len(faces.expressions)))
        meshes = full.meshes(np.array([test[identity]]))[0].astype(float)
        vertices, triangles = change(meshes[expression], full.topology.triangles, generator)
        scale, rotation = 1.0, np.eye(3)
        if name == "rotated":
            rotation = random_rotation(generator)
        if name == "in meters":
            scale = 0.001
        shift = generator.normal(0, 200, 3) if name in ("rotated", "in meters") else np.zeros(3)
        numbers = scale * (vertices @ rotation.T + shift)
        mesh = Mesh(torch.from_numpy(numbers), "mm", torch.from_numpy(triangles))
        back = Similarity(1 / scale, rotation.T, -rotation.T @ shift)
        truth, neutral = meshes[expression][kept], meshes[0][kept]
        result.append(Sample(mesh, back, truth, neutral, identity, expression))
    return result


def random_rotation(generator: np.random.Generator) -> Array:
    """Combine multiples of 90 degrees with 30 degrees about a random axis."""
    from scipy.spatial.transform import Rotation

    quarter = Rotation.from_euler("xyz", 90 * generator.integers(4, size=3), degrees=True)
    axis = generator.standard_normal(3)
    tilt = Rotation.from_rotvec(np.radians(30) * axis / np.linalg.norm(axis))
    return (tilt * quarter).as_matrix()


def measure(
    model: MeshModel, items: list[Sample], gallery: Tensor, train: Tensor, folder: Path
) -> dict[str, Any]:
    """Register and encode samples; returns one row of the table."""
    errors, face_errors, neutral_errors, surface, seconds, codes, kept = ([] for _ in range(7))
    template = model.template
    spread = torch.cdist(template.vertices.double(), template.landmark_points(68).double())
    face = (spread.amin(1) < FACE_MM).numpy()
    for item in items:
        begin = time.process_time()
        try:
            found = model.register(write_mesh(folder / "scan.ply", item.mesh))  # in unknown units
            encoding = model.encode(found.mesh)
        except ValueError as error:
            print(f"rejected: {error}", flush=True)
            continue
        seconds.append(time.process_time() - begin)
        pose = item.to_mm.after(found.pose)
        vertices = pose.apply(found.vertices.double().numpy())
        distances = np.linalg.norm(vertices - item.truth, axis=1)
        errors.append(distances.mean())
        face_errors.append(distances[face].mean())
        neutral = model.synthesize(encoding.identity)[0].vertices.double().numpy()
        neutral_errors.append(np.linalg.norm(pose.apply(neutral) - item.neutral, axis=1).mean())
        surface.append(found.residuals_mm["surface"])
        codes.append((encoding.identity, encoding.expression))
        kept.append(item)
    good = [error < 3 for error in face_errors]
    row: dict[str, Any] = {"meshes": len(items), "succeeded": sum(good)}
    if not codes:
        return row
    identities = torch.tensor([item.identity for item in kept])
    labels = torch.tensor([item.expression for item in kept])
    expression = torch.cat([code for _, code in codes])
    expressions = train.shape[1]
    rows = torch.arange(len(train) * expressions + len(kept))
    border = len(train) * expressions
    probe = linear_probe(
        torch.cat([train.flatten(0, 1), expression]).double(),
        torch.cat([torch.arange(expressions).repeat(len(train)), labels]),
        rows[:border],
        rows[border:],
        torch.cat([torch.arange(len(train)).repeat_interleave(expressions), identities + 10_000]),
    )
    return {
        **row,
        "correspondence, mm": float(np.mean(errors)),
        "on the face, mm": float(np.mean(face_errors)),
        "worst, mm": float(np.max(face_errors)),
        "surface, mm": float(np.mean(surface)),
        "rank-1, %": 100 * rank_one(gallery, torch.cat([code for code, _ in codes]), identities),
        "expression, %": 100 * float((probe.predicted == labels).double().mean()),
        "AVD_neu, mm": float(np.mean(neutral_errors)),
        "CPU s": float(np.mean(seconds)),
    }


def sizes(checkpoint: str, full: IctFaces, folder: Path) -> list[dict[str, Any]]:
    """Register a mesh of growing size, each in a process of its own; returns time and memory."""
    import trimesh

    vertices, triangles = full.meshes(np.array([2]))[0][3], full.topology.triangles
    rows = []
    for _ in range(4):
        mesh = Mesh(torch.from_numpy(vertices), "mm", torch.from_numpy(triangles))
        path = write_mesh(folder / "head.ply", mesh)
        script = [sys.executable, "-c", ONE, checkpoint, str(path)]
        output = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        rows.append({"vertices": len(vertices), **json.loads(output)})
        vertices, triangles = trimesh.remesh.subdivide(vertices, triangles)
    return rows


ONE = """
import json, resource, sys, time
import torch
import facezoo
torch.set_num_threads(1)
model = facezoo.load(sys.argv[1], device="cpu")
begin = time.process_time()
found = model.register(sys.argv[2])
seconds, peak = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = {"CPU s": seconds, "memory, MiB": peak / 1024}
print(json.dumps({**row, "surface, mm": found.residuals_mm["surface"]}))
"""
"""The first registration of a process, and the peak memory of the process."""


def searches(model: MeshModel, full: IctFaces) -> list[dict[str, Any]]:
    """Time a test face and a sphere, which is rejected after a search from all directions."""
    import trimesh

    ball = trimesh.creation.icosphere(5, radius=90.0)
    meshes = {
        "test face": (full.meshes(np.array([2]))[0][3], full.topology.triangles),
        "sphere": (np.array(ball.vertices), np.array(ball.faces, np.int64)),
    }
    rows = []
    for name, (vertices, triangles) in meshes.items():
        mesh = Mesh(torch.from_numpy(vertices), "mm", torch.from_numpy(triangles))
        begin, result = time.process_time(), "registered"
        try:
            model.register(mesh)
        except ValueError:
            result = "rejected"
        seconds = time.process_time() - begin
        rows.append({"mesh": name, "vertices": len(vertices), "result": result, "CPU s": seconds})
    return rows


def heads(model: MeshModel, paths: list[Path]) -> list[dict[str, Any]]:
    """Register meshes from files in unknown units; returns a row per file."""
    rows = []
    for path in paths:
        begin = time.process_time()
        try:
            found = model.register(path)
            encoding = model.encode(found.mesh)
        except ValueError as error:
            rows.append({"mesh": path.name, "rejected": str(error)})
            continue
        rows.append(
            {
                "mesh": path.name,
                "vertices": len(found.source.vertices),
                "units": found.units,
                **{f"{name}, mm": value for name, value in found.residuals_mm.items()},
                "coverage": found.coverage,
                "reconstruction, mm": float(encoding.residual_mm),
                "CPU s": time.process_time() - begin,
            }
        )
    return rows


def main() -> None:
    """Measure, and write the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--meshes", type=int, default=10, help="per resampling")
    parser.add_argument("--only", nargs="+", help="names of resamplings, sizes, or searches")
    parser.add_argument("--heads", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    model = MeshModel.from_pretrained(options.checkpoint)
    faces, full = IctFaces(options.data), IctFaces(options.data, full=True)
    with np.load(options.data / FACE) as file:
        kept, eyes = file["lo_index"], 10.0 * file["eye_centres"].astype(float)
    changes: dict[str, Change] = {
        "full resolution": unchanged,
        "1,200 vertices": decimated(1200),
        "5,000 vertices": decimated(5000),
        "subdivided": subdivided,
        "cut at the neck": cut_at_the_neck,
        "eyes and teeth": with_eyes_and_teeth(eyes),
        "rotated": unchanged,
        "in meters": unchanged,
        "0.5 mm noise": noisy,
        "10 % holes": with_holes,
        "front half": front_half,
        "face mask": face_mask(full.topology.landmarks),
    }
    command = f"python benchmarks/registration.py DATA OUT {options.checkpoint}"
    if options.only == ["searches"]:
        command += " --only searches"
    content: dict[str, Any] = {
        **stamp(f"{command} --meshes {options.meshes}"),
        "checkpoints": {model.card.name: model.card.weights.sha256},
        "tables": {"resampled": [], "sizes": [], "searches": [], "heads": []},
    }
    if options.out.is_file():
        old = json.loads(options.out.read_text("utf-8"))
        if all(old[key] == content[key] for key in ("command", "checkpoints")):
            content["tables"] |= old["tables"]
    tables = content["tables"]

    def save() -> None:
        options.out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

    names = [name for name in changes if name not in {row["input"] for row in tables["resampled"]}]
    if options.only:
        names = [name for name in names if name in options.only]
    folder = Path(tempfile.mkdtemp())
    if names:
        test = np.array([i for i in range(300) if i % 10 in (2, 5, 8)])[: options.meshes]
        neutral = [torch.from_numpy(faces.meshes(test[i : i + 1])[:, 0]) for i in range(len(test))]
        gallery = model.encode(torch.cat(neutral), units="mm").identity
        others = np.array([i for i in range(300) if i % 10 not in (2, 5, 8)])[::10]
        train = torch.from_numpy(faces.meshes(others))
        train_codes = model.encode(train.flatten(0, 1), units="mm").expression
        train_codes = train_codes.unflatten(0, train.shape[:2])
    for name in names:
        items = samples(faces, full, kept, name, changes[name], options.meshes)
        row = {"input": name, **measure(model, items, gallery, train_codes, folder)}
        print(json.dumps(row, ensure_ascii=False), flush=True)
        order = list(changes).index
        tables["resampled"] = sorted([*tables["resampled"], row], key=lambda r: order(r["input"]))
        save()
    if not tables["sizes"] and (not options.only or "sizes" in options.only):
        tables["sizes"] = sizes(options.checkpoint, full, folder)
    if not tables["searches"] and (not options.only or "searches" in options.only):
        tables["searches"] = searches(model, full)
    tables["heads"] = heads(model, options.heads) or tables["heads"]
    others = [tables[name] for name in ("sizes", "searches", "heads")]
    print(json.dumps(others, indent=2, ensure_ascii=False))
    save()


if __name__ == "__main__":
    main()
