from __future__ import annotations

import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from lossbook import data
from lossbook.data import DataError, fetch, registry

OFFLINE = ["digits", "breast_cancer", "wine", "gaussian_mixture", "two_moons", "overlapping_classes"]
SHAPES = {"digits": ((1, 8, 8), 10), "breast_cancer": ((30,), 2), "wine": ((13,), 3), "gaussian_mixture": ((10,), 5)}


@pytest.fixture
def closed(monkeypatch):
    """No download: every remote file is at a port that nobody listens on."""
    for name, remote in fetch.REMOTES.items():
        monkeypatch.setitem(fetch.REMOTES, name, remote._replace(urls=("http://127.0.0.1:9/file",)))


@pytest.fixture
def small_mnist(tmp_path, idx_bytes):
    """Forty training and ten test images in both folders; image i has the grey value i."""
    for folder in ("mnist", "fashion-mnist"):
        (tmp_path / folder).mkdir()
        for prefix, n in (("train", 40), ("t10k", 10)):
            x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 28, 28))
            y = (np.arange(n) % 10).astype(np.uint8)
            (tmp_path / folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx_bytes(x, packed=True))
            (tmp_path / folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(y))
    return tmp_path


def check(dataset):
    for split in (dataset.train, dataset.val, dataset.test):
        assert split.x.dtype == torch.float32 and split.y.dtype == torch.int64
        assert len(split.x) == len(split.y) and tuple(split.x.shape[1:]) == dataset.input_shape
        assert int(split.y.min()) >= 0 and int(split.y.max()) < dataset.num_classes
    if len(dataset.input_shape) == 3:
        assert 0 <= float(dataset.train.x.min()) < 0.1 and float(dataset.train.x.max()) <= 1


@pytest.mark.parametrize("name", OFFLINE)
def test_sets_that_need_no_file(name, tmp_path, closed):
    dataset = data.load(name, root=tmp_path / "nothing")
    check(dataset)
    shape, classes = SHAPES.get(name, (dataset.input_shape, dataset.num_classes))
    assert dataset.input_shape == shape and dataset.num_classes == classes
    posteriors = [split.posterior for split in (dataset.train, dataset.val, dataset.test)]
    if name in registry.GENERATED:
        assert [tuple(p.shape) for p in posteriors] == [(n, dataset.num_classes) for n in (1000, 1000, 20_000)]
    else:
        assert posteriors == [None] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_bundled_sets_are_split_60_20_20_by_class(name):
    dataset = data.load(name)
    splits = {"train": (dataset.train, 0.6), "val": (dataset.val, 0.2), "test": (dataset.test, 0.2)}
    total = sum(torch.bincount(split.y).double() for split, _ in splits.values())
    for split, share in splits.values():
        assert (torch.bincount(split.y) - share * total).abs().max() < 3
    rows = torch.cat([split.x.flatten(1) for split, _ in splits.values()])
    assert len(rows) == int(total.sum())
    again, other = data.load(name), data.load(name, seed=1)
    assert torch.equal(dataset.train.x, again.train.x) and not torch.equal(dataset.train.x, other.train.x)


def test_bundled_splits_are_the_whole_set_once():
    from sklearn.datasets import load_digits

    dataset = data.load("digits")
    rows = torch.cat([split.x for split in (dataset.train, dataset.val, dataset.test)]).flatten(1)
    found = sorted(map(tuple, (16 * rows).long().tolist()))
    assert found == sorted(map(tuple, load_digits().data.astype(int).tolist()))


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_tables_are_standardised_with_the_training_split(name):
    dataset = data.load(name)
    x = dataset.train.x.double()
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(x.shape[1], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(dim=0, correction=0), torch.ones(x.shape[1], dtype=torch.float64))
    assert dataset.test.x.double().mean(dim=0).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_test_split_stays_and_validation_is_cut_from_training(name, small_mnist, closed):
    dataset = data.load(name, root=small_mnist)
    check(dataset)
    assert [len(s.y) for s in (dataset.train, dataset.val, dataset.test)] == [36, 4, 10]
    grey = [(255 * s.x[:, 0, 5, 5]).round().int().tolist() for s in (dataset.train, dataset.val, dataset.test)]
    assert sorted(grey[0] + grey[1]) == list(range(40)) and grey[2] == list(range(10))
    for split, values in zip((dataset.train, dataset.val), grey, strict=False):
        assert split.y.tolist() == [value % 10 for value in values]


def test_environment_variable_and_argument(small_mnist, tmp_path, monkeypatch, closed):
    monkeypatch.setenv("LOSSBOOK_DATA", str(small_mnist))
    assert len(data.load("mnist").test.y) == 10
    with pytest.raises(DataError, match="elsewhere/mnist"):
        data.load("mnist", root=tmp_path / "elsewhere")
    monkeypatch.setenv("LOSSBOOK_DATA", "")
    assert data.data_root() == registry.Path(registry.__file__).resolve().parents[2] / "data"


