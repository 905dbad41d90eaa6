"""The page on other people's training loops: its blocks run in order, without a warning, and do what the page says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "guides" / "your-own-training-loop.md"
TITLE, *PARTS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


SECTIONS = {part.partition("\n")[0]: blocks(part) for part in PARTS}
Names = dict[str, Any]


def execute(section: str, *, stop_after: int | None = None) -> Names:
    """The names that a section's blocks leave behind; `printed` is what they print. A warning is an error."""
    torch.manual_seed(0)
    np.random.seed(0)
    names: Names = {"__name__": "page"}
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("error")
        # Other people's, about this machine or about their own dependencies.
        for package in (
            "lightning",
            "torch",
            "skorch",
            "sklearn",
            "numpy",
            "pkg_resources",
            "importlib",
            "multiprocessing",
        ):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        for number, block in enumerate([*blocks(TITLE), *SECTIONS[section][:stop_after]]):
            exec(compile(block, f"{section}, block {number}", "exec"), names)
    return names | {"printed": printed.getvalue()}


def accuracy(names: Names, model: torch.nn.Module) -> float:
    with torch.no_grad():
        return (model(names["x_test"]).argmax(dim=1) == names["y_test"]).double().mean().item()


def test_every_section_is_tested() -> None:
    tested = {
        "What a loss takes",
        "Plain PyTorch",
        "A loss that learns, or remembers",
        "Compiled",
        "Lightning",
        "scikit-learn",
        "Several GPUs",
    }
    assert set(SECTIONS) == tested
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * (len(blocks(TITLE)) + sum(map(len, SECTIONS.values())))


def test_other_shapes_are_brought_into_that_of_a_loss() -> None:
    names = execute("What a loss takes")
    p = torch.where(names["y"] == 0, names["z"], -names["z"]).sigmoid()
    torch.testing.assert_close(names["binary"], ((1 - p) ** 2 * -p.log()).mean())
    p = names["maps"].softmax(dim=1).gather(1, names["labels"][:, None])
    torch.testing.assert_close(names["pixels"], ((1 - p) ** 2 * -p.log()).mean())
    targets = (
        torch.nn.functional.one_hot(names["y"]) * 0.3 + torch.nn.functional.one_hot(names["y"][names["other"]]) * 0.7
    )
    log_p = names["logits"].log_softmax(dim=1)
    torch.testing.assert_close(names["mixed"], -(targets * (1 - log_p.exp()) ** 2 * log_p).sum(dim=1).mean())
    focal = names["losses"].focal
    with pytest.raises(ValueError, match=r"logits must have shape \(N, C\)"):
        focal(names["maps"], names["labels"])
    with pytest.raises(ValueError, match="target must hold integer labels"):
        focal(names["logits"], targets)


@pytest.mark.slow
def test_plain_pytorch() -> None:
    names = execute("Plain PyTorch")
    assert accuracy(names, names["model"]) > 0.93
    from lossbook import losses

    labelled = names["partly_labelled"] != -1
    assert 0.4 < labelled.double().mean() < 0.6
    assert names["objective"].isfinite() and len(names["hardest"]) == 5
    rows = losses.focal(names["model"](names["x"]), names["y"], reduction="none")
    assert rows.min() < rows.mean() < rows.max()
    accuracy_, error = (float(word) for word in re.findall(r"0\.\d+", names["printed"].splitlines()[0]))
    assert accuracy_ > 0.93 and 0 < error < 0.2
    assert names["after"] < names["before"]


def test_weights_and_ignored_labels_are_what_the_page_says() -> None:
    """Half of the labels ignored, by weights, is the weighted mean over the other half."""
    names = execute("Plain PyTorch", stop_after=2)
    kept = names["partly_labelled"] != -1
    rows = names["losses"].focal(names["model"](names["x"]), names["y"], gamma=2.0, reduction="none")
    weight = names["weight"][names["y"]]
    expected = (weight * rows)[kept].sum() / weight[kept].sum()
    torch.testing.assert_close(names["objective"], expected)
    with pytest.raises(ValueError, match="nothing to average"):
        names["weighted"](names["model"](names["x"]), torch.full_like(names["y"], -1))


