"""adv3d: a face mesh as the sum of an identity and an expression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from facezoo.geometry.meshes import Mesh
from facezoo.inference import evaluating
from facezoo.models.adv3d.networks import VAE, sample
from facezoo.models.mesh_base import MeshEncoding, Meshes, MeshModel, in_batches


class Adv3D(MeshModel):
    """Identity and expression of a face mesh, X = X_id + X_exp.

    Source: Gu, Pears & Sun, "Adversarial 3D Face Disentanglement of Identity and Expression",
    Sec. III: a PointNet encoder with two latent distributions, and two decoders. The identity
    discriminator takes part in training only.

    Args:
        num_vertices: N of the template.
        num_triangles: T of the template.
        num_landmarks: K of the template.
        identity_dim: numbers in z_id.
        expression_dim: numbers in z_exp.
        scale: millimetres that are 1 for the network.
        hidden_dim: hidden units beside the features, see ``VAE``.
    """

    model_name: ClassVar[str | None] = "adv3d"
    provides = (
        *("encode", "encode_expression", "encode_identity", "reconstruct", "neutralize"),
        *("transfer_expression", "interpolate", "synthesize"),
    )
    needs_float32 = "its codes are small differences between large responses to the points"

    def __init__(
        self,
        num_vertices: int = 2300,
        num_triangles: int = 4434,
        num_landmarks: int = 68,
        identity_dim: int = 64,
        expression_dim: int = 64,
        scale: float = 573.0,
        hidden_dim: int = 0,
    ) -> None:
        super().__init__(num_vertices, num_triangles, num_landmarks)
        self.architecture: dict[str, Any] = {
            "num_vertices": num_vertices,
            "num_triangles": num_triangles,
            "num_landmarks": num_landmarks,
            "identity_dim": identity_dim,
            "expression_dim": expression_dim,
            "scale": scale,
            "hidden_dim": hidden_dim,
        }
        self.scale = scale
        self.vae = VAE(num_vertices, identity_dim, expression_dim, hidden_dim)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, identity and expression from the means of the codes.

        Args:
            points: aligned, millimetres, (B, N', 3) for any N'.

        Returns:
            Two meshes and an offset, millimetres, (B, N, 3) each.
        """
        codes = self.vae.distributions(self.embed(points))
        return self.decode(codes["id_mean"], codes["exp_mean"])

    def embed(self, points: Tensor) -> Tensor:
        """Features before the codes, (B, 1024), keeping gradients; see ``forward``."""
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(
                f"points must be (B, N, 3) in millimetres, got {tuple(points.shape)}; for files "
                "and single meshes call encode_expression() and the like"
            )
        return self.vae.features((points / self.scale).to(self.dtype))

    def embed_identity(self, points: Tensor) -> Tensor:
        """Means of z_id, keeping gradients, (B, L); see ``forward``."""
        return self.vae.distributions(self.embed(points))["id_mean"]

    def embed_expression(self, points: Tensor) -> Tensor:
        """Means of z_exp, keeping gradients, (B, L); see ``forward``."""
        return self.vae.distributions(self.embed(points))["exp_mean"]

    def decode(self, z_id: Tensor, z_exp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Full face, identity face and expression offset of codes, millimetres, (B, N, 3)."""
        identity = self.vae.decode_identity(z_id) * self.scale + self.template_mm
        expression = self.vae.decode_expression(z_exp) * self.scale
        return identity + expression, identity, expression

    def encode_expression(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """z_exp of meshes.

        Args:
            meshes: one or several; see ``MeshModel``.
            units: ``"mm"``, ``"cm"`` or ``"m"``; wanted with files and arrays.
            align: None, ``"vertices"`` or ``"landmarks"``.
            landmarks: the mesh's vertices that are the template's landmarks, (K,).
            sample: whether to draw from the posterior instead of taking its mean.
            generator: of the draw, on the CPU.
            batch_size: meshes that are worked on at once.

        Returns:
            float32, (M, L).

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if units are not stated, or a mesh is damaged or out of place.
        """
        points = self.prepare(meshes, units=units, align=align, landmarks=landmarks)
        return self._codes(points, sample, generator, batch_size).expression

    def encode_identity(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """z_id of meshes; see ``encode_expression``."""
        points = self.prepare(meshes, units=units, align=align, landmarks=landmarks)
        return self._codes(points, sample, generator, batch_size).identity

    def encode(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
        batch_size: int = 32,
    ) -> MeshEncoding:
        """Both codes of meshes; see ``encode_expression``."""
        points = self.prepare(meshes, units=units, align=align, landmarks=landmarks)
        return self._codes(points, False, None, batch_size)

    @torch.no_grad()
    def _codes(
        self,
        points: Sequence[Tensor],
        drawn: bool,
        generator: torch.Generator | None,
        batch_size: int,
    ) -> MeshEncoding:
        def work(batch: Tensor) -> tuple[Tensor, ...]:
            codes = self.vae.distributions(self.embed(batch))
            return tuple(
                codes[f"{part}_{of}"] for part in ("id", "exp") for of in ("mean", "logvar")
            )

        def code(mean: Tensor, logvar: Tensor) -> Tensor:
            if drawn:  # for all meshes at once, so that batches do not decide what is drawn
                noise = torch.randn(mean.shape, generator=generator, device="cpu").to(mean)
                mean = sample(mean, logvar, noise)
            return mean.float()

        with self._exactly():
            identity_mean, identity_logvar, *of_expression = in_batches(points, batch_size, work)
        identity = code(identity_mean, identity_logvar)
        return MeshEncoding(code(*of_expression), identity)

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """Eval mode in full precision, whatever surrounds the call; see ``needs_float32``.

        Raises:
            UnsupportedError: if the weights themselves are in half precision.
        """
        if self.dtype in (torch.float16, torch.bfloat16):
            self.check_reduced_precision()
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            yield

    def reconstruct(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
    ) -> list[Mesh]:
        """Meshes through both codes and back, in the template's topology, millimetres."""
        codes = self.encode(meshes, units=units, align=align, landmarks=landmarks)
        return self.synthesize(codes.identity, codes.expression)

    def neutralize(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
    ) -> list[Mesh]:
        """The apathy face of meshes: their identity alone, in the template's topology, mm."""
        identity = self.encode(meshes, units=units, align=align, landmarks=landmarks).identity
        return self.synthesize(identity)

    def transfer_expression(
        self,
        source: Meshes,
        target: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
    ) -> list[Mesh]:
        """The identity of ``target`` with the expression of ``source``, millimetres.

        Args:
            source: one mesh for all targets, or as many as there are targets.
            target: one or several.
            units: as in ``encode_expression``, of both.
            align: None or ``"vertices"``, of both.

        Raises:
            ValueError: if the numbers of meshes do not fit, and as ``encode_expression`` does.
        """
        expression = self.encode_expression(source, units=units, align=align)
        identity = self.encode_identity(target, units=units, align=align)
        if len(expression) not in (1, len(identity)):
            raise ValueError(
                f"source must be one mesh or as many as target, got {len(expression)} and "
                f"{len(identity)}"
            )
        return self.synthesize(identity, expression.expand(len(identity), -1))

    def interpolate(
        self,
        a: Meshes,
        b: Meshes,
        steps: int,
        *,
        what: Literal["expression", "identity"] = "expression",
        units: str | None = None,
        align: str | None = None,
    ) -> list[Mesh]:
        """From mesh ``a`` to ``b`` along one code; the other code stays that of ``a``.

        Args:
            a: one mesh.
            b: one mesh.
            steps: meshes to return, both ends included.
            what: the code that changes.
            units: as in ``encode_expression``.
            align: None or ``"vertices"``.

        Returns:
            ``steps`` meshes, millimetres.

        Raises:
            ValueError: if ``steps`` is below 2, ``what`` is neither, or several meshes are given.
        """
        if what not in ("expression", "identity"):
            raise ValueError(f"what must be 'expression' or 'identity', got {what!r}")
        if steps < 2:
            raise ValueError(f"steps must be 2 or more, for both ends are among them; got {steps}")
        ends = [self.encode(mesh, units=units, align=align) for mesh in (a, b)]
        if any(len(end.identity) != 1 for end in ends):
            raise ValueError("interpolate takes one mesh for each end")
        weight = torch.linspace(0, 1, steps, device=self.device)[:, None]
        codes = {
            name: getattr(ends[0], name).expand(steps, -1) for name in ("identity", "expression")
        }
        codes[what] = torch.lerp(codes[what], getattr(ends[1], what).expand(steps, -1), weight)
        return self.synthesize(codes["identity"], codes["expression"])

    @torch.no_grad()
    def synthesize(self, identity: Tensor, expression: Tensor | None = None) -> list[Mesh]:
        """Meshes of codes (M, L), millimetres; the identity face without an expression code.

        Args:
            identity: z_id of M faces, or of one.
            expression: z_exp of as many, or of one.

        Raises:
            ValueError: if a code is of another size, or their numbers do not go together.
        """
        identity = self._codes_of(identity, "identity")
        with self._exactly():
            faces = self.vae.decode_identity(identity).float() * self.scale + self.template_mm
            if expression is not None:
                expression = self._codes_of(expression, "expression")
                if 1 not in (len(identity), len(expression)) and len(identity) != len(expression):
                    raise ValueError(
                        f"identity and expression must be of as many meshes, or one of them of "
                        f"one, got {len(identity)} and {len(expression)}"
                    )
                faces = faces + self.vae.decode_expression(expression).float() * self.scale
        triangles = self.triangles.long()
        return [Mesh(vertices, "mm", triangles) for vertices in faces]

    def _codes_of(self, codes: Tensor, part: Literal["expression", "identity"]) -> Tensor:
        """Codes as the decoders take them, checked, (M, L)."""
        given = torch.as_tensor(codes, device=self.device, dtype=self.dtype)
        size = self.architecture[f"{part}_dim"]
        if given.ndim != 2 or given.shape[1] != size:
            raise ValueError(f"{part} must be codes (M, {size}), got {tuple(given.shape)}")
        return given
