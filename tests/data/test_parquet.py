"""Whatever pyarrow and pandas write of predictions is read as it was, however much it shrinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook import data

NAMES = ("cat", "dog", "emu", "fox")
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
LISTS = (None, pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_(pa.float64(), len(NAMES)))
OPTIONS = {
    "compression": st.sampled_from(("none", "snappy", "gzip", "brotli", "lz4", "zstd")),
    "use_dictionary": st.booleans(),
    "data_page_version": st.sampled_from(("1.0", "2.0")),
    "data_page_size": st.sampled_from((64, 2**20)),
    "dictionary_pagesize_limit": st.sampled_from((16, 2**20)),
    "row_group_size": st.sampled_from((1, 7, 100, 2**20)),
    "version": st.sampled_from(("1.0", "2.6")),
    "write_statistics": st.booleans(),
    "write_page_index": st.booleans(),
    "write_page_checksum": st.booleans(),
    "use_compliant_nested_type": st.booleans(),
    "store_schema": st.booleans(),
}
# Of a column without a dictionary.
TEXT_ENCODINGS = (None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
WHOLE_ENCODINGS = (None, "PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT")


def check_read(path: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    read = list(data.read_predictions(path).chunks())
    np.testing.assert_array_equal(np.concatenate([x for x, _ in read]), logits)
    np.testing.assert_array_equal(np.concatenate([y for _, y in read]), labels)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.integers(1, 60),
    options=st.fixed_dictionaries(OPTIONS),
    lists=st.sampled_from(LISTS),
    text=st.sampled_from((None, *TEXTS)),
    draws=st.data(),
)
def test_what_pyarrow_writes_is_read(tmp_path_factory, rows, options, lists, text, draws):
    rng = np.random.default_rng(rows)
    logits, labels = rng.normal(size=(rows, len(NAMES))), rng.integers(len(NAMES), size=rows)
    named = pa.array(np.array(NAMES, object)[labels], pa.string()).cast(text) if text else pa.array(labels)
    columns: dict[str, Any] = dict(zip((f"p_{name}" for name in NAMES), logits.T, strict=True))
    if lists and not text:
        columns = {"logits": pa.array(list(logits), lists)}
    table = pa.table(columns | {"label": named})
    # Of those of a dictionary pyarrow itself does not read the delta encodings.
    if not options["use_dictionary"] and text != TEXTS[-1]:
        encoding = draws.draw(st.sampled_from(TEXT_ENCODINGS if text else WHOLE_ENCODINGS))
        options["column_encoding"] = {"label": encoding} if encoding else None
    path = tmp_path_factory.getbasetemp() / "written.parquet"
    pq.write_table(table, path, **options)
    check_read(path, logits, labels)


@pytest.mark.parametrize("index", [None, "id", "__index_level_0__"])
def test_what_pandas_writes_is_read(tmp_path, index):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, len(NAMES))), rng.integers(len(NAMES), size=30)
    frame = pd.DataFrame(logits, columns=list(NAMES)).assign(label=pd.Categorical.from_codes(labels, list(NAMES)))
    if index:
        frame.index = pd.Index(rng.permutation(30), name=index)
    frame.to_parquet(tmp_path / "p.parquet")
    check_read(tmp_path / "p.parquet", logits, labels)


@pytest.mark.slow
@pytest.mark.parametrize(("one_hot", "compression"), [(True, "zstd"), (False, "snappy")])
def test_scores_that_shrink_a_thousandfold(tmp_path, one_hot, compression):
    """A hundred thousand rows of a thousand classes, in lists: all one-hot, or all equal."""
    rows, classes = 100_000, 1000
    labels = np.random.default_rng(0).integers(classes, size=rows)
    scores = np.full((rows, classes), 0.0 if one_hot else 1 / classes, np.float32)
    if one_hot:
        scores[np.arange(rows), labels] = 1.0
    offsets = np.arange(0, rows * classes + 1, classes, dtype=np.int32)
    path = tmp_path / "p.parquet"
    lists = pa.ListArray.from_arrays(offsets, pa.array(scores.ravel()))
    pq.write_table(pa.table({"scores": lists, "label": labels}), path, compression=compression)
    assert scores.nbytes > 1000 * path.stat().st_size
    numbers, found = next(data.read_predictions(path).chunks())
    np.testing.assert_allclose(numbers, scores[: len(numbers)], rtol=1e-5)
    np.testing.assert_array_equal(found, labels[: len(found)])
