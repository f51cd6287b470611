"""Command of the face detector: ``facezoo train face-detector``."""

from __future__ import annotations

from facezoo.models.commands import TrainCommand
from facezoo.models.face_detector import train

TRAIN = TrainCommand(train.run, recipes=tuple(train.RECIPES))
