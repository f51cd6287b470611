"""adv3d (Gu, Pears & Sun): identity and expression of 3D face meshes, told apart adversarially."""

from facezoo.models.adv3d.model import Adv3D

__all__ = ["Adv3D"]
