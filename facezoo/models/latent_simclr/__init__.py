"""StyleGAN2, its inversion by the Feature-Style encoder, and SimCLR on W+ codes."""

from facezoo.models.latent_simclr.discriminator import StyleGANDiscriminator
from facezoo.models.latent_simclr.feature_style import FeatureStyleEncoder
from facezoo.models.latent_simclr.inverter import Inversion, StyleGANInverter
from facezoo.models.latent_simclr.model import LatentSimCLR
from facezoo.models.latent_simclr.simclr import CodeEncoder, ProjectionHead
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator

__all__ = [
    "CodeEncoder",
    "FeatureStyleEncoder",
    "Inversion",
    "LatentSimCLR",
    "ProjectionHead",
    "StyleGANDiscriminator",
    "StyleGANGenerator",
    "StyleGANInverter",
]
