"""The tables of networks and sources say what is true."""

from __future__ import annotations

import pytest

from nowcast.benchmark import catalogue
from nowcast.models import MODELS, model_class

COUNTED = catalogue.counted()


def test_every_size_has_its_row_and_its_count() -> None:
    rows = catalogue.networks()
    assert {str(row["model"]).partition(":")[0] for row in rows} == set(MODELS)
    assert all(row["GMACs"] and row["paper"] for row in rows if model_class(str(row["model"])).trainable)
    assert not [row["model"] for row in rows if str(row["model"]).endswith(catalogue.DEBUG)]


def test_count_of_a_network_by_hand() -> None:
    """U-Net's first two convolutions alone are 64 x 64 x 9 x (12 + 64) x 64 of its multiplications."""
    assert COUNTED["unet:published"] > 64 * 64 * 9 * (12 + 64) * 64
    rows = {row["model"]: row for row in catalogue.networks()}
    assert rows["convlstm:published"]["published"] == 9_032_225
    assert rows["smaat-unet:published"]["lengths"] == "12 -> 1, out: any"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [one for one in catalogue.sizes() if model_class(one[0]).trainable])
def test_counts_are_those_of_the_networks(name: str, size: str) -> None:
    """``python -m nowcast.benchmark.catalogue`` writes them anew."""
    assert COUNTED[f"{name}:{size}"] == catalogue.count(name, size)
