"""Extract the features of many images to a file, in constant memory, with resume."""

from facezoo.extraction.run import ExtractionReport, extract, extract_each
from facezoo.extraction.writers import join_files

__all__ = ["ExtractionReport", "extract", "extract_each", "join_files"]
