"""Values that are still the integers of their source.

Radar comes as codes of 8 or 16 bits and a rule for what they mean. Whatever holds for a code holds for all of its
pixels: a reader hands over the codes and a table, the values are made where somebody asks for them, and to bring
frames into a store, which keeps codes too, takes neither a division nor a rounding per pixel.

``LazilyIndexedArray`` and related classes are what xarray tells writers of backends to use. Two things here are private
to it: ``MemoryCachedArray`` and ``Variable._data``, since every public way to a variable's data decodes them. They are
as expected in xarray 2026.1 to 2026.9; where they are not, ``behind`` finds no codes and values are packed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from nowcast.core.units import by_table


@dataclass(frozen=True, eq=False)
class Table:
    """float32 value of every code, NaN for no data. One object for many frames: what follows from it is kept."""

    values: np.ndarray


class EncodedArray(BackendArray):
    """An array as codes and what they stand for."""

    def __init__(self, codes: np.ndarray, table: Table) -> None:
        self.codes, self.table = codes, table
        self.shape, self.dtype = codes.shape, np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        support = indexing.IndexingSupport.BASIC
        values: np.ndarray = indexing.explicit_indexing_adapter(key, self.shape, support, self._values)
        return values

    def _values(self, key: tuple[Any, ...]) -> np.ndarray:
        return by_table(self.codes[key], self.table.values)

    def decoded(self) -> np.ndarray:
        """Make all values."""
        return self._values((slice(None),) * len(self.shape))

    def lazy(self) -> indexing.MemoryCachedArray:
        """Make the data of a variable: decoded once, at the first look."""
        cached: Callable[[object], indexing.MemoryCachedArray] = indexing.MemoryCachedArray
        return cached(indexing.LazilyIndexedArray(self))


def behind(variable: xr.Variable) -> EncodedArray | None:
    """Find the codes of a whole variable that nobody has decoded yet, so that they are the source's; else None."""
    held = getattr(variable, "_data", None)  # every public way makes the values
    lazy = held.array if isinstance(held, indexing.MemoryCachedArray) else None
    if not isinstance(lazy, indexing.LazilyIndexedArray) or not isinstance(lazy.array, EncodedArray):
        return None
    whole = all(isinstance(part, slice) and part == slice(None) for part in lazy.key.tuple)
    return lazy.array if whole else None
