"""Map images with legend and caption, and animated loops of them.

Nothing here keeps global state or needs a display: each figure has an Agg canvas of its own, on the grid of the
data, so no field is interpolated.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from PIL import Image

from nowcast.core.cube import channels
from nowcast.core.errors import BadInput, OptionError
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.core.units import get_quantity
from nowcast.plotting.boundaries import BORDER, COAST, boundaries, land
from nowcast.plotting.colormaps import ColourTable, rgb, table_for

__all__ = ["Caption", "MapPainter", "boundaries", "loop", "plot_map", "table_for"]

ARCHIVED = np.timedelta64(1, "D")
"""A run made later than this uses archived data: its delay is not shown."""

# --- captions ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caption:
    """Caption of an image: what it shows, even when it is passed on alone."""

    valid: np.datetime64
    state: str = "observed"
    """``observed``, or for a forecast ``ok``, ``fallback`` or ``withheld``."""
    model: str = ""
    producer: str = ""
    reason: str = ""
    reference: np.datetime64 | None = None
    created: np.datetime64 | None = None

    def __post_init__(self) -> None:
        if self.state not in BADGES:
            raise OptionError(f"Unknown state {self.state!r}; known: {', '.join(BADGES)}.")

    @classmethod
    def of(cls, frame: xr.DataArray) -> Caption:
        """Read the caption from one (y, x) frame of a Cube or of a Forecast store."""
        here: dict[str, Any] = {str(name): value.values[()] for name, value in frame.coords.items()}
        if "forecast_reference_time" not in here:
            return cls(here["time"])
        reference = here["forecast_reference_time"]
        words = {"state": "ok", "model": str(frame.attrs.get("model", ""))}  # for a forecast from no store
        words |= {key: str(here[key]) for key in ("state", "model", "producer", "reason") if key in here}
        return cls(reference + here["lead_time"], reference=reference, created=here.get("created"), **words)

    @property
    def badge(self) -> str:
        """State and lead time, such as ``FORECAST  +30 min``."""
        if self.reference is None:
            return "OBSERVED"
        word = {"ok": "FORECAST"}.get(self.state, self.state.upper())
        return f"{word}  +{_duration(self.valid - self.reference)}"

    @property
    def origin(self) -> str:
        """Model, reference time, delay until the run was made, and state."""
        if self.reference is None:
            return "radar"
        age = np.timedelta64("NaT") if self.created is None else np.timedelta64(self.created - self.reference)
        made = f", made {_duration(age)} later" if age < ARCHIVED else ""
        return f"{self.model}  ·  run {_stamp(self.reference, '%d %b %H:%M UTC')}{made}  ·  {self.state.upper()}"

    @property
    def warning(self) -> str:
        """Warning of a fallback or a withheld forecast; empty if there is none."""
        reason = f": {self.reason}" if self.reason else ""
        return {
            "fallback": f"FALLBACK  {self.producer} in place of {self.model}{reason}",
            "withheld": f"WITHHELD  no forecast of {self.model}{reason}",
        }.get(self.state, "")


def _stamp(time: np.datetime64, pattern: str) -> str:
    return f"{time.astype('datetime64[s]').item():{pattern}}"


def _duration(span: np.timedelta64) -> str:
    minutes = span / np.timedelta64(60, "s")
    for limit, size, unit in ((120, 1, "min"), (2880, 60, "h")):
        if minutes < limit:
            return f"{minutes / size:.3g} {unit}"
    return f"{minutes / 1440:.0f} d"


# --- maps -------------------------------------------------------------------------------------------

SMALLEST, LARGEST = 640, 1100
"""Pixels of a map's longer side: smaller grids are enlarged by a whole factor, larger ones reduced."""
LEAST = 240
"""Pixels of the shorter side at least."""
MARGIN, HEADER, FOOTER, LEGEND = 14, 62, 28, 88
INK, PALE, PAPER = "#1d2733", "#66727f", "#ffffff"
SEA, LAND, COASTLINE = "#e6ecf0", "#f7f5f0", "#36414c"
BADGES = {"observed": "#46525f", "ok": "#2458c5", "fallback": "#c2630a", "withheld": "#b3202c"}
STRIP, HATCH = 26, 9
PILL = {"boxstyle": "round,pad=0.45", "edgecolor": "none"}
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
"""Flat colours pack best unfiltered: a third of the size of cv2's default, in the same time."""


