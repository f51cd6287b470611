"""Features of many photographs in one file, in bounded memory, and resumable."""

from facezoo.extraction.joining import join_files
from facezoo.extraction.report import ExtractionReport
from facezoo.extraction.run import extract, extract_each

__all__ = ["ExtractionReport", "extract", "extract_each", "join_files"]
