"""Training of LatentFace: autoencoders on images, then diffusion on several images per identity."""

from facezoo.models.latentface.train.command import run

__all__ = ["run"]
