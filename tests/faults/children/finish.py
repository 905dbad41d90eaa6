"""`finish.py FOLDER WORD`: write the result of a notebook that prints WORD, as a run does when it has been executed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat

from lossbook.book import _jobs

folder, word = Path(sys.argv[1]), sys.argv[2]
output = nbformat.v4.new_output("stream", text=f"{word}\n")
cells = [nbformat.v4.new_code_cell(f"print({word!r})", outputs=[output], id="a")]
nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{word}.ipynb")
job = _jobs.prepare(folder / f"{word}.ipynb", Path("a.ipynb"), folder / "out", {}, {}, "here")
job.started = time.monotonic()
_jobs.finish(job)
