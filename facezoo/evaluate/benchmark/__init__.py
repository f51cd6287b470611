"""One set of protocols for all models of images, and for encoders of your own."""

from facezoo.evaluate.benchmark.encoders import Own
from facezoo.evaluate.benchmark.run import Results, benchmark

__all__ = ["Own", "Results", "benchmark"]