class MapPainter:
    """Draws fields of one quantity on one grid.

    Background, coasts, graticule and legend are drawn once; an image then only adds colours and captions.
    Not thread-safe: all images share one canvas.
    """

    def __init__(self, grid: Grid, name: str, *, table: ColourTable | None = None, source: str = "") -> None:
        """Draw everything that is the same in all images.

        Args:
            grid: Grid of the fields.
            name: Quantity of the fields.
            table: Colour table; None is the default one of the quantity.
            source: Attribution, printed below the map.
        """
        self.table = table or table_for(name)
        self._label = get_quantity(name).long_name.capitalize()
        self._north_up = np.s_[:: 1 if grid.orientation == NORTH_UP else -1, :: 1 if grid.x[-1] > grid.x[0] else -1]
        rows, columns = _panel_size(grid)
        sizes = zip((rows, columns), grid.shape, strict=True)
        self._starts = [np.arange(pixels) * cells // pixels for pixels, cells in sizes]
        lon, lat = _lonlat(grid, rows, columns)
        self._background = _background(lon, lat)
        self._uncovered = _hatched(self._background)
        overlay = _overlay(grid, lon, lat).reshape(-1, 4)
        self._inked = np.flatnonzero(overlay[:, 3])
        self._opacity = overlay[self._inked, 3:].astype(np.float32) / 255
        self._ink = overlay[self._inked, :3] * self._opacity
        self._panel = np.s_[HEADER : HEADER + rows, MARGIN : MARGIN + columns, :3]
        self._canvas, self._texts = self._layout(rows, columns, source)
        self._blank = np.array(self._canvas.buffer_rgba())

    def png(self, field: np.ndarray, *, caption: Caption) -> bytes:
        """Draw one field as PNG.

        Args:
            field: (y, x) in the unit of the colour table; NaN is hatched as not covered.
            caption: Texts of the image.
        """
        pixels = np.asarray(self._canvas.buffer_rgba())
        pixels[:] = self._blank
        panel = pixels[self._panel]
        panel[:] = self._coloured(field)
        if caption.warning:
            panel[:STRIP] = rgb(BADGES[caption.state])
        self._draw_texts(caption)
        return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGR), PNG)[1].tobytes()

    def _coloured(self, field: np.ndarray) -> np.ndarray:
        shown = field[self._north_up]
        for axis, starts in enumerate(self._starts):
            if starts.size != shown.shape[axis]:
                # An image pixel that covers several grid pixels shows the largest value.
                shown = np.fmax.reduceat(shown, starts, axis=axis)
        classes = self.table.classes(shown)
        image: np.ndarray = self.table.palette[classes]
        np.copyto(image, self._background, where=(classes == 0)[..., None])
        np.copyto(image, self._uncovered, where=np.isnan(shown)[..., None])
        flat = image.reshape(-1, 3)
        flat[self._inked] = flat[self._inked] * (1 - self._opacity) + self._ink
        return image

    def _draw_texts(self, caption: Caption) -> None:
        columns = self._background.shape[1]
        warning = caption.warning
        words = {
            "time": _stamp(caption.valid, "Valid %H:%M UTC  %a %d %b %Y"),
            "origin": f"{self._label}  ·  {caption.origin}",
            "badge": caption.badge,
            "warning": warning if len(warning) * 7 < columns else warning[: columns // 7] + "…",
        }
        self._texts["badge"].set_bbox(PILL | {"facecolor": BADGES[caption.state]})
        for name, text in self._texts.items():
            text.set_text(words[name])
            text.draw(self._canvas.get_renderer())

    def _layout(self, rows: int, columns: int, source: str) -> tuple[Any, dict[str, Text]]:
        """Draw what surrounds the map, and place the texts that change."""
        width, height = max(columns, 480) + 2 * MARGIN + LEGEND, HEADER + rows + FOOTER
        canvas, axes = _pixel_canvas(width, height, face=PAPER)
        axes.add_patch(Rectangle((MARGIN - 0.5, HEADER - 0.5), columns + 1, rows + 1, fill=False, ec=PALE, lw=1))
        self._draw_legend(axes, left=MARGIN + columns + 16, top=HEADER, bottom=HEADER + rows)
        below = height - FOOTER / 2
        small: dict[str, Any] = {"size": 11, "color": PALE, "va": "center_baseline"}
        axes.text(MARGIN, below, source, **small)
        axes.text(width - MARGIN, below, "Boundaries: Natural Earth", ha="right", **small)
        canvas.draw()
        style: dict[str, Any] = {"va": "center_baseline", "animated": True}
        bold = style | {"weight": "bold", "color": PAPER}
        return canvas, {
            "time": axes.text(MARGIN, 22, "", size=20, **bold | {"color": INK}),
            "origin": axes.text(MARGIN, 47, "", size=12.5, color=PALE, **style),
            "badge": axes.text(width - MARGIN - 6, 22, "", size=13, ha="right", **bold),
            "warning": axes.text(MARGIN + 10, HEADER + STRIP / 2, "", size=12, **bold),
        }

    def _draw_legend(self, axes: Axes, *, left: float, top: float, bottom: float) -> None:
        """Draw the classes from bottom to top with their lower limits; below them lower values, and no data."""
        style: dict[str, Any] = {"size": 11, "color": INK, "va": "center_baseline"}
        height = min((bottom - top - 92) / len(self.table.breaks), 28)
        axes.text(left, top + 7, self.table.unit, weight="bold", **style | {"size": 12})
        foot = top + 24 + height * len(self.table.breaks)
        for rank, (limit, colour) in enumerate(zip(self.table.breaks, self.table.colours, strict=True)):
            axes.add_patch(Rectangle((left, foot - height * (rank + 1)), 20, height, fc=colour, ec=PAPER, lw=0.5))
            axes.text(left + 26, foot - height * rank, f"{limit:.3g}", **style)
        for y, label in ((foot + 16, f"< {self.table.breaks[0]:.3g}"), (foot + 40, "no data")):
            shown = self._uncovered if label == "no data" else np.broadcast_to(rgb(LAND), self._background.shape)
            box: dict[str, Any] = {"extent": (left, left + 20, y + 16, y), "aspect": "auto", "interpolation": "nearest"}
            axes.imshow(shown[:16, :20], **box)
            axes.add_patch(Rectangle((left, y), 20, 16, fill=False, ec=PALE, lw=0.5))
            axes.text(left + 26, y + 8, label, **style)


def _pixel_canvas(width: int, height: int, *, face: str) -> tuple[Any, Axes]:
    """Make a FigureCanvasAgg, whose methods state no types, with coordinates in pixels from the top left.

    At 72 dpi a point of text is a pixel too.
    """
    figure = Figure((width / 72, height / 72), dpi=72, facecolor=face)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    return FigureCanvasAgg(figure), axes


def _panel_size(grid: Grid) -> tuple[int, int]:
    """Compute the rows and columns of the image of a grid, with its aspect ratio on the ground.

    A strip that would be too narrow to see, and for the legend beside it, is drawn wider than it is.
    """
    steps = np.asarray([abs(axis[1] - axis[0]) for axis in (grid.y, grid.x)])
    if grid.crs.is_geographic:
        steps[1] *= np.cos(np.radians(grid.y.mean()))
    cells = grid.shape * steps / steps.min()
    enlarged = np.ceil(SMALLEST / cells.max())
    scale = enlarged if enlarged > 1 else min(LARGEST / cells.max(), 1)
    return max(round(cells[0] * scale), LEAST), max(round(cells[1] * scale), LEAST)


def _edges(axis: np.ndarray) -> tuple[float, float]:
    """Return the lower and upper outer edge of an axis of pixel centres."""
    half = abs(axis[1] - axis[0]) / 2
    return axis.min() - half, axis.max() + half


def _lonlat(grid: Grid, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute longitude and latitude of the pixels of an image, in degrees; NaN beyond the edge of the Earth."""
    (left, right), (low, top) = _edges(grid.x), _edges(grid.y)
    x = left + (right - left) * (np.arange(columns) + 0.5) / columns
    y = top - (top - low) * (np.arange(rows) + 0.5) / rows
    lon, lat = grid.lonlat(*np.meshgrid(x, y))
    return np.where(np.isfinite(lon), lon, np.nan), np.where(np.isfinite(lat), lat, np.nan)


def _background(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    share = land(lon, lat)[..., None]
    return np.asarray(rgb(SEA) * (1 - share) + rgb(LAND) * share).astype(np.uint8)


def _hatched(background: np.ndarray) -> np.ndarray:
    """Grey and hatch the background, to mark pixels that are not covered."""
    row, column = np.ogrid[: background.shape[0], : background.shape[1]]
    shade = np.where((row + column) % HATCH < 2, 0.4, 0.2)[..., None]
    return np.asarray(background * (1 - shade) + rgb(PALE) * shade).astype(np.uint8)


def _overlay(grid: Grid, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Draw coasts, borders and graticule on a transparent image, uint8 RGBA (rows, columns, 4)."""
    rows, columns = lon.shape
    canvas, axes = _pixel_canvas(columns, rows, face="none")
    (left, right), (low, top) = _edges(grid.x), _edges(grid.y)
    lines: dict[str, list[np.ndarray]] = {COAST: [], BORDER: []}
    for line in boundaries(grid):
        place = (line.x - left) / (right - left) * columns, (top - line.y) / (top - low) * rows
        lines[line.kind].append(np.stack(place, axis=1))
    axes.add_collection(LineCollection(lines[BORDER], colors=COASTLINE, linewidths=0.8, alpha=0.75))
    axes.add_collection(LineCollection(lines[COAST], colors=COASTLINE, linewidths=1.1))
    _draw_graticule(axes, lon, lat)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _draw_graticule(axes: Axes, lon: np.ndarray, lat: np.ndarray) -> None:
    """Draw meridians and parallels at round degrees, labelled at the bottom and at the left."""
    rows, columns = lon.shape
    centre = lon[rows // 2, columns // 2]
    for level in _round_levels((lon - centre + 180) % 360 - 180 + centre):
        # Zero along the meridian and undefined on the other half of the Earth, so nothing jumps at 180 degrees.
        east = np.radians(lon - level)
        distance = np.where(np.cos(east) > 0, np.sin(east), np.nan)
        _draw_zero_line(axes, distance)
        for column in _sign_changes(distance[-1]):
            _label_line(axes, column, rows - 9, _degrees(level, "EW"))
    for level in _round_levels(lat):
        _draw_zero_line(axes, lat - level)
        for row in _sign_changes(lat[:, 0] - level):
            _label_line(axes, 5, row, _degrees(level, "NS"))


def _draw_zero_line(axes: Axes, distance: np.ndarray) -> None:
    down, across = (np.arange(0, size, 4) for size in distance.shape)
    coarse = distance[np.ix_(down, across)]
    if np.nanmin(coarse) < 0 < np.nanmax(coarse):  # else contour warns
        axes.contour(across, down, coarse, [0], colors=PALE, linewidths=0.5, alpha=0.55)


def _sign_changes(values: np.ndarray) -> np.ndarray:
    return np.flatnonzero(values[1:] * values[:-1] <= 0)


def _label_line(axes: Axes, x: float, y: float, words: str) -> None:
    label = axes.text(x, y, words, size=10, color=PALE, va="center_baseline")
    label.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER, alpha=0.85)])


