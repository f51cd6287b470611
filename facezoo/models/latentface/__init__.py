"""LatentFace (He et al.): 3D factors of a face, and identity and expression of its codes."""

from facezoo.models.latentface.model import LatentFace

__all__ = ["LatentFace"]
