"""Compare mesh models on ICT-3D with methods that need correspondence, in millimeters.

    python benchmarks/ict.py DATA docs/results/ict.json adv3d.ict adv3d.ict-neutral

DATA is the folder of ICT-3D. A checkpoint is a name, or a ``.safetensors`` file with its card in
the same folder. The linear methods use corresponding vertices, and the data are linear.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.ict import IctFaces
from facezoo.evaluate.ict import Benchmark, benchmark
from facezoo.evaluate.meshes import MeshScores, score_meshes
from facezoo.models.mesh_base import MeshModel

CODE = 64
CORRESPONDENCE = "vertices in correspondence"
NONE = "–"


def linear_methods(train: Tensor, test: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Predict identity and reconstruction of test meshes by each method, (Q, E, D) each.

    Args:
        train: coordinates of training meshes, expression 0 neutral, float64, (P, E, D).
        test: of test meshes, (Q, E, D).
    """
    neutral, offsets = train[:, 0], train - train[:, :1]
    middle, basis = principal(neutral, CODE)
    directions = principal(offsets.flatten(0, 1), CODE, center=False)[1]
    both = torch.cat([basis, directions])
    codes = (test - middle) @ torch.linalg.pinv(both)
    identity = middle + codes[..., : len(basis)] @ basis
    ridge = regressed(train.flatten(0, 1), neutral.repeat_interleave(train.shape[1], 0), test)
    person = person_effect(train, test)
    means, axes = principal(train.mean(1), CODE)
    return {
        "copy of the input": (test, test),
        "mean of the training neutrals": (neutral.mean(0).expand_as(test), None),
        "PCA 64 + 64, least squares": (identity, identity + codes[..., len(basis) :] @ directions),
        "ridge regression to the neutral": (ridge, None),
        "the same through 64 numbers": (middle + (ridge - middle) @ basis.T @ basis, None),
        "linear, identity labels only": (person, None),
        "the same through 64 numbers ": (means + (person - means) @ axes.T @ axes, None),
    }


def principal(rows: Tensor, count: int, center: bool = True) -> tuple[Tensor, Tensor]:
    """Compute the mean (D,) and up to ``count`` principal axes (C, D) of rows (R, D)."""
    middle = rows.mean(0) if center else torch.zeros_like(rows[0])
    _, sizes, axes = torch.linalg.svd(rows - middle, full_matrices=False)
    return middle, axes[: min(count, int((sizes > 1e-6 * sizes[0]).sum()))]


def regressed(inputs: Tensor, targets: Tensor, test: Tensor, penalty: float = 1e-6) -> Tensor:
    """Fit ridge regression of targets (R, D) on inputs (R, D), and apply it to test (Q, E, D)."""
    center, mean = inputs.mean(0), targets.mean(0)
    rows = inputs - center
    gram = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    return mean + (test - center) @ torch.linalg.solve(gram, rows.T @ (targets - mean))


def person_effect(train: Tensor, test: Tensor) -> Tensor:
    """Compute the posterior mean of an identity in a two-level Gaussian model."""
    means, count = train.mean(1), train.shape[1]
    within = torch.cov((train - means[:, None]).flatten(0, 1).T) * count / (count - 1)
    between = torch.cov(means.T) - within / count
    total = between + within
    total += 1e-9 * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype)
    center = means.mean(0)
    return center + (test - center) @ torch.linalg.solve(total, between)


def face_row(name: str, needs: str, scores: MeshScores, rebuilt: bool) -> dict[str, object]:
    """Return a row of the table of distances."""
    rec = (f"{scores.e_rec.mean:.3f}", f"{scores.e_rec_face:.3f}") if rebuilt else (NONE, NONE)
    avd, dis = scores.avd_neu, scores.e_dis
    return {
        "method": name,
        "needs": needs,
        "E_rec": rec[0],
        "E_rec face": rec[1],
        "AVD_neu": f"{avd.mean:.3f} ± {avd.std:.3f} / {avd.median:.3f}",
        "AVD_neu face": scores.avd_neu_face,
        "E_dis": f"{dis.mean:.3f} / {dis.median:.3f}",
        "spread": scores.spread,
    }


