"""adv3d (Gu, Pears & Sun): adversarial disentanglement of identity and expression of 3D faces."""

from facezoo.models.adv3d.model import Adv3D

__all__ = ["Adv3D"]
