"""Rows in 32, 16 and 8 bits: the products are those of their float32 values."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedcar.common.tensors import mapped_tensors
from fedcar.common.vectors import top_k
from fedcar.head import rows as rows_module
from fedcar.head.rows import KINDS, Rows, products

VECTORS = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
QUERIES = np.random.default_rng(1).standard_normal((3, 12)).astype(np.float32)
WORST = {"float32": 0.0, "float16": 2**-11, "int8": 0.5 / 127}  # of a row's largest entry


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a bundle, which has no torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_is_kept_as_well_as_its_kind_can(kind: str) -> None:
    error = np.abs(Rows.of(VECTORS, kind)[:] - VECTORS) / np.abs(VECTORS).max(axis=1, keepdims=True)
    assert error.max() <= WORST[kind] * 1.001


@pytest.mark.parametrize("block", [7, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_stored_rows_are_those_of_their_float32_values(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK", block)
    stored = Rows.of(VECTORS, kind)
    np.testing.assert_allclose(stored.products(QUERIES), QUERIES @ stored[:].T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(products(QUERIES, stored), stored.products(QUERIES))
    assert products(QUERIES, stored[:]).shape == (3, 50) == (3, len(stored))


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_rows_are_the_first_of_all_products(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BLOCK", 7)
    monkeypatch.setattr(rows_module, "PRODUCTS", 9)
    whole_numbers, queries = np.round(3 * VECTORS), np.round(3 * QUERIES)  # whose products have no rounding
    stored = Rows.of(np.concatenate([whole_numbers, whole_numbers[:5]]), kind)  # of equal ones the first comes first
    for k in (1, 4, 55, 80):
        scores, places = stored.nearest(queries, k)
        products = stored.products(queries)
        np.testing.assert_array_equal(places, top_k(products, k))
        np.testing.assert_array_equal(scores, np.take_along_axis(products, places, axis=1))
    assert stored.nearest(QUERIES, 0)[1].shape == (3, 0) == Rows(VECTORS[:0]).nearest(QUERIES, 2)[1].shape


@pytest.mark.parametrize("torch_is_loaded", [False, True])
def test_every_float16_becomes_its_float32(torch_is_loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch) if not torch_is_loaded else pytest.importorskip("torch")
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(-1, 1)
    found = Rows(every).products(np.ones((1, 1), np.float32))[0]
    np.testing.assert_array_equal(found, every[:, 0].astype(np.float32))


@pytest.mark.parametrize("queries", [QUERIES, QUERIES[:1]])
def test_products_with_float16_are_the_same_with_torch_and_without(
    queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(rows_module, "BLOCK", 7)
    stored = Rows.of(VECTORS * np.float32(10.0) ** np.arange(-9, 3, dtype=np.float32), "float16")  # some are subnormal
    read_only = Rows(stored.values.copy())
    read_only.values.flags.writeable = False
    expected = queries @ stored[:].T
    np.testing.assert_allclose(stored.products(queries), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(read_only.products(queries), expected, rtol=1e-5, atol=1e-4)
    by_torch = stored.nearest(queries, 9)[1]
    without_torch(monkeypatch)
    np.testing.assert_allclose(stored.products(queries), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(stored.nearest(queries, 9)[1], by_torch)


def test_queries_may_be_any_view_and_torch_may_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    stored = Rows.of(VECTORS, "float16")
    read_only = QUERIES.copy()
    read_only.flags.writeable = False
    for queries in (read_only, QUERIES[::-1], np.asfortranarray(QUERIES), QUERIES.astype(np.float64)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(stored.products(queries), queries @ stored[:].T, rtol=1e-5, atol=1e-5)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_allclose(stored.products(QUERIES), QUERIES @ stored[:].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_from_a_mapped_file(kind: str, tmp_path: Path) -> None:
    stored = Rows.of(VECTORS, kind)
    save_file(stored.arrays("some"), tmp_path / "rows.safetensors")
    again = Rows.from_arrays(mapped_tensors(tmp_path / "rows.safetensors"), "some")
    assert again.kind == kind and again.shape == (50, 12)
    np.testing.assert_array_equal(again[[3, 1, 1]], stored[[3, 1, 1]])
    np.testing.assert_array_equal(again[np.array([[0, 1], [2, 49]])], stored[:][[[0, 1], [2, 49]]])
    np.testing.assert_allclose(again.products(QUERIES), stored.products(QUERIES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_and_no_row_at_all(kind: str) -> None:
    assert not Rows.of(np.zeros((2, 4), np.float32), kind).products(np.ones((1, 4), np.float32)).any()
    assert Rows.of(np.zeros((0, 4), np.float32), kind).products(np.ones((2, 4), np.float32)).shape == (2, 0)


def test_rows_on_disk_are_those_of_the_array(tmp_path: Path) -> None:
    arrays = {"one": np.arange(12, dtype=np.int8), "two": np.arange(24, dtype=np.float32).reshape(6, 4)}
    save_file(arrays, tmp_path / "arrays.safetensors")
    found = mapped_tensors(tmp_path / "arrays.safetensors", ["two"])
    np.testing.assert_array_equal(found["one"], arrays["one"])
    assert len(found["two"]) == 6
    for rows in (slice(0, 6), slice(2, 3), slice(np.int64(4), np.int64(6)), slice(3, 3), slice(5, 9)):
        np.testing.assert_array_equal(found["two"][rows], arrays["two"][rows])
