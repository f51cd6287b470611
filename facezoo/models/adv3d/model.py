"""adv3d: a face mesh as the sum of an identity and an expression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from facezoo.geometry.meshes import Mesh
from facezoo.inference import evaluating
from facezoo.models.adv3d.networks import VAE, sample
from facezoo.models.capabilities import constructor_arguments
from facezoo.models.mesh_base import (
    MeshEncoding,
    MeshKeywords,
    MeshModel,
    Placed,
    in_batches,
    in_topology,
)
from facezoo.models.mesh_inputs import Meshes


class Adv3D(MeshModel):
    """Identity and expression of a face mesh, X = X_id + X_exp.

    Source: Gu, Pears & Sun, "Adversarial 3D Face Disentanglement of Identity and Expression",
    Sec. III: a PointNet encoder with two latent distributions, and two decoders. The identity
    discriminator exists in training only.

    Args:
        num_vertices: N of the template.
        num_triangles: T of the template.
        num_landmarks: K of the template.
        identity_dim: dimensions of z_id.
        expression_dim: dimensions of z_exp.
        scale: millimeters that are 1 for the network.
        hidden_dim: hidden units between features and codes; 0 for linear codes, as in the paper.
        code_statistics: store the distribution of the training codes, which detects unusual meshes.
        shape_axes: number of stored principal axes of the training meshes, for registration.
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
        code_statistics: bool = False,
        shape_axes: int = 0,
    ) -> None:
        dims = identity_dim + expression_dim if code_statistics else 0
        super().__init__(num_vertices, num_triangles, num_landmarks, dims, shape_axes)
        self.architecture = constructor_arguments(locals(), leave_out="dims")
        self.scale = scale
        self.vae = VAE(num_vertices, identity_dim, expression_dim, hidden_dim)

    @classmethod
    def from_networks(
        cls,
        vae: VAE,
        scale: float,
        template_mm: Tensor,
        triangles: Tensor,
        landmarks: Tensor,
        meshes: Sequence[Tensor] = (),
        shape_axes: Tensor | None = None,
    ) -> Adv3D:
        """Build the model of a trained autoencoder, in eval mode.

        Args:
            vae: its weights are copied.
            scale: millimeters that are 1 for the network.
            template_mm: the mean training face, (N, 3).
            triangles: (T, 3).
            landmarks: vertices of the template, (K,).
            meshes: training meshes, mm, (N, 3) each, for the statistics of the codes; no meshes, no
                statistics.
            shape_axes: principal axes of the training meshes times their deviation, mm, (A, N, 3).
        """
        model = cls(
            num_vertices=vae.num_vertices,
            num_triangles=len(triangles),
            num_landmarks=len(landmarks),
            identity_dim=vae.fc_id_mu.out_features,
            expression_dim=vae.fc_exp_mu.out_features,
            scale=scale,
            hidden_dim=vae.fc_hidden.out_features if vae.fc_hidden else 0,
            code_statistics=len(meshes) > 0,
            shape_axes=0 if shape_axes is None else len(shape_axes),
        )
        model.vae.load_state_dict(vae.state_dict())
        model.set_template(template_mm, triangles, landmarks)
        if shape_axes is not None:
            model.set_shape_axes(shape_axes)
        if len(meshes):
            codes = model._codes(meshes, 32)
            model.set_code_statistics(torch.cat([codes.identity, codes.expression], 1))
        return model.eval()

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute reconstruction, identity and expression from the means of the codes.

        Args:
            points: aligned, millimeters, (B, N', 3) for any N'.

        Returns:
            Two meshes and an offset, millimeters, (B, N, 3) each.
        """
        codes = self.vae.distributions(self.embed(points))
        return self.decode(codes["id_mean"], codes["exp_mean"])

    def embed(self, points: Tensor) -> Tensor:
        """Compute the features before the codes, with gradients.

        Args:
            points: vertices in the frame of the template, mm, (B, N, 3).

        Returns:
            (B, 1024).

        Raises:
            ValueError: if ``points`` is not (B, N, 3).
        """
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(
                f"points must be (B, N, 3) in millimeters, got {tuple(points.shape)}; for files "
                "and single meshes call encode_expression() and the like"
            )
        return self.vae.features((points / self.scale).to(self.dtype))

    def embed_identity(self, points: Tensor) -> Tensor:
        """Compute the means of z_id, (B, L), of points (B, N, 3) in mm; gradients are kept."""
        return self.vae.distributions(self.embed(points))["id_mean"]

    def embed_expression(self, points: Tensor) -> Tensor:
        """Compute the means of z_exp, (B, L), of points (B, N, 3) in mm; gradients are kept."""
        return self.vae.distributions(self.embed(points))["exp_mean"]

    def decode(self, z_id: Tensor, z_exp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode codes to full face, identity face and expression offset, mm, (B, N, 3)."""
        identity = self.vae.decode_identity(z_id) * self.scale + self.template_mm
        expression = self.vae.decode_expression(z_exp) * self.scale
        return identity + expression, identity, expression

    def encode_expression(
        self,
        meshes: Meshes,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int = 32,
        **place: Unpack[MeshKeywords],
    ) -> Tensor:
        """Encode z_exp of meshes.

        Args:
            meshes: one or several files, ``Mesh`` objects or arrays.
            sample: sample from the posterior; False takes its mean.
            generator: of the samples, on the CPU.
            batch_size: meshes per forward pass.
            place: ``units``, ``align`` and ``landmarks``, as in ``MeshModel``.

        Returns:
            float32, (M, L).

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if units are missing, or a mesh is damaged or in the wrong place.
        """
        placed = self._place(meshes, **place)
        return self._encode(placed, batch_size, sample, generator).expression

    def encode_identity(
        self,
        meshes: Meshes,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int = 32,
        **place: Unpack[MeshKeywords],
    ) -> Tensor:
        """Encode z_id of meshes, float32, (M, L).

        Arguments and errors are those of ``encode_expression``.
        """
        placed = self._place(meshes, **place)
        return self._encode(placed, batch_size, sample, generator).identity

    def encode(
        self, meshes: Meshes, *, batch_size: int = 32, **place: Unpack[MeshKeywords]
    ) -> MeshEncoding:
        """Encode both codes of meshes; arguments and errors are those of ``encode_expression``.

        Returns:
            Means of z_exp and z_id, (M, L) each, and the distance to the reconstruction, mm, (M,).
        """
        return self._encode(self._place(meshes, **place), batch_size)

    @torch.no_grad()
    def _encode(
        self,
        placed: Sequence[Placed],
        batch_size: int = 32,
        sampled: bool = False,
        generator: torch.Generator | None = None,
    ) -> MeshEncoding:
        """Encode meshes, and check the means of the codes and the pose; adds ``residual_mm``."""
        points = [one.points for one in placed]
        codes = self._codes(points, batch_size)
        joint = torch.cat([codes.identity, codes.expression], 1)
        self.check_codes(placed, joint)
        residual = codes.identity.new_full((len(placed),), torch.nan)
        rows = [row for row, one in enumerate(placed) if one.corresponds]
        for part in (rows[i : i + batch_size] for i in range(0, len(rows), batch_size)):
            for row, vertices in zip(part, self.decode_samples(joint[part]), strict=True):
                error = float((vertices - placed[row].points).norm(dim=1).mean())
                residual[row] = error
                self.warn_of_residual(placed[row], vertices, error)
        if sampled:
            codes = self._codes(points, batch_size, True, generator)
        return replace(codes, residual_mm=residual)

    def reconstruct_points(self, points: Tensor) -> Tensor:
        """Encode and decode vertices in the frame of the template, mm, (M, N, 3)."""
        codes = self._codes(list(points), 32)
        faces = self.synthesize(codes.identity, codes.expression)
        return torch.stack([face.vertices for face in faces])

    @torch.no_grad()
    def _codes(
        self,
        points: Sequence[Tensor],
        batch_size: int,
        sampled: bool = False,
        generator: torch.Generator | None = None,
    ) -> MeshEncoding:
        def work(batch: Tensor) -> tuple[Tensor, ...]:
            codes = self.vae.distributions(self.embed(batch))
            return tuple(
                codes[f"{part}_{of}"] for part in ("id", "exp") for of in ("mean", "logvar")
            )

        def code(mean: Tensor, logvar: Tensor) -> Tensor:
            if sampled:  # for all meshes at once, so that samples do not depend on the batches
                noise = torch.randn(
                    mean.shape, generator=generator, dtype=torch.float32, device="cpu"
                ).to(mean)
                mean = sample(mean, logvar, noise)
            return mean.float()

        with self._exact():
            identity_mean, identity_logvar, *of_expression = in_batches(points, batch_size, work)
        identity = code(identity_mean, identity_logvar)
        return MeshEncoding(code(*of_expression), identity)

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """Run in eval mode and full precision, without autocast; see ``needs_float32``.

        Raises:
            UnsupportedError: if the weights are in half precision.
        """
        if self.dtype in (torch.float16, torch.bfloat16):
            self.check_reduced_precision()
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            yield

    def reconstruct(
        self,
        meshes: Meshes,
        *,
        topology: Literal["template", "input"] = "template",
        **place: Unpack[MeshKeywords],
    ) -> list[Mesh]:
        """Encode and decode meshes.

        Args:
            meshes: one or several files, ``Mesh`` objects or arrays.
            topology: ``"template"`` returns the template's triangles, in millimeters;
                ``"input"`` deforms registered meshes, which keep their own vertices and units.
            place: ``units``, ``align`` and ``landmarks``, as in ``MeshModel``.

        Returns:
            M meshes.

        Raises:
            ValueError: if units are missing, a mesh is damaged or in the wrong place, or
                ``topology`` is ``"input"`` and a mesh was not registered.
        """
        placed = self._place(meshes, **place)
        codes = self._encode(placed)
        return in_topology(topology, placed, self.synthesize(codes.identity, codes.expression))

    def neutralize(
        self,
        meshes: Meshes,
        *,
        topology: Literal["template", "input"] = "template",
        **place: Unpack[MeshKeywords],
    ) -> list[Mesh]:
        """Return the neutral faces of M meshes, from z_id only, in millimeters or as ``topology``.

        Arguments and errors are those of ``reconstruct``.
        """
        placed = self._place(meshes, **place)
        return in_topology(topology, placed, self.synthesize(self._encode(placed).identity))

    def transfer_expression(
        self,
        source: Meshes,
        target: Meshes,
        *,
        topology: Literal["template", "input"] = "template",
        **place: Unpack[MeshKeywords],
    ) -> list[Mesh]:
        """Combine the identity of ``target`` with the expression of ``source``.

        Args:
            source: one mesh for all targets, or one per target.
            target: one or several.
            topology: ``"template"`` returns the template's triangles, in millimeters;
                ``"input"`` deforms registered targets, which keep their own vertices and units.
            place: ``units``, ``align`` and ``landmarks`` of both, as in ``MeshModel``.

        Returns:
            One mesh per target.

        Raises:
            ValueError: if the numbers of meshes do not match, units are missing, or a mesh is
                damaged or in the wrong place.
        """
        expression = self.encode_expression(source, **place)
        placed = self._place(target, **place)
        identity = self._encode(placed).identity
        if len(expression) not in (1, len(identity)):
            raise ValueError(
                f"source must be one mesh or one per target; got {len(expression)} for "
                f"{len(identity)} targets"
            )
        faces = self.synthesize(identity, expression.expand(len(identity), -1))
        return in_topology(topology, placed, faces)

    def interpolate(
        self,
        a: Meshes,
        b: Meshes,
        steps: int,
        *,
        what: Literal["expression", "identity"] = "expression",
        **place: Unpack[MeshKeywords],
    ) -> list[Mesh]:
        """Interpolate one code from mesh ``a`` to mesh ``b``; the other code stays that of ``a``.

        Args:
            a: one mesh.
            b: one mesh.
            steps: number of meshes, both ends included.
            what: the code to interpolate.
            place: ``units``, ``align`` and ``landmarks`` of both, as in ``MeshModel``.

        Returns:
            ``steps`` meshes, millimeters.

        Raises:
            ValueError: if ``steps`` is below 2, ``what`` is unknown, or an end is several meshes.
        """
        if what not in ("expression", "identity"):
            raise ValueError(f"what must be 'expression' or 'identity', got {what!r}")
        if steps < 2:
            raise ValueError(f"steps must be 2 or more, because both ends count; got {steps}")
        ends = [self.encode(mesh, **place) for mesh in (a, b)]
        if any(len(end.identity) != 1 for end in ends):
            raise ValueError("interpolate takes one mesh for each end")
        codes = {
            name: getattr(ends[0], name).expand(steps, -1) for name in ("identity", "expression")
        }
        weight = torch.linspace(0, 1, steps, dtype=torch.float32, device=self.device)[:, None]
        codes[what] = torch.lerp(codes[what], getattr(ends[1], what).expand(steps, -1), weight)
        return self.synthesize(codes["identity"], codes["expression"])

    @torch.no_grad()
    def synthesize(self, identity: Tensor, expression: Tensor | None = None) -> list[Mesh]:
        """Decode codes to meshes, millimeters; without an expression code, the identity face.

        Args:
            identity: z_id of M faces, or of one, (M, L).
            expression: z_exp of M faces, or of one, (M, L).

        Returns:
            M meshes with the template's triangles.

        Raises:
            ValueError: if a code has another size, or their numbers do not match.
        """
        identity = self._checked_codes(identity, "identity")
        with self._exact():
            faces = self.vae.decode_identity(identity).float() * self.scale + self.template_mm
            if expression is not None:
                expression = self._checked_codes(expression, "expression")
                if 1 not in (len(identity), len(expression)) and len(identity) != len(expression):
                    raise ValueError(
                        "identity and expression must have the same number of codes, or one of "
                        f"them one code; got {len(identity)} and {len(expression)}"
                    )
                faces = faces + self.vae.decode_expression(expression).float() * self.scale
        triangles = self.triangles.long()
        return [Mesh(vertices, "mm", triangles) for vertices in faces]

    @torch.no_grad()
    def decode_samples(self, codes: Tensor) -> Tensor:
        """Decode joint codes, identity then expression, to meshes in mm, (M, N, 3)."""
        parts = codes.to(self.dtype).split(
            [self.architecture[f"{p}_dim"] for p in ("identity", "expression")], 1
        )
        with self._exact():
            return self.decode(*parts)[0]

    def _checked_codes(self, codes: Tensor, part: Literal["expression", "identity"]) -> Tensor:
        codes = torch.as_tensor(codes, device=self.device, dtype=self.dtype)
        size = self.architecture[f"{part}_dim"]
        if codes.ndim != 2 or codes.shape[1] != size:
            raise ValueError(f"{part} must be codes (M, {size}), got {tuple(codes.shape)}")
        return codes