def test_a_bad_label_is_named_until_the_checks_are_off() -> None:
    names = execute("Plain PyTorch", stop_after=1)
    logits, bad = names["model"](names["x"][:2]), torch.tensor([3, 12])
    with pytest.raises(ValueError, match="target has label 12, but logits have 10 classes"):
        names["criterion"](logits, bad)
    with names["checks"].values(False):
        assert names["criterion"](logits.fill_(float("nan")).detach(), torch.tensor([3, 1])).isnan()


def test_a_loss_that_learns_or_remembers() -> None:
    names = execute("A loss that learns, or remembers", stop_after=1)
    (temperature,) = names["criterion"].parameters()
    assert 0 < temperature.item() < 0.5
    names = execute("A loss that learns, or remembers")
    assert accuracy(names, names["model"]) > 0.8
    lam = names["checkpoint"]["criterion"]["lam"]
    assert lam.shape == names["y"].shape and lam.std() > 0


@pytest.mark.slow
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced without a graph break; that what is traced compiles is tested in tests/losses/test_contract.py."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    names = execute("Compiled")
    assert accuracy(names, names["model"]) > 0.8


@pytest.mark.slow
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = execute("Lightning")
    logged, metrics = names["logged"], names["metrics"]
    assert set(logged) == {"accuracy", "calibration error"}
    logits, labels = names["val_logits"], names["y_val"]
    # What was logged batch by batch is the metric of the whole split, in which no batch counts twice.
    assert logged["accuracy"] == pytest.approx(metrics.accuracy(logits, labels), abs=1e-6)
    whole = metrics.expected_calibration_error(logits.softmax(dim=1), labels)
    assert logged["calibration error"] == pytest.approx(whole, abs=1e-5)
    assert logged["accuracy"] > 0.7
    before = metrics.negative_log_likelihood(names["test_logits"].softmax(dim=1), names["y_test"])
    assert metrics.negative_log_likelihood(names["probabilities"], names["y_test"]) < before
    assert names["classifier"].accuracy.update_count == 0


@pytest.mark.slow
def test_scikit_learn() -> None:
    from sklearn.base import clone

    names = execute("scikit-learn")
    metrics, y_test = names["metrics"], names["y_test"].numpy()
    raw = names["model"].predict_proba(names["x_test"].flatten(1).numpy())
    assert metrics.negative_log_likelihood(names["probabilities"], y_test) < metrics.negative_log_likelihood(
        raw, y_test
    )
    assert clone(names["scaling"]).get_params() == names["scaling"].get_params()
    assert names["scores"].mean() > -0.5 and len(names["scores"]) == 5
    assert names["pipeline"].score(names["given"], names["labels"]) > 0.9
    assert (names["errors"] > 0).all() and (names["errors"] < 0.2).all()
    tried = names["search"].cv_results_["param_criterion__tau"]
    assert list(tried) == [0.5, 1.0, 1.5]
    assert names["search"].best_score_ > 0.85
    loss = names["search"].best_estimator_.criterion_
    assert loss._constants["tau"] == names["search"].best_params_["criterion__tau"]


@pytest.mark.slow
def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torchrun, over gloo: two processes with half of the batch each end where one with all of it does."""
    (script,) = SECTIONS["Several GPUs"]
    (tmp_path / "train.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    alone, of_two = execute("Several GPUs")["printed"], done.stdout
    first, second = (float(printed.removeprefix("loss ")) for printed in (alone, of_two))
    # The noise is drawn in other shapes, so the two are close, not equal. Half of the views would cost log 2 less.
    assert second == pytest.approx(first, abs=0.2)