def code_row(name: str, input_: str, result: tuple[MeshScores, object]) -> dict[str, object]:
    """Return a row of the table of codes, in percent; AVD_neu in mm."""
    meshes, codes = result
    shares = {
        "rank-1": codes.recognition,
        "verification": codes.verification,
        "expression": codes.expression,
        "expression from z_id": codes.expression_from_identity,
        "rank-1 from z_exp": codes.recognition_from_expression,
    }
    rounded = {key: f"{100 * value:.1f}" for key, value in shares.items()}
    return {"checkpoint": name, "input": input_, **rounded, "AVD_neu": meshes.avd_neu.mean}


def speed(model: MeshModel, meshes: Tensor, batch: int, repeats: int = 7) -> dict[str, object]:
    """Measure median meshes per second of ``encode``, and of the bare networks."""
    chosen = meshes[:batch]

    def clock(work) -> float:
        work()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return batch / sorted(times)[repeats // 2]

    def bare() -> None:
        with torch.inference_mode():
            for part in (chosen / model.scale).split(32):
                model.vae.distributions(model.vae.features(part))

    own = clock(lambda: model.encode(chosen, units="mm"))
    rival = clock(bare)
    return {"batch": batch, "encode, meshes/s": own, "bare, meshes/s": rival, "ratio": own / rival}


def main() -> None:
    """Measure, and write the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", nargs="+")
    options = parser.parse_args()
    faces = IctFaces(options.data)
    train_set, test_set = faces.split("standard")
    narrow = torch.from_numpy(faces.topology.narrow)
    test = torch.from_numpy(test_set.vertices)
    rows = linear_rows(torch.from_numpy(train_set.vertices), test, narrow)
    codes, speeds, hashes = [], [], {}
    for name in options.checkpoints:
        model = MeshModel.from_pretrained(name)
        card = model.card
        result: Benchmark = benchmark(model, options.data)
        rows.append(face_row(f"`{card.name}`", "points", result.meshes, True))
        clouds = {"whole": (result.meshes, result.codes), **result.corrupted}
        codes += [code_row(f"`{card.name}`", *item) for item in clouds.items()]
        if not speeds:
            speeds = [speed(model, test.flatten(0, 1), batch) for batch in (1, 256)]
        hashes[card.name] = card.weights.sha256
    content = {
        "command": "python benchmarks/ict.py DATA docs/results/ict.json " + " ".join(hashes),
        "checkpoints": hashes,
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "tables": {"faces": rows, "codes": codes, "speed": speeds},
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    options.out.write_text(text + "\n", encoding="utf-8")


def linear_rows(train: Tensor, test: Tensor, narrow: Tensor) -> list[dict[str, object]]:
    """Return the rows of the methods that need correspondence."""
    middle = train.flatten(0, 1).mean(0)
    flat = (train - middle).flatten(2).double()
    draw = torch.Generator().manual_seed(0)
    some = flat.flatten(0, 1)[torch.randperm(flat.shape[0] * flat.shape[1], generator=draw)[:900]]
    axes = principal(some, 300, center=False)[1]

    def shapes(coordinates: Tensor) -> Tensor:
        return ((coordinates @ axes).float()).unflatten(-1, (-1, 3)) + middle

    known = (test - middle).flatten(2).double() @ axes.T
    rows = []
    for name, (identity, rebuilt) in linear_methods(flat @ axes.T, known).items():
        again = test if rebuilt is None else shapes(rebuilt)
        scores = score_meshes(test, shapes(identity), again, test[:, 0], narrow)
        rows.append(face_row(name.strip(), CORRESPONDENCE, scores, rebuilt is not None))
    return rows


if __name__ == "__main__":
    main()
