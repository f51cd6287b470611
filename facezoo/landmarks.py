"""Five landmarks of a face: names, ArcFace template, similarity transforms and head pose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LANDMARK_NAMES = ("right_eye", "left_eye", "nose_tip", "right_mouth_corner", "left_mouth_corner")
"""The subject's own sides: the right eye is on the left of the image."""
ARCFACE_112 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Landmarks in a crop of 112 pixels: the template of ArcFace (Deng et al. 2019) and of most open
face recognition models since."""

# Right eye, left eye, nose tip, right and left mouth corner of a mean head; mm, x to the image's
# right, y down, z away from the camera.
HEAD = (
    (-31.5, 0.0, 0.0),
    (31.5, 0.0, 0.0),
    (0.0, 29.4, -37.2),
    (-24.5, 67.3, -9.3),
    (24.5, 67.3, -9.3),
)
FOCAL, CENTER, SHIFT = 1600.0, 80.0, 24.0
"""Camera that sees the ArcFace template shifted by ``SHIFT``: focal length and center, pixels."""

FRONTAL_PITCH_DEG = -19.4
"""Pitch of the generic head for people who look straight into the camera: the median of 166
portraits of the Face Research Lab London Set."""

POSE_LIMITS = (10.0, 20.0, 30.0, 40.0)
"""Upper limits of the pose classes, absolute yaw in degrees."""

_STEPS = 30
_STOP = 1e-6  # radians
_ROWS = 1 << 14  # solved together, which bounds the memory


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """Fit the least-squares similarity from one set of points to another.

    Rotation, uniform scale and translation, never a reflection. Source: Umeyama, "Least-squares
    estimation of transformation parameters between two point patterns", PAMI 1991, eq. (40)-(43).

    Args:
        source: points x, y, (F, P, 2).
        target: points x, y, (P, 2) or (F, P, 2).

    Returns:
        Matrices, the dtype of ``source``, (F, 2, 3).

    Raises:
        ValueError: on other shapes, points that are not finite, or points that all coincide.
    """
    if source.ndim != 3 or source.shape[-1] != 2 or target.shape[-2:] != source.shape[-2:]:
        raise ValueError(
            "similarity_transform expects source (F, P, 2) and target (P, 2) or (F, P, 2), got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    # Some devices have no double precision, and the work is too small to need a device.
    x = source.detach().cpu().double()
    y = target.detach().cpu().double().expand_as(x)
    if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
        raise ValueError(
            "similarity_transform got points that are NaN or infinite; drop them first"
        )
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x_centered, y_centered = x - x_mean, y - y_mean
    spread = x_centered.square().sum((1, 2))
    if bool((spread <= 1e-12).any()):
        raise ValueError("similarity_transform got points that all coincide; scale is undefined")
    # In the plane the rotation that maximizes the correlation has a closed form without an SVD.
    a = (x_centered * y_centered).sum((1, 2))
    b = (x_centered[..., 0] * y_centered[..., 1] - x_centered[..., 1] * y_centered[..., 0]).sum(1)
    cosine, sine = a / spread, b / spread  # both times the scale
    linear = torch.stack(
        [torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], dim=-2
    )
    shift = y_mean[:, 0] - torch.einsum("fij,fj->fi", linear, x_mean[:, 0])
    return torch.cat([linear, shift[..., None]], -1).to(source)


def head_pose(landmarks: Tensor) -> Tensor:
    """Estimate yaw, pitch and roll of heads from five landmarks.

    The landmarks are aligned to the ArcFace template. Levenberg-Marquardt (Marquardt 1963) finds
    the pose of the generic head ``HEAD`` whose perspective image fits them best in least squares.
    Pitch is relative to frontal faces (``FRONTAL_PITCH_DEG``). The alignment adds its rotation to
    the roll, so yaw and pitch are those of the face turned upright. Real heads differ from the
    generic one: a frontal face can be off by a few degrees, and large angles are underestimated.

    Args:
        landmarks: five points in the order of ``LANDMARK_NAMES``, pixels of any image, (N, 5, 2);
            rows with NaN, or with all points in one place, are unknown.

    Returns:
        Yaw (positive if the face looks towards the image's right), pitch (positive if it looks up)
        and roll (positive if the head is turned clockwise) in degrees; NaN if unknown, float32 on
        the CPU, (N, 3).

    Raises:
        ValueError: if the shape is different.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"landmarks must be (N, 5, 2), got {tuple(landmarks.shape)}")
    points = landmarks.detach().cpu().double()
    known = _known(points)
    result = torch.full((len(points), 3), math.nan, dtype=torch.float32, device="cpu")
    if bool(known.any()):
        matrices = _alignment(points[known])
        aligned = torch.einsum("nij,npj->npi", matrices[..., :2], points[known])
        aligned += matrices[:, None, :, 2]
        angles = torch.cat([_solve(part)[:, :3] for part in aligned.split(_ROWS)])
        angles = torch.rad2deg(angles).float()
        angles[:, 1] -= FRONTAL_PITCH_DEG
        angles[:, 2] -= torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])).float()
        angles[:, 2] = (angles[:, 2] + 180) % 360 - 180
        result[known] = angles
    return result


def alignment_deg(landmarks: Tensor) -> Tensor:
    """Return the clockwise rotation of faces by alignment, degrees, NaN if unknown, (N,)."""
    points = landmarks.detach().cpu().double()
    known = _known(points)
    result = torch.full((len(points),), math.nan, dtype=torch.float32, device="cpu")
    matrices = _alignment(points[known])
    result[known] = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])).float()
    return result


def _known(points: Tensor) -> Tensor:
    """Find the rows of points without NaN, and not all in one place, bool, (N,)."""
    return torch.isfinite(points).flatten(1).all(1) & (points != points[:, :1]).flatten(1).any(1)


