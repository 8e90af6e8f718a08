"""Kinds of trouble that feeds and machines make, one row each: which tests hold it off, and for which readers.

A fault that is found in the field belongs to a kind. Its test goes to the tests of that kind, in a form that holds for
all readers it may happen to; where the kind is new, so is the row.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import NamedTuple

import pytest

from tests.paths import ROOT

ALL = "all readers"
GRIDDED = "netcdf zarr geotiff odim"
CHAIN = "the chain, whatever the reader"


AT_THE_DOOR = ("a forecast taken for an observation", "values that cannot be")
"""Kinds that are held off in one place that every reader goes through: ``readers.Door.read`` and ``cube.make``."""


class Row(NamedTuple):
    """One kind, the readers or part that its tests are applied to, and the tests."""

    kind: str
    applied_to: str
    tests: tuple[str, ...]


KINDS = (
    Row(
        "a C library that two threads must not enter at once",
        ALL,
        ("readers/test_threads.py::test_a_reader_by_itself", "readers/test_threads.py::test_all_readers_at_once"),
    ),
    Row(
        "a product is not another one of the same grid and time",
        ALL,
        ("readers/test_readers.py::test_every_frame_says_which_product_it_is_of",),
    ),
    Row(
        "another product replaces nothing in a store",
        CHAIN,
        ("ingestion/test_products.py::test_another_product_replaces_nothing",),
    ),
    Row(
        "a step that names or periods hint at wrongly, and one that changes",
        CHAIN,
        (
            "store/test_cadence.py::test_a_wrong_hint_breaks_no_run",
            "store/test_cadence.py::test_a_change_of_step_begins_another_run",
            "store/test_cadence.py::test_the_operator_may_state_it",
        ),
    ),
    Row(
        "a time of which only the beginning is understood: offsets, zones, 24:00, leap seconds",
        "all readers that read times as text: "
        + GRIDDED
        + " knmi fmi-pgm fmi-geotiff radolan mch-gif hko7 shanghai2020 sevir",
        (
            "readers/test_stamps.py::test_the_offset_is_used",
            "readers/test_stamps.py::test_what_follows_is_understood_or_refused",
            "readers/test_stamps.py::test_what_is_not_clear_is_refused",
        ),
    ),
    Row(
        "a forecast taken for an observation",
        ALL,
        (
            "readers/test_forecasts.py::test_a_forecast_is_refused_however_it_is_found",
            "readers/test_odim.py::test_a_nominal_time_outside_of_the_period_is_refused",
        ),
    ),
    Row(
        "values that cannot be",
        ALL,
        (
            "core/test_cube.py::test_values_that_cannot_be_are_no_data_and_are_counted",
            "verification/test_scores.py::test_what_is_not_finite_is_not_compared",
        ),
    ),
    Row(
        "gains and offsets that make no sense",
        GRIDDED + " fmi-geotiff",
        ("readers/test_scaling.py::test_nonsense_is_refused_in_a_sentence",),
    ),
    Row("one redundant number that is wrong", "odim", ("readers/test_odim.py::test_three_corners_outvote_the_fourth",)),
    Row(
        "a known file in a wrapping, behind a link, in a folder of an odd name",
        ALL,
        (
            "readers/test_wrapping.py::test_every_source_is_read_out_of_an_archive",
            "readers/test_wrapping.py::test_links_to_folders_are_followed_once",
            "readers/test_wrapping.py::test_suffixes_may_be_in_capitals",
        ),
    ),
    Row("damage of any sort in a file", ALL, ("readers/test_fuzz.py::test_damage_is_refused_in_a_sentence",)),
    Row(
        "nothing done, nothing to do and nothing possible",
        CHAIN,
        (
            "ingestion/test_memory.py::test_outcomes",
            "operations/test_cycle.py::test_a_chain_that_refuses_everything_fails_and_goes_on",
        ),
    ),
    Row(
        "work that is done again in every cycle",
        CHAIN,
        (
            "ingestion/test_memory.py::test_a_refused_file_is_named_once",
            "ingestion/test_memory.py::test_unchanged_folders_are_not_listed",
        ),
    ),
    Row(
        "frames that are late, missing, corrected or from the future",
        CHAIN,
        (
            "operations/test_day.py::test_a_day_in_which_everything_goes_wrong",
            "operations/test_schedule.py::test_a_frame_ahead_of_the_clock_waits_and_blocks_nothing",
            "operations/test_schedule.py::test_a_forecast_of_a_corrected_frame_is_made_again_if_it_is_recent",
        ),
    ),
    Row(
        "a network that hangs, dies or fills the memory",
        CHAIN,
        ("operations/test_deadlines.py::test_the_process_of_the_networks_survives_what_it_runs_and_stays_warm",),
    ),
    Row(
        "a step of the cycle that fails",
        CHAIN,
        ("operations/test_cycle.py::test_a_step_that_fails_stops_no_other_and_is_named",),
    ),
    Row(
        "precision that a device lacks",
        "all networks",
        ("models/test_precision.py::test_forecast_and_training_step_need_no_float64",),
    ),
)


@cache
def functions(file: str) -> dict[str, str]:
    """Tests of a file and the text of their decorators."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {
        node.name: " ".join(map(ast.unparse, node.decorator_list))
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.kind)
def test_every_kind_has_its_tests(row: Row) -> None:
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in functions(file), f"there is no {test}"


@pytest.mark.parametrize("row", [row for row in KINDS if row.applied_to == ALL], ids=lambda row: row.kind)
def test_what_is_said_of_all_readers_is_tested_over_their_table_or_at_their_common_door(row: Row) -> None:
    over_the_table = [functions(file)[name] for file, _, name in (test.partition("::") for test in row.tests)]
    assert any("READERS" in text or text == "names" for text in over_the_table) or row.kind in AT_THE_DOOR
