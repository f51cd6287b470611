"""Count the function calls inside facezoo that a journey makes, and the files that they visit.

    python benchmarks/calls.py encode examples/portraits/grace_hopper.jpg
    python benchmarks/calls.py extract examples/portraits/grace_hopper.jpg --list

A call is a Python frame whose code is in the package, in any thread. Comprehensions and resumed
generators count as well. ``first`` is the first encoding of a loaded model, ``encode`` the second
one, ``extract`` the extraction of one image after another.
"""

import argparse
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import facezoo

PACKAGE = str(Path(facezoo.__file__).parent) + "/"
JOURNEYS = ("first", "encode", "extract")


def count(function: Callable[[], object]) -> Counter[tuple[str, str]]:
    """Count calls by file and function while ``function`` runs."""
    calls: Counter[tuple[str, str]] = Counter()

    def profile(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            name = getattr(code, "co_qualname", code.co_name)
            calls[code.co_filename.removeprefix(PACKAGE), name] += 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def calls_of(journey: str, image: str, name: str = "ipd-fer") -> Counter[tuple[str, str]]:
    """Count the calls of a journey through a checkpoint."""
    model = facezoo.load(name, device="cpu")
    first = count(lambda: model.encode_expression(image))
    if journey == "first":
        return first
    if journey == "encode":
        return count(lambda: model.encode_expression(image))
    with tempfile.TemporaryDirectory() as folder:
        facezoo.extract(image, Path(folder) / "warm.csv", model=model)
        return count(lambda: facezoo.extract(image, Path(folder) / "f.csv", model=model))


def by_file(calls: Counter[tuple[str, str]]) -> Counter[str]:
    """Sum the calls of each file."""
    files: Counter[str] = Counter()
    for (file, _), number in calls.items():
        files[file] += number
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journey", choices=JOURNEYS)
    parser.add_argument("image")
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--list", action="store_true", help="print every function")
    options = parser.parse_args()
    calls = calls_of(options.journey, options.image, options.model)
    files = by_file(calls)
    print(f"{options.journey}: {calls.total()} calls in {len(files)} files")
    for file, number in files.most_common():
        print(f"{number:6} {file}")
        if options.list:
            inside = {name: n for (f, name), n in calls.most_common() if f == file}
            for name, n in inside.items():
                print(f"{n:12} {name}")


if __name__ == "__main__":
    main()
