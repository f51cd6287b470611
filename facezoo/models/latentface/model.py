"""LatentFace: texture, shape, light and view of a face, and identity apart from expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from facezoo.geometry.camera import grid_triangles
from facezoo.geometry.textured_mesh import TexturedMesh
from facezoo.models.base import Images, Options
from facezoo.models.decoding import check_pairs, check_places
from facezoo.models.latentface.latents import LatentFaceEncoding, Latents
from facezoo.models.latentface.renderer import BORDER
from facezoo.models.latentface.stages import LatentFaceStages
from facezoo.preprocess.pipeline import OnMissing, Which
from facezoo.results import Faces

Make = Callable[[Latents], Tensor]


class LatentFace(LatentFaceStages):
    """A 3D-aware autoencoder, and diffusion from the code of a face to that of its identity.

    Source: He et al., "LatentFace", Sec. 2 and 5. The arguments are those of ``LatentFaceStages``;
    their defaults are the published weights' widths with the paper's sampler.

    Identity is drawn by a sampler that starts from noise. The noise is the same at all times, so a
    photograph always gives the same identity; ``identity_latents`` takes other noise.
    """

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> LatentFaceEncoding:
        """Everything that this model reads from a face; see ``encode_expression``.

        Returns:
            Texture, shape, light and view, expression and identity where the model has a second
            stage, and the faces.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        latents, found = self._factors(images, options)
        named = {key: getattr(latents, key) for key in ("texture", "shape", "light", "view")}
        identity = expression = None
        if self.texture_diffusion is not None:
            identity = self._made(latents, batch_size, _codes_of(self.identity_latents))
            expression = torch.cat([latents.texture, latents.shape], -1) - identity
            expression = self.without_identity(expression)
        return LatentFaceEncoding(
            expression=expression, identity=identity, pose=latents.view, faces=found, **named
        )

    def encode_factors(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Latents:
        """Texture, shape, light and view of the faces in photographs; see ``encode_expression``.

        Any of them may be exchanged before ``draw`` makes pictures of them again, with gradients if
        wanted.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._factors(images, options)[0]

    @torch.no_grad()
    def depth(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Depth maps of the faces, seen from the front; see ``reconstruct``.

        Returns:
            Distance from the camera, which has no unit, in [0.9, 1.1], (F, S, S).
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._pictures(images, options, self.decode_depth)

    @torch.no_grad()
    def normals(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Normals of the depth maps, **away** from the camera; see ``depth``.

        Returns:
            x to the right, y down, z away from the camera, nearly unit length, (F, S, S, 3).
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._pictures(
            images, options, lambda latents: self.renderer.normals(self.decode_depth(latents))
        )

    @torch.no_grad()
    def albedo(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces' colours without light, from the front: RGB in [0, 1]; see ``reconstruct``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self.to_unit(self._pictures(images, options, self.decode_albedo))

    @torch.no_grad()
    def relight(
        self,
        images: Images,
        light: Tensor | Sequence[float],
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces in another light; see ``reconstruct``.

        Args:
            images: one photograph or several.
            light: ambient, diffuse, dx, dy, each in [-1, 1], (4,). Ambient and diffuse of -1 are
                dark; the light travels to the right and down for dx and dy above 0.
            faces: as in ``reconstruct``, like all that follow.
            on_missing: what becomes of a photograph without a face.
            aligned: whether the images are crops in the model's template already.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ValueError: if ``light`` has another shape.
        """
        given = torch.as_tensor(light)
        if tuple(given.shape) != (4,):
            raise ValueError(
                f"light must be (4,), ambient, diffuse, dx, dy, got {tuple(given.shape)}"
            )
        options = Options(faces, on_missing, aligned, batch_size, progress)

        def make(latents: Latents) -> Tensor:
            shone = given.to(latents.light).expand(len(latents), 4)
            return self.draw(replace(latents, light=shone)).image

        return self.to_unit(self._pictures(images, options, make))

    @torch.no_grad()
    def rotate(
        self,
        images: Images,
        yaw: float,
        pitch: float = 0.0,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces turned away from the front; see ``relight``.

        Args:
            images: one photograph or several.
            yaw: radians; above 0 the nose goes to the left of the image.
            pitch: radians; above 0 the nose goes down.
            faces: as in ``reconstruct``, like all that follow.
            on_missing: what becomes of a photograph without a face.
            aligned: whether the images are crops in the model's template already.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)

        def make(latents: Latents) -> Tensor:
            view = latents.view.new_tensor([pitch, yaw, 0, 0, 0, 0]).expand(len(latents), 6)
            return self.draw(replace(latents, view=view)).image

        return self.to_unit(self._pictures(images, options, make))

    @torch.no_grad()
    def transfer_expression(
        self,
        source: Images,
        target: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Faces of ``target`` with the expression of ``source``: Z_id + γ_exp, drawn.

        Args:
            source: photographs whose γ_exp is taken: one, or as many faces as ``target`` has.
            target: photographs whose Z_id, light and view are taken.
            faces: see ``encode_expression``, as all that follow.
            on_missing: what becomes of a photograph without a face.
            aligned: whether the images are crops in the model's template already.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1] in the model's template, (F, 3, S, S).

        Raises:
            ValueError: if the numbers of faces do not go together, such as no source face for
                some targets, or if some of several pairs lack a face and ``on_missing`` is "skip".
                Without a target face there is no row.
            UnsupportedError: if this model has no diffusion.
        """
        if "transfer_expression" in self.absent:
            self.refuse("transfer_expression")
        options = Options(faces, on_missing, aligned, batch_size, progress)
        (given, of_source), (kept, of_target) = (
            self._factors(images, options) for images in (source, target)
        )
        check_places(source, target, of_source, of_target)
        check_pairs(len(given), len(kept))
        identity_codes = _codes_of(self.identity_latents)
        expression = torch.cat([given.texture, given.shape], -1)
        expression = expression - self._made(given, batch_size, identity_codes)
        mixed = self._made(kept, batch_size, identity_codes) + expression
        texture, shape = mixed.chunk(2, -1)
        latents = replace(kept, texture=texture, shape=shape)
        return self.to_unit(self._made(latents, batch_size, lambda z: self.draw(z).image))

    @torch.no_grad()
    def to_mesh(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> list[TexturedMesh]:
        """The faces as meshes with their albedo as texture, to be saved as ``.obj`` or ``.ply``.

        A mesh is the whole depth map, background and all, less its fixed borders. It has no unit:
        the face was 1 away from the camera, and the origin is where it turns.
        """
        if on_missing == "nan":
            raise ValueError("to_mesh has no mesh of nothing; on_missing must be 'raise' or 'skip'")
        options = Options(faces, on_missing, aligned, batch_size, progress)
        latents, _ = self._factors(images, options)
        depth = self._made(latents, batch_size, self.decode_depth).cpu()
        albedo = self.to_unit(self._made(latents, batch_size, self.decode_albedo)).cpu()
        return [self._mesh(*maps) for maps in zip(depth, albedo, strict=True)]

    def _mesh(self, depth: Tensor, albedo: Tensor) -> TexturedMesh:
        """The mesh of one depth map (S, S) and its albedo (3, S, S)."""
        size = len(depth)
        points = self.renderer.camera.unproject(depth[None])[0, :, BORDER:-BORDER]
        turned = points * points.new_tensor([1, -1, -1]) + points.new_tensor([0, 0, 1])
        row, column = torch.meshgrid(
            torch.arange(size, device=depth.device),
            torch.arange(BORDER, size - BORDER, device=depth.device),
            indexing="ij",
        )
        return TexturedMesh(
            vertices=turned.flatten(0, 1),
            triangles=grid_triangles(size, size - 2 * BORDER),
            pixels=torch.stack([column, row], -1).flatten(0, 1).float(),
            texture=albedo,
        )

    def _factors(self, images: Images, options: Options) -> tuple[Latents, Faces | None]:
        rows, found = self._encode(images, ["encode_factors"], options)
        return Latents.unpacked(rows["encode_factors"]), found

    def _pictures(self, images: Images, options: Options, make: Make) -> Tensor:
        return self._made(self._factors(images, options)[0], options.batch_size, make)

    def _made(self, latents: Latents, batch_size: int, make: Make) -> Tensor:
        """See ``made``; ``make`` takes latents."""
        return self.made(latents.packed(), batch_size, lambda rows: make(Latents.unpacked(rows)))


def _codes_of(change: Callable[[Latents], Latents]) -> Make:
    """Texture and shape codes side by side, (B, 2 D), of changed latents."""

    def make(latents: Latents) -> Tensor:
        changed = change(latents)
        return torch.cat([changed.texture, changed.shape], -1)

    return make