def _alignment(points: Tensor) -> Tensor:
    """Return the matrices that align points to the template as the camera sees it, (N, 2, 3)."""
    return similarity_transform(points, points.new_tensor(ARCFACE_112) + SHIFT)


def yaw_deg(landmarks: Tensor) -> Tensor:
    """Return the yaw of ``head_pose``, (N,). The column ``yaw`` of the packs is defined by it."""
    return head_pose(landmarks)[:, 0]


def crop_pose(landmarks: Tensor) -> Tensor:
    """Estimate yaw, pitch, roll and size of the heads in aligned crops, from five landmarks.

    The generic head is fitted as in ``head_pose``, without another alignment: roll and size are
    those that the crop shows. The order of rotations is roll, pitch, yaw.

    Args:
        landmarks: five points in pixels of ``arcface112`` crops; NaN if unknown, (N, 5, 2).

    Returns:
        Yaw (positive to the image's right), pitch (positive upwards) and roll (positive clockwise)
        in radians, and the logarithm of the size relative to a head whose frontal landmarks are
        the template's; NaN if unknown, float32 on the CPU, (N, 4).
    """
    points = landmarks.detach().cpu().double() + SHIFT
    known = torch.isfinite(points).all(2).all(1)
    template = points.new_tensor(ARCFACE_112) + SHIFT
    depth = _frontal_place(template[None], template.new_tensor(HEAD))[:, 2]
    result = torch.full((len(points), 4), math.nan, dtype=torch.float32, device="cpu")
    if bool(known.any()):
        poses = torch.cat([_solve(part) for part in points[known].split(_ROWS)])
        poses[:, 3] = (depth / poses[:, 3]).log()
        result[known] = poses.float()
    return result


def pose_labels(yaw: Tensor) -> Tensor:
    """Return the pose classes of IPD-FER (Table 1): 0-10, 10-20, 20-30, 30-40, over 40 degrees.

    Args:
        yaw: degrees to either side, (N,).

    Returns:
        0 to 4; a limit belongs to the class below it; -1 for NaN; int64, (N,).
    """
    classes = torch.bucketize(yaw.abs(), yaw.new_tensor(POSE_LIMITS))
    return torch.where(yaw.isnan(), -1, classes)


def _solve(seen: Tensor) -> Tensor:
    """Fit yaw, pitch, roll (radians) and depth (mm) of the head to image points, (N, 4)."""
    head = seen.new_tensor(HEAD)
    rotation = torch.eye(3, dtype=seen.dtype, device=seen.device).repeat(len(seen), 1, 1)
    translation = _frontal_place(seen, head)
    damping = torch.full((len(seen),), 1e-3, dtype=seen.dtype, device=seen.device)
    diagonal = torch.eye(6, dtype=seen.dtype, device=seen.device)
    # Matrices of the cross product with each axis, (3, 3, 3).
    cross = torch.linalg.cross(diagonal[:3, None, :3], diagonal[None, :3, :3]).mT
    error, jacobian = _project(head, rotation, translation, seen)
    for _ in range(_STEPS):
        normal = jacobian.mT @ jacobian
        damped = normal * (1 + damping[:, None, None] * diagonal)
        step = -torch.linalg.solve(damped, jacobian.mT @ error[..., None])[..., 0]
        turn = torch.linalg.matrix_exp(torch.einsum("na,aij->nij", step[:, :3], cross))
        new_rotation, new_translation = turn @ rotation, translation + step[:, 3:]
        new_error, new_jacobian = _project(head, new_rotation, new_translation, seen)
        better = new_error.square().sum(1) < error.square().sum(1)
        wide = better[:, None, None]
        rotation = torch.where(wide, new_rotation, rotation)
        translation = torch.where(better[:, None], new_translation, translation)
        error = torch.where(better[:, None], new_error, error)
        jacobian = torch.where(wide, new_jacobian, jacobian)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e12)
        if float(step[:, :3].abs().max()) < _STOP:
            break
    # The head looks along -z: its third axis points away from the side that it faces.
    yaw = torch.atan2(-rotation[:, 0, 2], rotation[:, 2, 2])
    pitch = rotation[:, 1, 2].clamp(-1, 1).asin()
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 1, 1])
    return torch.stack([yaw, pitch, roll, translation[:, 2]], 1)


def _frontal_place(seen: Tensor, head: Tensor) -> Tensor:
    """Return the place of a frontal head that covers the same part of the image, mm, (N, 3)."""
    spread = (seen - seen.mean(1, keepdim=True)).square().sum((1, 2)).sqrt()
    flat = head[:, :2] - head[:, :2].mean(0)
    depth = FOCAL * flat.square().sum().sqrt() / spread
    sideways = (seen.mean(1) - CENTER) * depth[:, None] / FOCAL - head[:, :2].mean(0)
    return torch.cat([sideways, depth[:, None]], 1)


def _project(
    head: Tensor, rotation: Tensor, translation: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the errors of the image of a head, pixels, (N, 10), and their derivatives.

    The derivatives are by rotation and translation, (N, 10, 6).
    """
    turned = torch.einsum("nij,pj->npi", rotation, head)
    placed = turned + translation[:, None]
    by_place = turned.new_zeros(*turned.shape[:2], 2, 3)
    by_place[..., 0, 0] = by_place[..., 1, 1] = FOCAL / placed[..., 2]
    by_place[..., :, 2] = -FOCAL * placed[..., :2] / placed[..., 2:].square()
    by_rotation = torch.linalg.cross(turned[:, :, None].expand_as(by_place), by_place)
    error = FOCAL * placed[..., :2] / placed[..., 2:] + CENTER - seen
    return error.flatten(1), torch.cat([by_rotation, by_place], -1).flatten(1, 2)
