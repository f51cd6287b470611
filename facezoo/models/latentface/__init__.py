"""LatentFace (He et al.): texture, shape, light and view, and identity apart from expression."""

from facezoo.models.latentface.model import LatentFace

__all__ = ["LatentFace"]
