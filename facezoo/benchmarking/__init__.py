"""One table over every family of photographs, and over representations of your own."""

from facezoo.benchmarking.entrants import Own
from facezoo.benchmarking.run import Results, benchmark

__all__ = ["Own", "Results", "benchmark"]
