"""The datasets by name: `load`, `names` and `describe`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lossbook.data import _checks, cifar, fetch, idx, images
from lossbook.data.dataset import Card, DataError, Dataset, Split

SYNTHETIC_SIZES = (1000, 1000, 20_000)
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGIT_CLASSES = tuple("0123456789")
CIFAR_ARCHIVE = "cifar10/cifar-10-python.tar.gz"


class Parts(NamedTuple):
    """What a builder makes of a dataset: three splits, the class names, and half a sentence on where they are from."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    origin: str


class Entry(NamedTuple):
    """How a dataset is built, and the files below the data folder that it needs, if any."""

    build: Callable[[Path, int], Parts]
    files: tuple[str, ...] = ()


def load(name: str, *, root: str | os.PathLike[str] | None = None, seed: int = 0) -> Dataset:
    """The dataset of that name, in a training, a validation and a test split.

    Bundled sets are split 60/20/20. Where a test set is published it is the test split, in its published order, and a
    tenth of the training set becomes the validation split. All cuts are stratified: each class has its share of each
    split to within three examples. Images are float32 in [0, 1]; tables are standardised with the mean and standard
    deviation of the training split. Generated sets have 1,000, 1,000 and 20,000 examples and an exact posterior.

    Args:
        name: one of `names()`.
        root: the data folder; else the environment variable LOSSBOOK_DATA, else `data/` of the checkout. Files that are
            missing there are downloaded to it; files that are there are used as they are.
        seed: of the cut into splits, or of the generator. The published test splits do not depend on it.

    Raises:
        ValueError: there is no such dataset; the message lists those there are.
        DataError: a file is missing and cannot be downloaded, or is damaged; the message names the file.
    """
    entry = _entry(name)
    parts = entry.build(data_root(root), _checks.seed(seed))
    sizes = (len(parts.train.y), len(parts.val.y), len(parts.test.y))
    card = Card(_card_text(name), sizes, parts.origin)
    return Dataset(name, parts.train, parts.val, parts.test, parts.classes, card)


def names() -> list[str]:
    """The names that `load` knows."""
    return list(ENTRIES)


