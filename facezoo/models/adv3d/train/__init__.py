"""Training of adv3d: ours on ICT-3D (``ict``) and the paper's (``paper``)."""

from facezoo.models.adv3d.train.command import run
from facezoo.models.adv3d.train.recipes import RECIPES

__all__ = ["RECIPES", "run"]
