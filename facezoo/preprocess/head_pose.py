"""Head pose from five landmarks, and the pose classes of IPD-FER."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facezoo.preprocess.alignment import similarity_transform
from facezoo.preprocess.templates import template_points

# Right eye, left eye, nose tip, right and left mouth corner of a mean head; mm, x to the image's
# right, y down, z away from the camera.
HEAD = (
    (-31.5, 0.0, 0.0),
    (31.5, 0.0, 0.0),
    (0.0, 29.4, -37.2),
    (-24.5, 67.3, -9.3),
    (24.5, 67.3, -9.3),
)
FOCAL, CENTRE, SHIFT = 1600.0, 80.0, 24.0
"""Camera that sees the ArcFace template shifted by ``SHIFT``: focal length and center, pixels."""

FRONTAL_PITCH_DEG = -19.4
"""Pitch of the generic head for people who look straight into the camera: the median of 166
portraits of the Face Research Lab London Set."""

POSE_LIMITS = (10.0, 20.0, 30.0, 40.0)
"""Upper limits of the pose classes, absolute yaw in degrees."""

_STEPS = 30
_STOP = 1e-6  # radians
_ROWS = 1 << 14  # solved together, which bounds the memory


def head_pose(landmarks: Tensor) -> Tensor:
    """Estimate yaw, pitch and roll of heads from five landmarks.

    The landmarks are aligned to the ArcFace template. Levenberg-Marquardt (Marquardt 1963) finds
    the pose of the generic head ``HEAD`` whose perspective image fits them best in least squares.
    Pitch is relative to frontal faces (``FRONTAL_PITCH_DEG``). The alignment adds its rotation to
    the roll, so yaw and pitch are those of the face turned upright. Real heads differ from the
    generic one: a frontal face can be off by a few degrees, and large angles are underestimated.

    Args:
        landmarks: five points in the order of ``LANDMARK_NAMES``, pixels of any image, (N, 5, 2);
            rows with NaN are unknown.

    Returns:
        Yaw (positive if the face looks towards the image's right), pitch (positive if it looks up)
        and roll (positive if the head is turned clockwise) in degrees; NaN if unknown, float32 on
        the CPU, (N, 3).

    Raises:
        ValueError: if the shape is different, or all points of a row coincide.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"landmarks must be (N, 5, 2), got {tuple(landmarks.shape)}")
    points = landmarks.detach().cpu().double()
    known = torch.isfinite(points).all(2).all(1)
    result = torch.full((len(points), 3), math.nan, dtype=torch.float32, device="cpu")
    if bool(known.any()):
        matrices = _alignment(points[known])
        aligned = torch.einsum("nij,npj->npi", matrices[..., :2], points[known])
        aligned += matrices[:, None, :, 2]
        angles = torch.cat([_solve(part)[:, :3] for part in aligned.split(_ROWS)])
        result[known] = torch.rad2deg(angles).float()
        result[:, 1] -= FRONTAL_PITCH_DEG
        result[:, 2] -= alignment_deg(landmarks)
        result[:, 2] = (result[:, 2] + 180) % 360 - 180
    return result


def alignment_deg(landmarks: Tensor) -> Tensor:
    """Return the clockwise rotation of faces by alignment, degrees, NaN if unknown, (N,)."""
    points = landmarks.detach().cpu().double()
    known = torch.isfinite(points).flatten(1).all(1)
    result = torch.full((len(points),), math.nan, dtype=torch.float32, device="cpu")
    matrices = _alignment(points[known])
    result[known] = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])).float()
    return result


def _alignment(points: Tensor) -> Tensor:
    """Return the matrices that align points to the template as the camera sees it, (N, 2, 3)."""
    return similarity_transform(points, template_points("arcface112", 112) + SHIFT)


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
    template = template_points("arcface112", 112).double() + SHIFT
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
    classes = torch.bucketize(yaw.abs(), torch.tensor(POSE_LIMITS, device=yaw.device))
    return torch.where(yaw.isnan(), -1, classes)


def _solve(seen: Tensor) -> Tensor:
    """Fit yaw, pitch, roll (radians) and depth (mm) of the head to image points, (N, 4)."""
    head = seen.new_tensor(HEAD)
    rotation = torch.eye(3, dtype=seen.dtype, device=seen.device).repeat(len(seen), 1, 1)
    translation = _frontal_place(seen, head)
    damping = torch.full((len(seen),), 1e-3, dtype=seen.dtype, device=seen.device)
    turned, error = _project(head, rotation, translation, seen)
    for _ in range(_STEPS):
        jacobian = _jacobian(turned, translation)
        normal = jacobian.mT @ jacobian
        damped = normal * (
            1 + damping[:, None, None] * torch.eye(6, dtype=seen.dtype, device=seen.device)
        )
        step = -torch.linalg.solve(damped, jacobian.mT @ error.flatten(1)[..., None])[..., 0]
        new_rotation = torch.linalg.matrix_exp(_cross_matrix(step[:, :3])) @ rotation
        new_translation = translation + step[:, 3:]
        new_turned, new_error = _project(head, new_rotation, new_translation, seen)
        better = new_error.square().sum((1, 2)) < error.square().sum((1, 2))
        wide = better[:, None, None]
        rotation = torch.where(wide, new_rotation, rotation)
        translation = torch.where(better[:, None], new_translation, translation)
        turned, error = torch.where(wide, new_turned, turned), torch.where(wide, new_error, error)
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
    sideways = (seen.mean(1) - CENTRE) * depth[:, None] / FOCAL - head[:, :2].mean(0)
    return torch.cat([sideways, depth[:, None]], 1)


def _project(
    head: Tensor, rotation: Tensor, translation: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rotated head, mm, (N, 5, 3), and the errors of its image, pixels, (N, 5, 2)."""
    turned = torch.einsum("nij,pj->npi", rotation, head)
    placed = turned + translation[:, None]
    return turned, FOCAL * placed[..., :2] / placed[..., 2:] + CENTRE - seen


def _jacobian(turned: Tensor, translation: Tensor) -> Tensor:
    """Return the derivatives of image points by rotation and translation, (N, 10, 6)."""
    placed = turned + translation[:, None]
    depth = placed[..., 2]
    by_place = turned.new_zeros(*depth.shape, 2, 3)
    by_place[..., 0, 0] = by_place[..., 1, 1] = FOCAL / depth
    by_place[..., :, 2] = -FOCAL * placed[..., :2] / depth[..., None].square()
    by_rotation = by_place @ -_cross_matrix(turned)
    return torch.cat([by_rotation, by_place], -1).flatten(1, 2)


def _cross_matrix(vectors: Tensor) -> Tensor:
    """Return the matrices of the cross product with each vector, (..., 3, 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [(zero, -z, y), (z, zero, -x), (-y, x, zero)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
