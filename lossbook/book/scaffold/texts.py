"""What `lossbook new-paper` writes into the places it makes: every text says what is still to be done."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossbook.book.catalog import Entry

# Where it stands, with a colon or a full stop, something is missing: such a file is not committed.
UNWRITTEN = "To be written"
CLAIM_ID = "to-be-written"
CLAIM = (
    f'id = "{CLAIM_ID}"',
    f'text = "{UNWRITTEN}: what is compared, on what data, and by how much at least, so that numbers can refute it."',
    'expected = "reproduced"',
)
# The arguments that all losses of (logits, labels) share.
HOUSE = {"weight": "Tensor | None = None", "ignore_index": "int = -100", "reduction": 'str = "mean"'}


@dataclass(frozen=True)
class Signature:
    """The arguments of a function: name -> annotation, with a default where the house has one."""

    positional: dict[str, str]
    keyword: dict[str, str]
    own: tuple[str, ...]  # the keywords that not all losses share
    returns: str
    house: bool = False  # a loss of logits and integer labels

    def __str__(self) -> str:
        words = [f"{name}: {annotation}" for name, annotation in self.positional.items()]
        words += ["*"] if self.keyword else []
        words += [f"{name}: {annotation}" for name, annotation in self.keyword.items()]
        return f"({', '.join(words)}) -> {self.returns}"


def signature(dotted: str, cases: Sequence[dict[str, Any]], *, house: bool) -> Signature:
    """What the golden cases of a function pass to it; a `house` loss without them takes (logits, target)."""
    loss = dotted.startswith("losses.")
    arguments: dict[str, Any] = {}
    keywords: dict[str, Any] = {}
    for case in cases:
        arguments |= case["args"]
        keywords |= case.get("kwargs", {})
    returns = "Tensor" if loss else "Any"
    if not cases and not house:
        return Signature({"*args": "Any", "**kwargs": "Any"}, {}, (), returns)
    labels = arguments.get("target")
    if cases:
        matrix = any(name.endswith("logits") and _depth(value) == 2 for name, value in arguments.items())
        house = loss and matrix and isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    own = {name: _annotation(value) for name, value in keywords.items() if name not in HOUSE}
    shared = {name: text for name, text in HOUSE.items() if house or name in keywords}
    positional = dict.fromkeys(arguments or ("logits", "target"), "Tensor")
    return Signature(positional, own | shared, tuple(own), returns, house)


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) and value else 0


def _annotation(value: Any) -> str:
    if isinstance(value, bool | str):
        return type(value).__name__
    return "float | Tensor" if isinstance(value, int | float) else "Any"


def stub(entry: Entry, dotted: str, arguments: Signature) -> str:
    """A function, or a class, that raises NotImplementedError."""
    name = dotted.rpartition(".")[2]
    source = _wrapped(f"Source: {_source(entry)}.")
    refusal = f'raise NotImplementedError("{entry.key}: {name} is not written yet")'
    if name[0].isupper():
        base = "(nn.Module)" if dotted.startswith(("layers.", "models.", "losses.")) else ""
        return (
            f'class {name}{base}:\n    """{UNWRITTEN}: what it is, in one sentence.\n\n    The formula, shapes, '
            f'ranges and defaults.\n\n{source}\n    """\n\n    def __init__(self, *args: Any, **kwargs: Any) -> None:\n'
            f"        {refusal}\n"
        )
    described = "\n".join(f"        {argument}: {UNWRITTEN}." for argument in _named(arguments))
    args = f"    Args:\n{described}\n\n" if described else ""
    return (
        f'def {name}{arguments}:\n    """{UNWRITTEN}: what it is, in one sentence.\n\n        the formula, in the '
        f"paper's symbols\n\n    Units, range, gradient, what is constant, and what special values of a parameter give."
        f'\n\n{args}{source}\n    """\n    {refusal}\n'
    )


def _named(arguments: Signature) -> list[str]:
    return [name for name in [*arguments.positional, *arguments.own] if not name.startswith("*")]


def _source(entry: Entry) -> str:
    """What stands in a docstring."""
    title = entry.title.replace("\\", r"\\").replace('"""', r"\"\"\"")
    return f"{title} (arXiv {entry.arxiv})" if entry.arxiv else title


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="    ", subsequent_indent="    ")


def module(name: str) -> str:
    return f'"""{UNWRITTEN}: what the functions of {name} have in common."""\n\nfrom __future__ import annotations\n'


def package(name: str) -> str:
    return (
        f'"""{UNWRITTEN}: what {name} holds."""\n\nfrom __future__ import annotations\n\n'
        "from lossbook._lazy import attach\n\n__getattr__, __dir__, __all__ = attach(__name__, {})\n"
    )


def tests(entry: Entry, functions: Sequence[str]) -> str:
    """A test a function, which fails."""
    text = f'"""{entry.key}: closed forms, limits, peers, bad input."""\n\n'
    text += "from __future__ import annotations\n\nimport pytest\n"
    for dotted in functions:
        name = dotted.rpartition(".")[2]
        text += (
            f"\n\ndef test_{name}_has_its_closed_form() -> None:\n    pytest.fail(\n"
            f'        "not written yet: hold {name} to a closed form, a limit, or another library"\n    )\n'
        )
    return text