def _degrees(level: float, signs: str) -> str:
    level = (level + 180) % 360 - 180
    return f"{abs(level):g}°{signs[int(level < 0)]}"


def _round_levels(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60) if (high - low) / step <= 7)
    return np.arange(np.ceil(low / step), high / step) * step


# --- single maps and loops --------------------------------------------------------------------------


def plot_map(frame: xr.Dataset | xr.DataArray, path: str | Path | None = None) -> Image.Image:
    """Draw one frame as a map with legend, coasts, time and, of a forecast, its lead time.

    Example: ``plot_map(cube.isel(time=-1))``, ``plot_map(made.isel(lead_time=5), "in_30_minutes.png")``.

    Args:
        frame: (y, x) of a Cube, of a Forecast, or of one of their variables.
        path: Where to write it as PNG too.

    Returns:
        The image, which notebooks show.

    Raises:
        BadInput: If there is more than one frame, or it lies nowhere on Earth.
    """
    if isinstance(frame, xr.Dataset):
        frame = frame[channels(frame)[0]].assign_attrs(model=frame.attrs.get("model", ""))
    if frame.dims != ("y", "x"):
        raise BadInput(frame.name, f"has the dimensions {', '.join(map(str, frame.dims))}", "choose one frame by isel")
    grid = Grid.of(frame.coords.to_dataset())
    if not grid.on_earth:
        raise BadInput(frame.name, "lies nowhere on Earth", "show its values as they are")
    content = MapPainter(grid, str(frame.name)).png(frame.values, caption=Caption.of(frame))
    if path is not None:
        Path(path).write_bytes(content)
    return Image.open(io.BytesIO(content))


def loop(frames: Sequence[bytes], *, seconds: float = 0.4) -> bytes:
    """Join PNG images of one size to an endless animated GIF; the last one is shown four times as long.

    Args:
        frames: PNG files.
        seconds: Time for which each image is shown.
    """
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    content = io.BytesIO()
    held = [round(1000 * seconds * rest) for rest in [1] * (len(images) - 1) + [4]]
    images[0].save(content, format="GIF", save_all=True, append_images=images[1:], duration=held, loop=0)
    return content.getvalue()
