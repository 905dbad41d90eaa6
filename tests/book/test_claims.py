from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from IPython import display

from lossbook.book import catalog, claims, notebook


@pytest.fixture(autouse=True)
def one_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    only = catalog.Claim("a-paper/a-claim", "Larger is <better>.", "reproduced", "01-x.ipynb")
    entry = catalog.Entry("a-paper", "A paper", notebook="01-x.ipynb", arxiv="1234.5678", claims=(only,))
    book = catalog.Catalog({"a-paper": entry}, {})
    monkeypatch.setattr(catalog, "load_catalog", lambda path=None: book)


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the code under test displays, in order."""
    seen: list = []
    monkeypatch.setattr(display, "display", lambda data, raw=False: seen.append(data))
    return seen


def test_a_claim_shows_a_line_and_carries_its_numbers(outputs: list) -> None:
    claims.claim("a-paper/a-claim", torch.tensor([1.0, 2.0, 3.0]) > 0, measured={"ece": np.float64(0.123456789)})
    (data,) = outputs
    payload = data[claims.MIME]
    assert payload == {
        "key": "a-paper/a-claim",
        "status": "reproduced",
        "holds": [True, True, True],
        "seeds": 3,
        "measured": {"ece": 0.123457},
    }
    json.dumps(payload)
    assert "✓ reproduced (3 of 3 seeds): Larger is <better>." in data["text/plain"]
    assert "ece = 0.123" in data["text/plain"]
    assert "&lt;better&gt;" in data["text/html"]


def test_one_seed_against_is_enough_to_refute(outputs: list) -> None:
    claims.claim("a-paper/a-claim", [True, False, True])
    (data,) = outputs
    assert data[claims.MIME]["status"] == "not reproduced"
    assert "2 of 3 seeds" in data["text/plain"]
    assert "The catalogue expects: reproduced." in data["text/plain"]


def test_a_single_truth_value_says_how_many_seeds(outputs: list) -> None:
    claims.claim("a-paper/a-claim", np.bool_(True), seeds=5)
    assert outputs[0][claims.MIME]["seeds"] == 5


@pytest.mark.parametrize(
    ("holds", "seeds", "sentence"),
    [
        ([True, True], None, "rests on 2 seeds; at least 3"),
        (True, None, "needs seeds="),
        (True, 2, "rests on 2 seeds"),
        ([1, 0, 1], None, "must be one truth value a seed"),
        (0.7, 3, "must be one truth value a seed"),
        ([True] * 3, 3, "seeds= goes with a single truth value"),
    ],
)
def test_weak_evidence_is_refused(holds, seeds, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        claims.claim("a-paper/a-claim", holds, seeds=seeds)


def test_an_unknown_claim_is_refused() -> None:
    with pytest.raises(KeyError, match="no claim 'a-paper/b'; its claims are a-paper/a-claim"):
        claims.claim("a-paper/b", [True] * 3)


def test_header_renders_the_catalogue() -> None:
    text = notebook._header("01-x")
    assert "- **A paper** ([arXiv 1234.5678](https://arxiv.org/abs/1234.5678))" in text
    assert "1. Larger is <better>." in text
    with pytest.raises(KeyError, match="lists nothing for '02-y.ipynb'"):
        notebook._header("02-y")


def test_setup_seeds_everything() -> None:
    def draws() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    run = notebook.setup(seed=3, device="cpu")
    first = draws()
    assert notebook.setup(seed=3, device="cpu") == run
    assert draws() == first
    assert run.quick and run.pick(1, 2) == 1 and run.seeds(3) == [3, 4, 5]
    assert notebook.setup(profile="full", device="cpu").pick(1, 2) == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"profile": "fast"}, "profile must be 'quick' or 'full', but is 'fast'"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"device": "tpu"}, "device 'tpu' is not available"),
    ],
)
def test_setup_refuses_by_name(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        notebook.setup(**settings)


def test_show_source_shows_the_package(outputs: list) -> None:
    notebook.show_source(notebook.Run.seeds)
    assert outputs[0].data.startswith("```python\ndef seeds(self, n: int)")
