"""What a file must be like to be committed: `python -m lossbook.book.habits FILE…`, which pre-commit runs."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from lossbook.book.scaffold.texts import UNWRITTEN

LARGEST_MB = 4.0
# Opening one of these can run what is in it, or it is somebody's model: data are arrays, networks are trained here.
REFUSED = {".bin", ".ckpt", ".joblib", ".onnx", ".pickle", ".pkl", ".pt", ".pth", ".safetensors"}
READ = {".ipynb", ".py", ".toml", ".yaml", ".yml"}


def problems(path: Path) -> list[str]:
    """What is wrong with a file, a sentence each: too large, a pickle or weights, TOML or YAML that does not parse, a
    notebook that was not executed in order or holds what changes from run to run, a place that `lossbook new-paper`
    made and nobody filled.
    """
    found = []
    if path.suffix in REFUSED:
        found.append("weights and pickles are not committed")
    try:
        megabytes = path.stat().st_size / 1e6
        if megabytes > LARGEST_MB:
            found.append(f"it has {megabytes:.1f} MB; at most {LARGEST_MB:g} MB are committed")
        if path.suffix in READ:
            found += _of_text(path.read_text(encoding="utf-8"), path.suffix)
    except KeyError as error:
        found.append(f"it cannot be read: it has no {error}")
    except (OSError, ValueError, TypeError) as error:
        found.append(f"it cannot be read: {' '.join(str(error).split())}")
    return found


def _of_text(text: str, suffix: str) -> list[str]:
    found = []
    if missing := re.search(rf"{UNWRITTEN}[:.]", text):
        line = text.count("\n", 0, missing.start()) + 1
        found.append(f"line {line} is still to be written")
    if suffix == ".toml":
        tomllib.loads(text)
    elif suffix in (".yaml", ".yml"):
        import yaml

        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(error) from error
    elif suffix == ".ipynb":
        found += _of_notebook(text)
    return found


def _of_notebook(text: str) -> list[str]:
    import nbformat

    from lossbook.book.runner import clean

    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
    counts = [cell["execution_count"] for cell in code if "".join(cell["source"]).strip()]
    found = []
    if not cells or cells[0]["cell_type"] != "markdown" or not "".join(cells[0]["source"]).startswith("# "):
        found.append("its first cell must be Markdown that begins with a title, `# …`")
    if tags.count("parameters") != 1:
        found.append(f"one cell must be tagged `parameters`, but {tags.count('parameters')} are")
    if counts != list(range(1, len(counts) + 1)):
        found.append("it was not executed from top to bottom: `lossbook run NOTEBOOK --in-place`")
    elif code and not any(cell["outputs"] for cell in code):
        found.append("its outputs are missing: `lossbook run NOTEBOOK --in-place`")
    if any(output["output_type"] == "error" for cell in code for output in cell["outputs"]):
        found.append("a cell ended with an error")
    notebook = nbformat.reads(text, as_version=4)
    if clean(notebook) != notebook or "injected-parameters" in tags:
        found.append("it holds what changes from run to run: `lossbook run NOTEBOOK --in-place` leaves that out")
    return found


def main(names: Sequence[str]) -> int:
    """Say on stderr what is wrong; 1 if something is."""
    found = [f"{name}: {problem}" for name in names for problem in problems(Path(name))]
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
