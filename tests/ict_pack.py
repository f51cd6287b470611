"""A tiny face in the layout of ICT-3D's files: a bent grid with a few modes."""

import json

import numpy as np

SIDE, MODES, SHAPES = 12, 6, 4
EXPRESSIONS = ("neutral", "smile", "jaw", "brow")


def grid_triangles(side):
    corners = []
    for row in range(side - 1):
        for column in range(side - 1):
            first = row * side + column
            corners += [[first, first + 1, first + side]]
            corners += [[first + 1, first + side + 1, first + side]]
    return np.array(corners, np.int32)


def write_ict(folder, side=SIDE):
    """The three files; every vertex of the face is kept in the decimated topology."""
    rng = np.random.default_rng(0)
    line = np.linspace(-8, 8, side)
    x, y = (axis.ravel() for axis in np.meshgrid(line, line))
    neutral = np.stack([x, y, 10 - 0.05 * (x**2 + y**2)], 1).astype(np.float32)
    count = len(neutral)

    def modes(number, size):
        frequencies = rng.uniform(-0.4, 0.4, (number, 1, 2))
        phase = (frequencies * neutral[None, :, :2]).sum(2)[..., None]
        directions = rng.standard_normal((number, 1, 3))
        return (size * np.cos(phase) * directions).astype(np.float16)

    triangles = grid_triangles(side)
    landmarks = np.arange(0, count, 7, dtype=np.int32)
    np.savez(
        folder / "ict_face.npz",
        neutral=neutral,
        id_modes=modes(MODES, 0.3),
        exp_modes=modes(SHAPES, 0.4),
        faces=triangles,
        landmarks=landmarks,
        lo_index=np.arange(count, dtype=np.int32),
        lo_faces=triangles,
        lo_landmarks=landmarks,
        n_narrow=count * 2 // 3,
        mm_per_unit=10,
    )
    gradient = 0.02 * rng.standard_normal((MODES, count, 3, 3))
    np.savez(folder / "ict_face_adapt.npz", lo_id_grad=gradient.astype(np.float32))
    names = [f"shape{index}" for index in range(SHAPES)]
    recipes = [{}, {"shape0": 1.0}, {"shape1": 0.8, "shape2": 0.3}, {"shape3": 1.0}]
    protocol = {
        "blendshapes": names,
        "expressions": [
            {"id": index, "name": name, "weights": weights}
            for index, (name, weights) in enumerate(zip(EXPRESSIONS, recipes, strict=True))
        ],
        "sampling": {"seed": 3253},
        "split": {"test_if_identity_mod_10_in": [2, 5, 8]},
    }
    (folder / "ict_expressions.json").write_text(json.dumps(protocol), encoding="utf-8")
    return folder


def write_full_ict(folder):
    """The same with as many vertices, triangles and landmarks as the real topology has."""
    write_ict(folder, side=50)
    path = folder / "ict_face.npz"
    with np.load(path) as face:
        parts = dict(face)
    kept = 2300
    inside = parts["lo_faces"][(parts["lo_faces"] < kept).all(1)]
    parts["lo_index"] = np.arange(kept, dtype=np.int32)
    parts["lo_faces"] = np.resize(inside, (4434, 3))
    parts["lo_landmarks"] = np.arange(68, dtype=np.int32) * 30
    np.savez(path, **parts)
    return folder
