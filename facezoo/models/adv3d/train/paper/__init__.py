"""The paper's own training of adv3d, end to end on meshes of any of its data sets."""

from facezoo.models.adv3d.train.paper.command import run
from facezoo.models.adv3d.train.paper.recipes import RECIPES

__all__ = ["RECIPES", "run"]
