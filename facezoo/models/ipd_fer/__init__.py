"""IPD-FER (Jiang & Deng): expression disentangled from identity and head pose."""

from facezoo.models.ipd_fer.model import IPDFER

__all__ = ["IPDFER"]
