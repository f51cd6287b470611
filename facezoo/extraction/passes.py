"""Passes with several outputs: what is finished where a kill came before all parts were removed.

The parts of the outputs are removed one after the other, when every output is complete. Those that
go last say until then what the others are, so that the same call knows these again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from facezoo.extraction.report import ExtractionReport
from facezoo.extraction.resume import finished_in_pass, in_progress


def check_free(targets: Sequence[Path]) -> None:
    """Refuse complete outputs, unless this may be a pass that was killed.

    Raises:
        FileExistsError: if there is an output, and no parts of any.
    """
    there = [target for target in targets if target.exists()]
    if there and not any(map(in_progress, targets)):
        raise FileExistsError(_refusal(there[0]))


def tell(
    reports: Sequence[ExtractionReport], runs: Mapping[Path, Mapping[str, Any]], names: list[str]
) -> dict[str, Any]:
    """What to keep of complete outputs, for ``finished_before``."""
    return {
        str(report.output.resolve()): {
            "run": _mark(runs[report.output], names),
            "file": _stamp(report.output),
            "rows": report.rows,
            "without_face": report.without_face,
            "unreadable": report.unreadable,
        }
        for report in reports
    }


def finished_before(
    runs: Mapping[Path, Mapping[str, Any]], names: list[str]
) -> dict[Path, ExtractionReport]:
    """Reports of those outputs that a pass like this one had finished when it was killed.

    Args:
        runs: what decides the rows of each output.
        names: all photographs.

    Raises:
        FileExistsError: if an output is complete and is not from such a pass.
    """
    told: dict[str, Any] = {}
    for target in runs:
        told |= finished_in_pass(target)
    reports = {}
    for target, run in runs.items():
        if not target.exists() or in_progress(target):
            continue
        said = told.get(str(target.resolve()), {})
        if said.get("run") != _mark(run, names) or said.get("file") != _stamp(target):
            raise FileExistsError(_refusal(target))
        unreadable = [(name, reason) for name, reason in said["unreadable"]]
        counts = said["rows"], len(names), said["without_face"]
        reports[target] = ExtractionReport(target, *counts, unreadable, len(names), {}, 0.0)
    return reports


def _mark(run: Mapping[str, Any], names: list[str]) -> str:
    return sha256(json.dumps([run, names]).encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _refusal(target: Path) -> str:
    how = "pass --overwrite (overwrite=True) to make it again"
    return f"{target} is there already, and complete; {how}"
