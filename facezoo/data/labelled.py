"""Former spelling of ``facezoo.data.labeled``, so that code for version 0.2.0 still runs."""

from facezoo.data.labeled import LabeledImages as LabelledImages
from facezoo.data.labeled import read_labeled as read_labelled

__all__ = ["LabelledImages", "read_labelled"]
