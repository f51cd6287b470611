"""Run notebooks, and write their outputs into them, without times and progress bars.

    python docs/run_notebooks.py [NOTEBOOK ...]

Needs nbclient and ipykernel. Without arguments, all notebooks in ``examples`` run.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

LARGE = 60_000
"""Characters."""
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def main(paths: list[Path]) -> None:
    """Run notebooks in the folder of the examples, and save them."""
    for path in paths or sorted(EXAMPLES.glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,
            resources={"metadata": {"path": str(EXAMPLES)}},
        ).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":  # stderr has progress bars
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
                for output in cell.outputs:
                    compress(output.get("data", {}))
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
        print(path.name, f"{path.stat().st_size / 1e3:.0f} kB")


def compress(data: dict[str, str]) -> None:
    """Replace a large PNG image among the data of an output by JPEG."""
    if len(data.get("image/png", "")) > LARGE:
        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png"))))
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
