"""Networks of LatentFace and their outputs for prepared crops."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from facezoo.geometry.rasterize import Renderer
from facezoo.geometry.shading import Light
from facezoo.hub.card import Preprocessing
from facezoo.models.base import check_shape
from facezoo.models.capabilities import constructor_arguments
from facezoo.models.decoding import DecodingModel
from facezoo.models.identity_removal import IdentityRemoval, basis_of
from facezoo.models.latentface.diffusion import RepresentationDiffusion
from facezoo.models.latentface.latents import Latents
from facezoo.models.latentface.networks import AutoEncoder, ConfidenceNetwork, NumberEncoder
from facezoo.models.latentface.renderer import (
    FaceRenderer,
    Rendering,
    depth_from_output,
    view_from_output,
)


class LatentFaceStages(DecodingModel):
    """Stages of ``LatentFace`` on tensors; gradients are kept.

    Args:
        size: side of the crops, 64 or 128 pixels.
        width: channels of the first layer of the autoencoders and of the confidence network.
        number_width: channels of the first layer of the light and view encoders.
        code_dim: D of Z_t and Z_s.
        unet_width: channels of the denoising U-Nets.
        map_size: 1 for U-Nets on 1 x 1 maps, as published; 3 for 3 x 3 maps padded with zeros, as
            in the paper.
        sampler: ``"ddim"``, or ``"diffusers-0.14"`` as in the published results.
        code_limit: largest absolute entry of the identity codes.
        diffusion: add the second stage, which identity and expression need.
        confidence: add the confidence network of the losses.
        expression_directions: directions of the codes that show expression (ours), see
            ``neutral_latents``; 0 takes the identity codes for neutral, as in the paper.
        renderer: see ``facezoo.geometry.rasterize.rasterize``; independent of the weights.
    """

    model_name: ClassVar[str | None] = "latentface"
    networks = (
        *("texture_autoencoder.encoder", "shape_autoencoder.encoder"),
        *("light_encoder", "view_encoder", "texture_diffusion", "shape_diffusion"),
    )
    unexported = ("reconstruct", "neutralize", "frontalize")

    def __init__(
        self,
        size: int = 64,
        width: int = 64,
        number_width: int = 32,
        code_dim: int = 256,
        unet_width: int = 128,
        map_size: int = 1,
        sampler: str = "ddim",
        code_limit: float = 1.0,
        diffusion: bool = True,
        confidence: bool = True,
        expression_directions: int = 0,
        renderer: Renderer = "auto",
    ) -> None:
        super().__init__()
        self.architecture = constructor_arguments(locals(), leave_out="renderer")
        self.preprocessing = Preprocessing(template="facenet-loose", size=size)
        self.num_features = 2 * code_dim
        self.renderer = FaceRenderer(size, renderer)
        self.texture_autoencoder = AutoEncoder(3, size, width, code_dim, tanh=True)
        self.shape_autoencoder = AutoEncoder(1, size, width, code_dim)
        self.light_encoder = NumberEncoder(4, size, number_width)
        self.view_encoder = NumberEncoder(6, size, number_width)
        self.confidence_network = ConfidenceNetwork(size, width) if confidence else None
        self.texture_diffusion = self.shape_diffusion = None
        if diffusion:
            arguments = (code_dim, unet_width, map_size, sampler, code_limit)
            self.texture_diffusion = RepresentationDiffusion(*arguments, seed=0)
            self.shape_diffusion = RepresentationDiffusion(*arguments, seed=1)
        self.expression_removal = None
        if expression_directions:
            self.expression_removal = IdentityRemoval(self.num_features, expression_directions)
        absent: dict[str, str] = {}
        if not diffusion:
            reason = "it was built without the second stage (diffusion=False)"
            names = ("encode_identity", "encode_expression", "neutralize", "transfer_expression")
            absent |= dict.fromkeys(names, reason)
        if not confidence:
            absent["confidence"] = "it was built without the confidence network (confidence=False)"
        self.absent = absent

    # --- codes ------------------------------------------------------------------------------------

    def embed_latents(self, images: Tensor) -> Latents:
        """Compute texture, shape, light and view of faces (Sec. 2.2).

        Args:
            images: aligned, normalized crops, (B, 3, S, S).

        Returns:
            Z_t, Z_s, Z_l and Z_p.

        Raises:
            ValueError: if ``images`` has another shape.
        """
        check_shape(images, self.input_shape)
        return Latents(
            self.texture_autoencoder.encode(images),
            self.shape_autoencoder.encode(images),
            self.light_encoder(images),
            view_from_output(self.view_encoder(images)),
        )

    def embed_factors(self, images: Tensor) -> Latents:
        """Return ``embed_latents``."""
        return self.embed_latents(images)

    def identity_latents(
        self,
        latents: Latents,
        texture_noise: Tensor | None = None,
        shape_noise: Tensor | None = None,
    ) -> Latents:
        """Replace texture and shape with the identity codes Z_id (Sec. 2.4).

        Args:
            latents: latents of B faces.
            texture_noise: initial noise of the sampler, (B, D); None for the model's own, with
                which a face always gets the same codes.
            shape_noise: initial noise for the shape.

        Returns:
            Latents with Z_id as texture and shape; light and view are unchanged.

        Raises:
            UnsupportedError: if this model has no diffusion.
        """
        if self.texture_diffusion is None or self.shape_diffusion is None:
            self.reject("encode_identity")
        return replace(
            latents,
            texture=self.texture_diffusion(latents.texture.to(self.dtype), texture_noise),
            shape=self.shape_diffusion(latents.shape.to(self.dtype), shape_noise),
        )

    def neutral_latents(self, latents: Latents) -> Latents:
        """Replace texture and shape with codes without expression.

        A model with ``expression_directions`` moves the codes along these to a neutral face, and
        everything else about the face stays. The paper's model has no such codes; there, the
        identity codes are neutral as far as the images of an identity are on average.

        Args:
            latents: latents of B faces.

        Returns:
            Latents with neutral texture and shape; light and view are unchanged.

        Raises:
            UnsupportedError: if this model has neither the directions nor a diffusion.
        """
        if self.expression_removal is None:
            return self.identity_latents(latents)
        texture, shape = self.expression_removal(latents.codes).chunk(2, -1)
        return replace(latents, texture=texture, shape=shape)

    def expression_basis(self) -> tuple[Tensor, Tensor] | None:
        """Return the subspace of the ``expression_directions`` that γ_exp keeps to.

        Returns:
            Origin, (D,), and orthonormal basis, (D, R); None without such directions.
        """
        if self.expression_removal is None:
            return None
        directions = self.expression_removal.write.detach()
        zero = directions.new_zeros(1, self.num_features)
        return basis_of(self.without_identity(torch.cat([zero, directions])))

    def embed_identity(self, images: Tensor) -> Tensor:
        """Compute the identity Z_id of texture, then of shape (Sec. 3.3), (B, 2 D).

        Raises:
            ValueError: as ``embed_latents``.
            UnsupportedError: if this model has no diffusion.
        """
        return self.identity_latents(self.embed_latents(images)).codes

    def embed_expression(self, images: Tensor) -> Tensor:
        """Compute the expression γ_exp = Z_exp - Z_id of texture, then of shape, (B, 2 D).

        Source: Sec. 2.3. A model with ``expression_directions`` subtracts its neutral codes, see
        ``neutral_latents``. Errors are those of ``embed_identity``.
        """
        latents = self.embed_latents(images)
        return latents.codes - self.neutral_latents(latents).codes

    def embed_pose(self, images: Tensor) -> Tensor:
        """Compute the view Z_p, (B, 6), of prepared crops, (B, 3, S, S)."""
        check_shape(images, self.input_shape)
        return view_from_output(self.view_encoder(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return ``embed_expression``, under timm's name."""
        return self.embed_expression(images)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct prepared crops, (B, 3, S, S)."""
        return self.reconstruct_crops(images)

    # --- images of latents ------------------------------------------------------------------------

    def decode_depth(self, latents: Latents) -> Tensor:
        """Decode canonical depth maps in [0.9, 1.1], float32, (B, S, S)."""
        codes = latents.shape.to(self.dtype)
        return depth_from_output(self.shape_autoencoder.decode(codes).float())

    def decode_albedo(self, latents: Latents) -> Tensor:
        """Decode canonical albedo in [-1, 1], float32, (B, 3, S, S)."""
        return self.texture_autoencoder.decode(latents.texture.to(self.dtype)).float()

    def draw(self, latents: Latents, flip: bool = False) -> Rendering:
        """Render faces, float32: Î of eq. (1), or with ``flip`` Î' of eq. (2)."""
        depth, albedo = self.decode_depth(latents), self.decode_albedo(latents)
        if flip:
            depth, albedo = depth.flip(-1), albedo.flip(-1)
        light = Light.from_parameters(latents.light.float())
        return self.renderer.render(depth, albedo, light, latents.view.float())

    def reconstruct_both(self, images: Tensor) -> tuple[Rendering, Rendering]:
        """Render the reconstructions of eq. (1) and (2) of prepared crops, (B, 3, S, S)."""
        latents = self.embed_latents(images)
        return self.draw(latents), self.draw(latents, flip=True)

    def reconstruct_crops(self, images: Tensor) -> Tensor:
        """Reconstruct faces from their latents: normalized crops, 0 outside the face.

        Shapes and errors are those of ``embed_latents``.
        """
        return self.draw(self.embed_latents(images)).image

    def frontalize_crops(self, images: Tensor) -> Tensor:
        """Render faces from the front in their own light; see ``reconstruct_crops``."""
        latents = self.embed_latents(images)
        return self.draw(replace(latents, view=torch.zeros_like(latents.view))).image

    def neutralize_crops(self, images: Tensor) -> Tensor:
        """Render faces from neutral codes in their own view and light; see ``neutral_latents``.

        Raises:
            UnsupportedError: if this model has no diffusion.
        """
        if "neutralize" in self.absent:
            self.reject("neutralize")
        return self.draw(self.neutral_latents(self.embed_latents(images))).image

    def confidence(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute σ_p and σ_f of prepared crops; see ``ConfidenceNetwork.forward``.

        Raises:
            UnsupportedError: if this model has no confidence network.
        """
        check_shape(images, self.input_shape)
        if self.confidence_network is None:
            self.reject("confidence")
        return self.confidence_network(images)