def test_a_missing_file_is_named_and_nothing_is_left(tmp_path, closed):
    for name in ("mnist", "mnist-t10k", "fashion-mnist", "cifar10"):
        with pytest.raises(DataError, match=f"{name.removesuffix('-t10k')}.*LOSSBOOK_DATA"):
            data.load(name, root=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_mnist_of_another_size_is_refused(small_mnist, idx_bytes):
    path = small_mnist / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(idx_bytes(np.zeros((10, 20, 20), np.uint8)))
    with pytest.raises(DataError, match="28 × 28 pixels, but holds 20 × 20"):
        data.load("mnist", root=small_mnist)


def write_images(folder, names, size=(32, 32)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name), 7, 9)).save(folder / name)


def test_cifar_zips_that_are_not_cifar(tmp_path):
    import shutil

    for classes, size, message in ((["cat"], (32, 32), "ten classes"), (registry.cifar.CLASSES, (8, 8), "32 × 32")):
        for split in ("train", "test"):
            write_images(tmp_path / split, [f"{split}/{c}/{i:05}.png" for i, c in enumerate(classes)], size)
            (tmp_path / "cifar10").mkdir(exist_ok=True)
            shutil.make_archive(str(tmp_path / "cifar10" / split), "zip", tmp_path / split)
            shutil.rmtree(tmp_path / split)
        with pytest.raises(DataError, match=message):
            data.load("cifar10", root=tmp_path)


@pytest.mark.parametrize("name", ["mnits", "", "MNIST", 3, None, ["mnist"]])
def test_unknown_names_list_what_there_is(name):
    with pytest.raises(ValueError, match="is no dataset.*digits, breast_cancer, wine, mnist") as error:
        data.load(name)
    assert repr(name) in str(error.value)
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        data.load("mnits")


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="seed must be"):
        data.load("wine", seed=seed)


def test_cards_and_descriptions(tmp_path, small_mnist):
    rows = {"Size", "Classes", "Source", "Licence", "Known problems", "Use it for"}
    for name in data.names():
        described = data.describe(name, root=tmp_path / "empty")
        assert set(described) == {"name", "title", "where"} | rows and all(described.values())
        assert "**" not in "".join(described.values())
    where = {name: data.describe(name, root=small_mnist)["where"] for name in data.names()}
    assert where["wine"] == "bundled" and where["two_moons"] == "generated"
    assert where["mnist"] == where["mnist-t10k"] == "on disk" and where["cifar10"] == "download, 170 MB"
    card = data.load("wine").card
    assert card._repr_markdown_().startswith("# Wine\n") and "106 training, 36 validation and 36 test" in str(card)
    with pytest.raises(ValueError, match="is no dataset"):
        data.describe("nope")


def test_dataset_moves_repeats_itself_shortly_and_pickles():
    dataset = data.load("gaussian_mixture")
    moved = dataset.to("cpu")
    assert moved.train.x is dataset.train.x and moved.test.posterior is dataset.test.posterior
    assert dataset.to("meta").train.x.device.type == "meta"
    assert repr(dataset) == "Dataset('gaussian_mixture', 1,000 + 1,000 + 20,000 examples of shape (10,), 5 classes)"
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).val.x, dataset.val.x)
    with pytest.raises(AttributeError):
        dataset.name = "other"


@pytest.mark.parametrize("sizes", [(20, 10), (1,), (0,), (99, 1)])
def test_stratified_parts(sizes):
    """Classes of 70, 25, 4 and 1 of 100: disjoint parts of exact sizes, each class within three of its share."""
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [70, 25, 4, 1]))
    parts = registry._stratified(y, sizes, 5)
    assert [len(part) for part in parts] == [*sizes, 100 - sum(sizes)]
    assert sorted(np.concatenate(parts)) == list(range(100))
    for part in parts:
        share = np.bincount(y, minlength=4) * len(part) / 100
        assert np.abs(np.bincount(y[part], minlength=4) - share).max() < 2.25


def test_mnist_test_images(shared_data):
    start = time.perf_counter()
    dataset = data.load("mnist-t10k", root=shared_data)
    assert time.perf_counter() - start < 1
    check(dataset)
    assert [len(s.y) for s in (dataset.train, dataset.val, dataset.test)] == [7000, 1000, 2000]
    counts = sum(torch.bincount(s.y) for s in (dataset.train, dataset.val, dataset.test))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.slow
def test_cifar_from_jpeg_copies(shared_data):
    dataset = data.load("cifar10", root=shared_data)
    check(dataset)
    assert [len(s.y) for s in (dataset.train, dataset.val, dataset.test)] == [18_000, 2_000, 10_000]
    assert torch.bincount(dataset.train.y).tolist() == [1800] * 10
    original = np.load(shared_data / "label-errors" / "cifar10_test_set_original_labels.npy")
    np.testing.assert_array_equal(dataset.test.y.numpy(), original)
    assert "JPEG copies" in str(dataset.card)
