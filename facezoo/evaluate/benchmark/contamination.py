"""Whether evaluation data were in training, as far as cards tell."""

from __future__ import annotations

import re
from collections.abc import Sequence

from facezoo.evaluate.benchmark.splits import FERPLUS, LFW, LONDON

NAMES = {
    FERPLUS: re.compile(r"(?<![a-z])FER(\+|[ _-]?(Plus|2013))", re.IGNORECASE),
    LFW: re.compile(r"(?<![a-z])LFW(?![a-z])|Labell?ed Faces in the Wild", re.IGNORECASE),
    LONDON: re.compile(r"(?<![a-z])London(?![a-z])", re.IGNORECASE),
}
"""How texts, and names of files in them, name the data of an evaluation; its split is the last word
of the key."""
SPLITS = re.compile(r"\b(train|val|test)\b", re.IGNORECASE)
CLEAN, PART, SEEN, UNKNOWN = "no", "train split", "yes", "not stated"


def contamination(trained_on: Sequence[str] | None) -> dict[str, str]:
    """For each evaluation, whether its photographs were trained on.

    Args:
        trained_on: a text per data set, as the card has it; None where nothing is stated.

    Returns:
        By evaluation: ``"no"`` where no text names the data set, ``"train split"`` where every text
        that does says train and not the split of the evaluation, else ``"yes"``.
    """
    if trained_on is None:
        return dict.fromkeys(NAMES, UNKNOWN)
    found = {}
    for evaluation, pattern in NAMES.items():
        split = evaluation.split()[-1]
        named = [_splits(text, pattern) for text in trained_on if pattern.search(text)]
        clean = all(splits == {"train"} for splits in named) and split in ("val", "test")
        found[evaluation] = CLEAN if not named else PART if clean else SEEN
    return found


def _splits(text: str, pattern: re.Pattern[str]) -> set[str]:
    """The splits that a text names, of the data set that it names."""
    return {word.lower() for word in SPLITS.findall(pattern.sub("", text))}
