"""LatentFace: 3D factors of a face, and identity and expression of its codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from facezoo.errors import NoFaceError
from facezoo.geometry.camera import grid_triangles
from facezoo.geometry.textured_mesh import TexturedMesh
from facezoo.models.decoding import check_pairs, one_number
from facezoo.models.detail import relit
from facezoo.models.latentface.latents import LatentFaceEncoding, Latents
from facezoo.models.latentface.renderer import BORDER
from facezoo.models.latentface.stages import LatentFaceStages
from facezoo.preprocess.images import Images, as_list, no_face
from facezoo.preprocess.pipeline import ONE_FACE, ImageKeywords, ImageOptions

TRANSFER = 1.4
"""Default strength of ``transfer_expression`` of a model with ``expression_directions``. Without,
γ_exp holds identity too, and more of it would replace the target's."""


class LatentFace(LatentFaceStages):
    """3D-aware autoencoder with diffusion from the code of a face to the code of its identity.

    Source: He et al., "LatentFace", Sec. 2 and 5. The arguments are those of ``LatentFaceStages``;
    their defaults are the published weights' widths with the paper's sampler.

    A sampler computes the identity from noise. The noise is fixed, so an image always gives the
    same identity; ``identity_latents`` takes other noise.
    """

    keeps_detail = False
    provides = (
        *("encode", "encode_expression", "encode_identity", "encode_pose", "encode_factors"),
        *("reconstruct", "neutralize", "frontalize", "transfer_expression"),
        *("depth", "normals", "albedo", "relight", "rotate", "to_mesh"),
    )

    def encode(
        self,
        images: Images,
        *,
        compact: bool = False,
        **options: Unpack[ImageKeywords],
    ) -> LatentFaceEncoding:
        """Compute all features and codes of the faces in images; see ``encode_expression``.

        Returns:
            Texture, shape, light and view, the faces, and expression and identity if the model has
            a second stage.
        """

        def stage(crops: Tensor) -> dict[str, Any]:
            latents = self.embed_latents(crops)
            if self.texture_diffusion is None:
                return {"latents": latents}
            expression = latents.codes - self.neutral_latents(latents).codes
            return {
                "latents": latents,
                "identity": self.identity_latents(latents).codes,
                "expression": self.without_identity(expression),
            }

        features, faces = self._encode(images, stage, ImageOptions(**options), measured=True)
        latents: Latents = features["latents"]
        expression = features.get("expression")
        if compact and expression is not None:
            expression = self.compact_expression(expression)
        return LatentFaceEncoding(
            expression=expression,
            identity=features.get("identity"),
            pose=latents.view,
            faces=faces,
            texture=latents.texture,
            shape=latents.shape,
            light=latents.light,
            view=latents.view,
        )

    def encode_factors(self, images: Images, **options: Unpack[ImageKeywords]) -> Latents:
        """Compute texture, shape, light and view of the faces; see ``encode_expression``.

        Any of them may be exchanged before ``draw`` renders them, with gradients if required.
        """
        return self._encode(images, self.embed_latents, ImageOptions(**options))[0]

    def depth(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Compute frontal depth maps of the faces; see ``reconstruct``.

        Returns:
            Distance from the camera, which has no unit, in [0.9, 1.1], (F, S, S).
        """
        return self._decode(images, self.decode_depth, options)

    def normals(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Compute the normals of the depth maps, pointing **away** from the camera; see ``depth``.

        Returns:
            x to the right, y down, z away from the camera, nearly unit length, (F, S, S, 3).
        """

        def normals(latents: Latents) -> Tensor:
            return self.renderer.normals(self.decode_depth(latents))

        return self._decode(images, normals, options)

    def albedo(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Compute the frontal colors of the faces without light: RGB in [0, 1]."""
        return self.to_unit(self._decode(images, self.decode_albedo, options))

    def relight(
        self,
        images: Images,
        light: Tensor | Sequence[float],
        *,
        detail: bool = True,
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Show the faces in another light.

        Args:
            images: one image or several.
            light: ambient, diffuse, dx, dy, each in [-1, 1], (4,). Ambient and diffuse of -1 are
                dark; the light travels to the right and down for dx and dy above 0.
            detail: apply the ratio of the renderings in both lights to the crop, which keeps its
                detail; False returns the rendering in the other light.
            **options: see ``encode_expression``.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ValueError: if ``light`` has another shape, or a number that is not in [-1, 1].
        """
        parameters = torch.as_tensor(light, device="cpu")
        if tuple(parameters.shape) != (4,):
            raise ValueError(
                f"light must be (4,), ambient, diffuse, dx, dy, got {tuple(parameters.shape)}"
            )
        if not bool((parameters.abs() <= 1).all()):  # NaN is not either
            raise ValueError(
                f"light must be four numbers in [-1, 1], got {parameters.tolist()}; ambient and "
                "diffuse are brightest at 1"
            )

        def render(crops: Tensor) -> Tensor:
            latents = self.embed_latents(crops)
            other = parameters.to(latents.light).expand(len(latents), 4)
            after = self.to_unit(self.draw(replace(latents, light=other)).image.float())
            if not detail:
                return after
            before = self.to_unit(self.draw(latents).image.float())
            return relit(self.to_unit(crops.float()), before, after)

        return self._encode(images, render, ImageOptions(**options))[0]

    def rotate(
        self, images: Images, yaw: float, pitch: float = 0.0, **options: Unpack[ImageKeywords]
    ) -> Tensor:
        """Render the faces turned away from the front; see ``reconstruct``.

        Args:
            images: one image or several.
            yaw: radians; above 0 the nose turns to the left of the image.
            pitch: radians; above 0 the nose turns down.
            **options: see ``encode_expression``.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ValueError: if an angle is not one number from -π to π.
        """
        angles = [one_number("pitch", pitch), one_number("yaw", yaw)]
        for name, angle in zip(("pitch", "yaw"), angles, strict=True):
            if abs(angle) > math.pi:
                raise ValueError(
                    f"{name} is in radians, from -3.14 to 3.14, got {angle:g}; for degrees, pass "
                    f"math.radians({angle:g})"
                )

        def render(latents: Latents) -> Tensor:
            view = latents.view.new_tensor([*angles, 0, 0, 0, 0]).expand(len(latents), 6)
            return self.draw(replace(latents, view=view)).image

        return self.to_unit(self._decode(images, render, options))

    def transfer_expression(
        self,
        source: Images,
        target: Images,
        *,
        strength: float | None = None,
        detail: bool | None = None,
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Give the faces of ``target`` the expression of ``source``.

        The codes are the neutral ones of ``target`` plus γ_exp of ``source``.

        Args:
            source: images of γ_exp: one, or as many faces as ``target`` has.
            target: images of the face, its light and view.
            strength: factor on the difference of the two γ_exp: 0 for the target's own expression;
                more exaggerates it. None for 1.4, at which a redrawn face is as expressive as the
                source (``benchmarks/transfer.py``, LFW val), or for 1 if the model has no
                ``expression_directions``, as ``latentface.lfw``.
            detail: see ``neutralize``.
            **options: see ``encode_expression``; by default the largest face of each image.

        Returns:
            RGB crops in [0, 1] in the model's template, (F, 3, S, S); none without a target face.

        Raises:
            ValueError: if the numbers of faces do not match, if some of several pairs lack a face
                and ``on_missing`` is "skip", or if ``strength`` is not one number.
            UnsupportedError: if this model has no diffusion.
        """
        if "transfer_expression" in self.absent:
            self.reject("transfer_expression")
        if strength is None:
            strength = 1.0 if self.expression_removal is None else TRANSFER
        amount = one_number("strength", strength)

        def of_source(crops: Tensor) -> Tensor:
            latents = self.embed_latents(crops)
            return latents.codes - self.neutral_latents(latents).codes

        def of_target(crops: Tensor) -> dict[str, Any]:
            latents = self.embed_latents(crops)
            neutral = self.neutral_latents(latents).codes
            return {"crops": crops, "latents": latents, "neutral": neutral}

        def decode(rows: dict[str, Any]) -> Tensor:
            latents = rows["latents"]
            texture, shape = (latents.codes + rows["change"]).chunk(2, -1)
            after = self.draw(replace(latents, texture=texture, shape=shape)).image
            if not self._edits_crops(detail):
                return self.to_unit(after)
            return self.edited(rows["crops"], self.draw(latents).image, after)

        checked = ImageOptions(**(ONE_FACE | options))
        expression, targets = self._encode_pairs(source, target, (of_source, of_target), checked)
        check_pairs(len(expression), len(targets["neutral"]))
        own = targets["latents"].codes - targets["neutral"]
        rows = {**targets, "change": amount * (expression - own)}
        return self.decode_batched(rows, decode, checked.batch_size)

    def to_mesh(self, images: Images, **options: Unpack[ImageKeywords]) -> list[TexturedMesh]:
        """Compute meshes of the faces with their albedo as texture, for ``.obj`` or ``.ply`` files.

        A mesh shows the whole depth map with its background, without its fixed borders. It has no
        unit: the distance of the face from the camera is 1, and the origin is its center of
        rotation.

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
            ValueError: if ``on_missing`` is ``"nan"``.
        """
        if options.get("on_missing") == "nan":
            raise ValueError("to_mesh cannot return a mesh of NaN; use on_missing='skip'")

        def stage(crops: Tensor) -> dict[str, Tensor]:
            latents = self.embed_latents(crops)
            return {"depth": self.decode_depth(latents), "albedo": self.decode_albedo(latents)}

        sources = as_list(images)
        try:
            maps = self._encode(sources, stage, ImageOptions(**options))[0]
        except NoFaceError as error:
            raise no_face(error.missing, sources, ("skip", "aligned")) from None
        albedo = self.to_unit(maps["albedo"]).cpu()
        return [self._mesh(*pair) for pair in zip(maps["depth"].cpu(), albedo, strict=True)]

    def _mesh(self, depth: Tensor, albedo: Tensor) -> TexturedMesh:
        """Build the mesh of one depth map (S, S) and its albedo (3, S, S)."""
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
            triangles=grid_triangles(size, size - 2 * BORDER, depth.device),
            pixels=torch.stack([column, row], -1).flatten(0, 1).float(),
            texture=albedo,
        )

    def _decode(
        self, images: Images, decode: Callable[[Latents], Tensor], options: ImageKeywords
    ) -> Tensor:
        """Apply a function of latents to the faces of images."""
        return self._encode(
            images, lambda crops: decode(self.embed_latents(crops)), ImageOptions(**options)
        )[0]
