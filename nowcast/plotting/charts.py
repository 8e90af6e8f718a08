"""Charts of scores by lead time, a line per model."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from nowcast.core.errors import OptionError
from nowcast.core.units import UNIT_SIGNS
from nowcast.plotting.colormaps import ColourTable, table_for
from nowcast.plotting.maps import INK, PALE
from nowcast.verification.scores import SCORES, derive, per_model, title

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, distinct in any colour vision."""


def skill_chart(scores: xr.Dataset, *, score: str, threshold: float | None = None) -> bytes:
    """Draw a score by lead time as PNG, a line per model, pooled over the runs that the model made itself.

    Args:
        scores: A Scores Dataset.
        score: Key of ``nowcast.verification.scores.SCORES``.
        threshold: Threshold of a categorical score; the nearest stored one is taken.

    Raises:
        OptionError: If the score is unknown, or needs a threshold.
    """
    chosen = scores if threshold is None else scores.sel(threshold=threshold, method="nearest")
    pooled = per_model(chosen)
    values = derive(pooled, [score], over=())
    if "threshold" in values[score].dims:
        stored = ", ".join(f"{limit:g}" for limit in scores["threshold"].values)
        raise OptionError(f"{score} needs a threshold; stored: {stored}.")
    figure = Figure((8, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    minutes = values["lead_time"].values / np.timedelta64(60, "s")
    for model, colour in zip(values["model"].values, cycle(LINES), strict=False):
        runs = int(pooled["runs"].sel(model=model).max())
        line = values[score].sel(model=model)
        axes.plot(minutes, line, "o-", ms=4, lw=2, color=colour, label=f"{model} ({runs} runs)")
    _label_chart(axes, heading=title(score) + _event(chosen, score), n=values["n"].values)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _event(scores: xr.Dataset, score: str) -> str:
    """Describe the event of a categorical score, ``, 1 mm/h and more``; empty for continuous scores."""
    if "threshold" in scores.dims or not SCORES[score].startswith("categorical:"):
        return ""
    unit = scores["threshold"].attrs.get("units", "")
    return f", {scores['threshold'].item():g} {UNIT_SIGNS.get(unit, unit)} and more"


def _label_chart(axes: Axes, *, heading: str, n: np.ndarray) -> None:
    compared = n[n > 0]
    count = "nothing compared yet"
    if compared.size:
        ends = np.unique([compared.min(), compared.max()])
        count = " to ".join(f"{pixels:,}" for pixels in ends) + " pixels behind a point"
        axes.legend(frameon=False)
    axes.set_title(heading, loc="left", weight="bold", color=INK)
    axes.set_xlabel(f"lead time (min)\nsums over runs, then ratios; {count}", color=PALE)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


# --- many networks ----------------------------------------------------------------------------------

COLUMNS = 3
"""Panels per row."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ((), (4, 1.5), (1, 1.2))
GREYS = ("#3d4852", "#8a949e", "#b8c0c7")
"""Colours of the reference models, drawn behind all others."""


def leaderboard_chart(skill: xr.Dataset, *, learned: Sequence[bool], note: str) -> bytes:
    """Draw every score by lead time as PNG, with its interval; reference models are broad grey lines.

    Args:
        skill: Scores (model, estimate, lead_time[, threshold]), see ``nowcast.verification.bootstrap.estimates``.
        learned: (model) False for the reference models.
        note: Text below the panels: data, budget, meaning of the bands.
    """
    panels = list(_panels(skill))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure((3.7 * columns + 0.4, 2.9 * rows + 1.2), dpi=100, layout="constrained")
    for place, (heading, values) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw_lines(axes, values, learned)
        axes.set_title(heading, loc="left", size=10, weight="bold", color=INK)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=PALE)
        if place >= len(panels) - columns:
            axes.set_xlabel(_lead_axis(skill)[1], size=9, color=PALE)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.supxlabel(note, size=8, color=PALE)
    return _small_png(figure)


def _small_png(figure: Figure) -> bytes:
    """Write a figure as PNG with a palette of 256 colours: a third of the bytes, without a visible difference."""
    content, small = io.BytesIO(), io.BytesIO()
    figure.savefig(content, format="png")
    Image.open(content).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


def _panels(skill: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Iterate over the heading and values (model, estimate, lead_time) of every score and threshold."""
    for name, values in skill.data_vars.items():
        if "threshold" not in values.dims:
            yield title(str(name)), values
            continue
        for limit in skill["threshold"].values:
            one = skill.sel(threshold=limit)
            yield str(name).upper() + _event(one, str(name)), one[name]


def _draw_lines(axes: Axes, values: xr.DataArray, learned: Sequence[bool]) -> None:
    leads, greys = _lead_axis(values)[0], cycle(GREYS)
    styles = cycle(
        (marker, dash, colour)
        for (dash, marker), colour in zip(product(DASHES, MARKERS), cycle(LINES[:-1]), strict=False)
    )
    for name, trained in zip(values["model"].values, learned, strict=True):
        line, low, high = (values.sel(model=name, estimate=part) for part in ("value", "low", "high"))
        marker, dash, colour = next(styles) if trained else ("", (), next(greys))
        axes.plot(
            leads,
            line,
            marker=marker,
            ms=3.5,
            lw=1.6 if trained else 4,
            dashes=dash or (None, None),
            color=colour,
            label=name,
            zorder=3 if trained else 1,
        )
        axes.fill_between(leads, low, high, color=colour, alpha=0.1, lw=0, zorder=2 if trained else 0)


def _lead_axis(values: xr.DataArray | xr.Dataset) -> tuple[np.ndarray, str]:
    """Return the lead times and their label: in minutes, or in frames for clips without a real cadence."""
    minutes = values["lead_time"].values / np.timedelta64(60, "s")
    if minutes[0] < 0.5:
        return np.arange(1, minutes.size + 1), "lead (frames)"
    return minutes, "lead time (min)"


# --- one forecast -----------------------------------------------------------------------------------


def sample_chart(fields: Mapping[str, np.ndarray], leads: Sequence[str], *, quantity: str) -> bytes:
    """Draw fields as PNG, a row per model and a column per lead time, in the colours of the maps.

    Args:
        fields: Name -> (lead, channel, y, x) in the unit of the quantity; no data is grey.
        leads: Names of the columns.
        quantity: Quantity whose colour table is used.
    """
    table, (rows, columns) = table_for(quantity), (len(fields), len(leads))
    height, width = next(iter(fields.values())).shape[-2:]
    figure = Figure((2.2 * columns + 0.5, 2.2 * rows * height / width + 0.5), dpi=90, layout="constrained")
    for row, (name, frames) in enumerate(fields.items()):
        for column, frame in enumerate(frames):
            axes = figure.add_subplot(rows, columns, row * columns + column + 1)
            axes.imshow(_coloured(frame, table), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if not row:
                axes.set_title(leads[column], size=9, color=INK)
            if not column:
                axes.set_ylabel(name, size=9, color=INK)
    return _small_png(figure)


def _coloured(frame: np.ndarray, table: ColourTable) -> np.ndarray:
    """Colour a frame (channel, y, x): by the table, or as the red, green and blue that it holds."""
    if len(frame) > 1:
        return np.moveaxis(np.rint(255 * np.nan_to_num(frame.clip(0, 1))).astype(np.uint8), 0, 2)
    frame = frame[0]
    classes = table.classes(np.nan_to_num(frame, nan=-np.inf))
    image: np.ndarray = table.palette[classes]
    image[classes == 0] = 255
    image[np.isnan(frame)] = 225
    return image
