"""Features of many photographs in one file, in bounded memory, and resumable."""

from facezoo.extraction.report import ExtractionReport
from facezoo.extraction.run import extract

__all__ = ["ExtractionReport", "extract"]