def describe(name: str, *, root: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """What a table of datasets shows, without loading anything.

    Returns:
        "name", "title", "where" ("bundled", "generated", "on disk" or "download, 12 MB"), and the rows of the data
        card's table by their titles: "Size", "Classes", "Source", "Licence", "Known problems", "Use it for".

    Raises:
        ValueError: there is no such dataset; the message lists those there are.
    """
    entry = _entry(name)
    lines = _card_text(name).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    facts = {row[0].strip("*"): row[1] for row in rows if row[0].strip("-: ")}
    return {
        "name": name,
        "title": lines[0].removeprefix("# "),
        "where": _where(name, entry, data_root(root)),
        **facts,
    }


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: `root`, else the environment variable LOSSBOOK_DATA, else `data/` of the checkout.

    An installed package has no checkout; there it is `lossbook-data` in the working directory.
    """
    chosen = root if root is not None else os.environ.get("LOSSBOOK_DATA")
    if chosen:
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path.cwd() / "lossbook-data"


def _entry(name: str) -> Entry:
    if isinstance(name, str) and name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(str(name), ENTRIES, n=1)
    hint = f"did you mean {near[0]!r}? There are " if near else "there are "
    raise ValueError(f"name {name!r} is no dataset; {hint}{', '.join(ENTRIES)}")


def _card_text(name: str) -> str:
    return (resources.files("lossbook.data") / "cards" / f"{name}.md").read_text(encoding="utf-8")


def _where(name: str, entry: Entry, root: Path) -> str:
    if not entry.files:
        return "generated" if name in GENERATED else "bundled"
    if entry.files == (CIFAR_ARCHIVE,) and _cifar_files(root):
        return "on disk"
    missing = [file for file in entry.files if fetch.local(root, file) is None]
    if not missing:
        return "on disk"
    return f"download, {max(1, round(sum(fetch.REMOTES[file].size for file in missing) / 1e6))} MB"


def _stratified(y: np.ndarray, sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Indices of disjoint parts of the given sizes, then of what is left, each in random order.

    Sorted by class, the examples of a part are taken at equal distances, so that each class has its share of it.
    """
    rng = np.random.default_rng(seed)
    left = rng.permutation(len(y))
    left = left[np.argsort(y[left], kind="stable")]
    parts = []
    for size in sizes:
        taken = np.zeros(len(left), bool)
        taken[(np.arange(size) * len(left) + len(left) // 2) // size] = True
        parts.append(rng.permutation(left[taken]))
        left = left[~taken]
    return [*parts, rng.permutation(left)]


def _images(x: np.ndarray, y: np.ndarray, index: np.ndarray | slice = slice(None)) -> Split:
    """A split of 8-bit images: chosen first and only then made float, so that no second float copy exists."""
    return Split(torch.from_numpy(np.divide(x[index], 255, dtype=np.float32)), torch.from_numpy(y[index]))


def _published(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: tuple[str, ...],
    origin: str,
    seed: int,
) -> Parts:
    val, rest = _stratified(train[1], (len(train[1]) // 10,), seed)
    return Parts(_images(*train, rest), _images(*train, val), _images(*test), classes, origin)


def _digits(root: Path, seed: int) -> Parts:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images[:, None] / 16).float()
    train, val, test = (Split(x[i], torch.from_numpy(bunch.target[i])) for i in _three(bunch.target, seed))
    return Parts(train, val, test, DIGIT_CLASSES, "from scikit-learn")


def _breast_cancer(root: Path, seed: int) -> Parts:
    from sklearn.datasets import load_breast_cancer

    return _table(load_breast_cancer(), seed)


def _wine(root: Path, seed: int) -> Parts:
    from sklearn.datasets import load_wine

    return _table(load_wine(), seed)


def _table(bunch: Any, seed: int) -> Parts:
    parts = _three(bunch.target, seed)
    mean, scale = bunch.data[parts[0]].mean(axis=0), bunch.data[parts[0]].std(axis=0)
    x, y = torch.from_numpy((bunch.data - mean) / scale).float(), torch.from_numpy(bunch.target).long()
    train, val, test = (Split(x[i], y[i]) for i in parts)
    return Parts(train, val, test, tuple(map(str, bunch.target_names)), "from scikit-learn")


def _three(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fifth = round(len(y) / 5)
    test, val, train = _stratified(y, (fifth, fifth), seed)
    return train, val, test


def _idx_pair(root: Path, folder: str, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    image_file, label_file = (fetch.ensure(root, file) for file in _idx_files(folder, prefix))
    x, y = idx.read_labelled_images(image_file, label_file)
    if x.shape[2:] != (28, 28):
        raise DataError(f"{image_file} must hold images of 28 × 28 pixels, but holds {x.shape[2]} × {x.shape[3]}")
    return x, y


def _idx_files(folder: str, *prefixes: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{p}-{kind}-ubyte.gz" for p in prefixes for kind in ("images-idx3", "labels-idx1"))


def _mnist(root: Path, seed: int) -> Parts:
    train, test = _idx_pair(root, "mnist", "train"), _idx_pair(root, "mnist", "t10k")
    return _published(train, test, DIGIT_CLASSES, "from the official files", seed)


def _fashion_mnist(root: Path, seed: int) -> Parts:
    train, test = _idx_pair(root, "fashion-mnist", "train"), _idx_pair(root, "fashion-mnist", "t10k")
    return _published(train, test, FASHION_CLASSES, "from the official files", seed)


def _mnist_t10k(root: Path, seed: int) -> Parts:
    x, y = _idx_pair(root, "mnist", "t10k")
    test, val, train = (_images(x, y, index) for index in _stratified(y, (len(y) // 5, len(y) // 10), seed))
    return Parts(train, val, test, DIGIT_CLASSES, "all of them from the official test set")


def _cifar10(root: Path, seed: int) -> Parts:
    found = _cifar_files(root) or [fetch.ensure(root, CIFAR_ARCHIVE)]
    if len(found) == 1:
        batches = cifar.read(found[0])
        train, test = (batches.train_x, batches.train_y), (batches.test_x, batches.test_y)
        return _published(train, test, cifar.CLASSES, "from the official batches", seed)
    train, test = (_cifar_zip(path, path.stem) for path in found)
    return _published(train, test, cifar.CLASSES, "from JPEG copies in train.zip and test.zip", seed)


def _cifar_files(root: Path) -> list[Path]:
    """What of CIFAR-10 is there: the unpacked batches, else the archive, else the pair of zip files, else nothing."""
    folder = root / "cifar10"
    choices = ([cifar.FOLDER], ["cifar-10-python.tar.gz"], ["train.zip", "test.zip"])
    for choice in choices:
        paths = [folder / name for name in choice]
        if all(path.exists() for path in paths):
            return paths
    return []


def _cifar_zip(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    archive = images.read(path)
    if archive.classes != cifar.CLASSES or split not in archive.splits:
        raise DataError(f"{path} must hold {split}/<class>/<file> for the ten classes of CIFAR-10, but does not")
    x, y = archive.splits[split]
    if x.shape[1:] != (3, 32, 32):
        raise DataError(f"{path} must hold 32 × 32 colour images, but they have shape {x.shape[1:]}")
    return x, y


def _generated(split: Split, classes: int) -> Parts:
    pieces = zip(*(values.split(SYNTHETIC_SIZES) for values in split if values is not None), strict=True)
    train, val, test = (Split(*piece) for piece in pieces)
    return Parts(train, val, test, tuple(map(str, range(classes))), "generated with their exact posterior")


def _gaussian_mixture(root: Path, seed: int) -> Parts:
    from lossbook.data import synthetic

    return _generated(synthetic.gaussian_mixture(sum(SYNTHETIC_SIZES), seed=seed), 5)


def _two_moons(root: Path, seed: int) -> Parts:
    from lossbook.data import synthetic

    return _generated(synthetic.two_moons(sum(SYNTHETIC_SIZES), seed=seed), 2)


def _overlapping_classes(root: Path, seed: int) -> Parts:
    from lossbook.data import synthetic

    return _generated(synthetic.overlapping_classes(sum(SYNTHETIC_SIZES), overlap=0.3, seed=seed), 3)


GENERATED = ("gaussian_mixture", "two_moons", "overlapping_classes")
ENTRIES = {
    "digits": Entry(_digits),
    "breast_cancer": Entry(_breast_cancer),
    "wine": Entry(_wine),
    "mnist": Entry(_mnist, _idx_files("mnist", "train", "t10k")),
    "mnist-t10k": Entry(_mnist_t10k, _idx_files("mnist", "t10k")),
    "fashion-mnist": Entry(_fashion_mnist, _idx_files("fashion-mnist", "train", "t10k")),
    "cifar10": Entry(_cifar10, (CIFAR_ARCHIVE,)),
    "gaussian_mixture": Entry(_gaussian_mixture),
    "two_moons": Entry(_two_moons),
    "overlapping_classes": Entry(_overlapping_classes),
}
