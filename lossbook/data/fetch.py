"""Download the official files of MNIST, Fashion-MNIST and CIFAR-10, checked against their published SHA-256.

A file that is already there is used as it is and never replaced. A download is written to a temporary file beside its
place, checked, and only then given its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from lossbook.data.dataset import DataError

TIMEOUT = 30.0  # seconds without a byte


class Remote(NamedTuple):
    """Where a file can be had, tried in this order, its SHA-256 and its size in bytes."""

    urls: tuple[str, ...]
    sha256: str
    size: int


# Yann LeCun's own page no longer serves the files; these are the copies that PyTorch and TensorFlow use.
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_FASHION = ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",)
_CIFAR = ("https://www.cs.toronto.edu/~kriz/",)


def _files(folder: str, hosts: tuple[str, ...], listing: str) -> dict[str, Remote]:
    lines = (line.split() for line in listing.strip().splitlines())
    return {
        f"{folder}/{file}": Remote(tuple(host + file for host in hosts), sha, int(size)) for sha, size, file in lines
    }


_MNIST_FILES = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609   9912422  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c     28881  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6   1648877  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6      4542  t10k-labels-idx1-ubyte.gz
"""
_FASHION_FILES = """
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  26421880  train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845     29515  train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073   4422102  t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5      5148  t10k-labels-idx1-ubyte.gz
"""
_CIFAR_FILES = """
6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce 170498071  cifar-10-python.tar.gz
"""

# Keyed by the path inside the data folder.
REMOTES = {
    **_files("mnist", _MNIST, _MNIST_FILES),
    **_files("fashion-mnist", _FASHION, _FASHION_FILES),
    **_files("cifar10", _CIFAR, _CIFAR_FILES),
}


def local(root: Path, name: str) -> Path | None:
    """The file `name` below root, or the same without .gz, or None when neither is there."""
    candidates = (root / name, root / name.removesuffix(".gz"))
    return next((path for path in candidates if path.exists()), None)


def ensure(root: Path, name: str) -> Path:
    """The path of the file `name` below root, downloaded when it is not there.

    Raises:
        DataError: it could not be downloaded, is not the published file, or could not be written; nothing is left
            behind.
    """
    return local(root, name) or _download(root / name, REMOTES[name])


def _download(path: Path, remote: Remote) -> Path:
    import pooch
    import requests

    # Without "identity" a server may pack the file once more, and requests would unpack both layers.
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), chunk_size=2**16, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}
    )
    reasons = []
    for url in remote.urls:
        try:
            pooch.retrieve(url, f"sha256:{remote.sha256}", fname=path.name, path=path.parent, downloader=downloader)
            return path
        except requests.RequestException as error:
            answer = f"answered {error.response.status_code}" if error.response is not None else "could not be read"
            reasons.append(f"{url} {answer}")
        # pooch's word for a checksum that differs. The requests errors above are OSErrors, so they come first.
        except ValueError:
            reasons.append(f"{url} sent a file with another checksum")
        except OSError as error:
            reasons.append(f"{path.parent} cannot be written to ({error.strerror or error})")
            break
    raise DataError(
        f"{path} is missing and could not be downloaded: {'; '.join(reasons)}; put the file there yourself, or set "
        f"LOSSBOOK_DATA to a folder that has {path.parent.name}/{path.name}"
    )
