"""One table over every family of photographs, and over representations of your own."""

from facezoo.evaluate.benchmark.entrants import Own
from facezoo.evaluate.benchmark.run import Results, benchmark

__all__ = ["Own", "Results", "benchmark"]
