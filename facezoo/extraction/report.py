"""What an extraction did, and how long each stage of it took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STAGES = ("decode", "wait", "detect", "align", "encode", "write")


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did."""

    output: Path
    rows: int
    images: int
    """Photographs, with and without faces, readable and not."""
    without_face: int
    unreadable: list[tuple[str, str]]
    """Names and reasons."""
    resumed: int
    """Photographs that an earlier, interrupted run had done."""
    seconds: dict[str, float]
    """This run's time by stage. ``decode`` is the sum over the threads, and goes on beside the
    others; ``wait`` is how long the others stood still for it."""
    images_per_second: float
    """Photographs of this run over its whole time, without loading the model."""

    def shares(self) -> dict[str, float]:
        """Each stage's part of the work of this run, in [0, 1]; waiting is no work."""
        busy = {stage: time for stage, time in self.seconds.items() if stage != "wait"}
        total = sum(busy.values()) or 1.0
        return {stage: time / total for stage, time in busy.items()}

    def __repr__(self) -> str:
        resumed = f", {self.resumed} of them by an earlier run" if self.resumed else ""
        return (
            f"{self.output}: {self.rows} rows from {self.images} photographs{resumed}; "
            f"{self.without_face} without a face, {len(self.unreadable)} unreadable; "
            f"{self.images_per_second:.1f} photographs/s"
        )

    def profile(self) -> str:
        """The stages as lines of text."""
        shares = self.shares().items()
        lines = [f"  {name:7} {self.seconds[name]:9.2f} s {share:6.1%}" for name, share in shares]
        waited = self.seconds["wait"]
        return "\n".join([*lines, f"  waited  {waited:9.2f} s for decoding, which runs beside"])
