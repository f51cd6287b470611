"""Training of StyleGAN2, of its inversion, and of SimCLR on the codes."""

from facezoo.models.latent_simclr.train.command import PARTS, run

__all__ = ["PARTS", "run"]