def notebook(entry: Entry, page: str, functions: Sequence[str]) -> str:
    """The notebook in the book's rhythm; each code cell that is not written yet stops it with its task."""
    part, _, name = page.removesuffix(".ipynb").rpartition("/")
    numbers = "-".join(word.split("-")[0] for word in (part, name) if word)
    shown = [dotted for dotted in functions if dotted.count(".")]
    packages = sorted({dotted.split(".")[0] for dotted in shown} | {"viz"})
    link = f"[{entry.title}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else entry.title
    setup = (
        f"import matplotlib.pyplot as plt\n\nfrom lossbook import {', '.join(packages)}\n"
        "from lossbook.book import claim, setup, show_source\n\n"
        "run = setup(profile, seed, device)"
    )
    cells = [
        _markdown(
            f"# {entry.title.partition(':')[0]}\n\n{UNWRITTEN}: the question, in a few sentences that a newcomer to "
            "the topic reads with pleasure.\nAfter this notebook you can\n\n- …;\n- …;\n- ….\n\nIt runs in about … "
            "seconds on two CPU cores."
        ),
        _code(f'from lossbook import book\n\nbook.header("{page.removesuffix(".ipynb")}")'),
        _code('profile = "quick"\nseed = 0\ndevice = "auto"', tags=["parameters"]),
        _code(setup),
        _markdown(f"## The idea\n\n{UNWRITTEN}: in words, then in formulas. The code is shown, never copied."),
        _code("\n".join(f"show_source({dotted})" for dotted in shown)),
        _markdown(f"{UNWRITTEN}: a value small enough to be checked by hand. The tests compare this cell's output."),
        _code(_task("print the value of a small example, worked out by hand above"), tags=["nbval-check-output"]),
        _markdown(
            f"## What it does to a network\n\n{UNWRITTEN}: the experiment.\n\n**Before you look:** what do you expect?"
        ),
        _code(f"def measure(seed):\n    {_task('train with this seed; return whether the claim holds')}"),
        _code("held = [measure(s) for s in run.seeds(3)]"),
        _code(
            f"figure, axes = plt.subplots()\n{_task('draw it')}\n"
            f"viz.show(axes, alt='{UNWRITTEN}: a sentence that says what one sees.')"
        ),
        _markdown(
            f"{UNWRITTEN}: what the figure shows, and why.\n\n## Play\n\n**Before you move the slider:** a question."
        ),
        _code(
            f"def picture(knob=1.0):\n    {_task('draw what the knob changes, in well under a second')}\n\n\n"
            f"viz.play(picture, alt='{UNWRITTEN}: what one sees, and how it moves.', knob=[0.5, 1.0, 2.0])"
        ),
        _markdown("## Claims"),
        _code(f'claim("{entry.key}/{CLAIM_ID}", held)'),
        _markdown("## Exercises"),
        *(cell for number in (1, 2, 3) for cell in _exercise(numbers, number)),
        _markdown(f"## Where it breaks down\n\n{UNWRITTEN}.\n\n## Further reading\n\n- {link}."),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{entry.key} {number}".encode()).hexdigest()[:8]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _exercise(notebook: str, number: int) -> list[dict[str, Any]]:
    """Text, answer and test of an exercise; its id begins with the numbers of part and notebook, "06-01"."""
    answer, grade_id = f"answer_{number}", f"{notebook}-{number}"
    return [
        _markdown(f"**{number}. {UNWRITTEN}.** A task that takes a line or two."),
        _code(
            f'def {answer}():\n    """What it returns."""\n    ### BEGIN SOLUTION\n    {_task("write the solution")}\n'
            "    ### END SOLUTION",
            nbgrader=_graded(grade_id, solution=True),
        ),
        _code(
            f"assert {answer}() is not None, 'a sentence that says what is wrong'\n### BEGIN HIDDEN TESTS\n"
            f"{_task('write what the visible test does not give away')}\n### END HIDDEN TESTS",
            nbgrader=_graded(f"{grade_id}-test", solution=False),
        ),
    ]


def _task(what: str) -> str:
    return f'raise NotImplementedError("{what}")'


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def _code(source: str, **metadata: Any) -> dict[str, Any]:
    lines = source.splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": lines}


def _graded(grade_id: str, *, solution: bool) -> dict[str, Any]:
    points = {} if solution else {"points": 1}
    return {
        "grade": not solution, "grade_id": grade_id, "locked": not solution, **points,
        "schema_version": 3, "solution": solution, "task": False,
    }  # fmt: skip


def steps(
    entry: Entry,
    page: Any,
    functions: Sequence[tuple[str, Any]],
    test: Any,
    in_contract: Sequence[str],
) -> tuple[str, ...]:
    """What is left to do, in order."""
    todo = [f"write {dotted} in {path}" for dotted, path in functions]
    if entry.golden:
        todo.append(f"pytest tests/test_golden.py -k '{' or '.join(entry.golden)}' compares it with golden numbers")
    todo += [
        f"complete the line of {name} in LOSSES of tests/losses/test_contract.py, its contract" for name in in_contract
    ]
    todo += [
        f"say in lossbook/book/site/pictures.py how the site draws {dotted}, or why it does not"
        for dotted, _ in functions
        if dotted.startswith("losses.")
    ]
    if test:
        todo.append(f"write {test}, which fails until then")
    todo.append(f"write the claims of {entry.key} in lossbook/book/catalog.toml, then the notebook that measures them")
    todo.append(f"lossbook run notebooks/{page} --in-place executes it, and make check looks at the rest")
    return tuple(todo)
