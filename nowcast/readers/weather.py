"""Simulated rain and the radar that sees it: settings, and one frame from them.

Everything that lives is placed by its coordinates in the moving air. The motion is linear in space, so that the way
of the air has a closed form and a plane wave remains one: the layer is a sum of waves, and no frame is interpolated
from another.
"""

from __future__ import annotations

import cmath
import math
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError

from nowcast.config import Frozen
from nowcast.readers.items import ITEM_BYTES

QUANTUM = 0.01
"""mm/h."""
HEAVIEST = 300.0
"""mm/h; more does not fit into 16 bits of the quantum."""
MOST_CELLS = 20_000
MOST_DRAWN = 2**30
"""Pixels of all cells of a frame together; takes a second."""
LAST_YEAR = 2200
AEQD = "+proj=aeqd +lat_0=50 +lon_0=10 +ellps=WGS84 +units=m"

LAYER, FAULTS = 1, 2
"""Streams of random numbers that do not touch each other."""
WAVES = 64
"""Plane waves in a layer: enough that no single one is seen."""
DEPTH = 2.0
"""Standard deviations from the edge of the layer to its heaviest rain."""
OCCUPIED = 0.5
"""Share of the sites that hold a cell; all of them would be too even."""
HALF_WIDTHS = 2 * math.sqrt(2 * math.log(2))
"""Width of a Gaussian at half its height, in standard deviations."""
REACH = 4.5
"""Standard deviations after which a cell has no rain left."""
MOST_STRAIN = 2.0
"""Times a field may be drawn out by its own height before it is another one."""
GOLDEN = 0x9E3779B97F4A7C15
"""Step of SplitMix64: 2**64 divided by the golden ratio."""

# --- settings -------------------------------------------------------------------------------------


class Settings(Frozen):
    """Settings in which all numbers are numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{limits[0]:g} is more than {limits[1]:g}; give the smaller first")
    return limits


Metres = Annotated[float, Field(ge=-1e8, le=1e8)]
Kilometres = Annotated[float, Field(gt=0, le=10_000)]
Minutes = Annotated[float, Field(ge=1, le=1440)]
Rate = Annotated[float, Field(gt=0, le=200)]
Share = Annotated[float, Field(ge=0, le=1)]


class Motion(Settings):
    """Of the air, the same at all times."""

    u: Annotated[float, Field(ge=-100, le=100)]
    """Eastwards at the centre of the grid, m/s."""
    v: Annotated[float, Field(ge=-100, le=100)]
    """Northwards at the centre of the grid, m/s."""
    rotation: Annotated[float, Field(ge=-360, le=360)] = 0.0
    """Degrees per hour, anticlockwise."""
    shear: Annotated[float, Field(ge=-0.5, le=0.5)] = 0.0
    """m/s that ``u`` gains per km northwards."""


class Cells(Settings):
    """Showers: round, moving with the air."""

    per_100_km: Annotated[float, Field(gt=0, le=1000)]
    """How many there are at a time in a square of 100 km, on average."""
    size_km: Annotated[tuple[Kilometres, Kilometres], AfterValidator(_ascending)]
    """Smallest and largest width at half the peak."""
    rain: Annotated[tuple[Rate, Rate], AfterValidator(_ascending)]
    """Weakest and strongest peak, mm/h."""
    lifetime_minutes: Annotated[tuple[Minutes, Minutes], AfterValidator(_ascending)] | None = None
    """Shortest and longest time from birth to end; None: they neither grow nor decay."""

    @property
    def reach(self) -> float:
        """Metres from the centre of the largest one to where it ends."""
        return REACH * self.size_km[1] * 1000 / HALF_WIDTHS


class Layer(Settings):
    """Widespread rain."""

    coverage: Annotated[float, Field(gt=0, lt=1)]
    """Share of the plane that it covers, on average."""
    rain: Rate
    """Heaviest rain of it, mm/h."""
    scale_km: Annotated[tuple[Kilometres, Kilometres], AfterValidator(_ascending)]
    """Smallest and largest features: wavelengths."""
    lifetime_minutes: Minutes | None = None
    """Time in which it becomes another one; None: it never does."""


class Noise(Settings):
    """Pixels that see something which is not there."""

    probability: Annotated[float, Field(ge=0, le=0.1)]
    """Probability that a pixel does, in a frame."""
    rain: Rate
    """What it shows on average, mm/h."""


class Dropouts(Settings):
    """Frames in which the radar was blind in one direction."""

    probability: Share
    """Probability that a frame is one of them."""
    degrees: Annotated[float, Field(gt=0, lt=180)] = 30.0
    """Width of the sector without data."""


class Simulator(Settings):
    """All that there is to say about a simulated radar."""

    rows: Annotated[int, Field(ge=2)]
    """Pixels from north to south."""
    columns: Annotated[int, Field(ge=2)]
    """Pixels from west to east."""
    pixel_m: Annotated[float, Field(ge=1, le=100_000)]
    """Side of a pixel."""
    crs: str = AEQD
    """Projection in metres."""
    centre: tuple[Metres, Metres] = (0.0, 0.0)
    """x, y of the centre of the grid on it, where the radar stands."""
    start: AwareDatetime
    """Time of frame 0; needs its zone: 2020-06-01T12:00Z."""
    cadence_seconds: Annotated[int, Field(ge=1, le=86_400)]
    """Time between frames."""
    frames: Annotated[int, Field(ge=1, le=10_000_000)]
    """Number of frames."""
    motion: Motion
    """How the air moves."""
    cells: Cells | None = None
    """Showers; None: there are none."""
    layer: Layer | None = None
    """Widespread rain; None: there is none."""
    noise: Noise | None = None
    """Pixels that are wrong; None: there are none."""
    dropouts: Dropouts | None = None
    """Frames that are blind in one direction; None: there are none."""
    gaps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Frames that never arrive."""
    radius_km: Kilometres | None = None
    """Beyond it the radar sees nothing; None: it sees the whole grid."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another one makes other weather of the same kind."""

    @field_validator("columns")
    @classmethod
    def _fits(cls, columns: int, info: ValidationInfo) -> int:
        if info.data.get("rows", 0) * columns > ITEM_BYTES // 4:
            raise ValueError(f"{info.data['rows']} x {columns} pixels are too many; have {ITEM_BYTES // 4} at most")
        return columns

    @field_validator("crs")
    @classmethod
    def _metric(cls, crs: str) -> str:
        try:
            axes = CRS.from_user_input(crs).axis_info
        except CRSError:
            axes = []
        if [axis.unit_name for axis in axes[:2]] != ["metre", "metre"]:
            raise ValueError(f"{crs!r} is no projection in metres; give one such as EPSG:3035")
        return crs

    @model_validator(mode="after")
    def _consistent(self) -> Simulator:
        if self.start.year + self.frames * self.cadence_seconds / 3.15e7 > LAST_YEAR or self.start.year < 1900:
            raise ValueError(f"the frames do not lie in 1900 to {LAST_YEAR}; change start, frames or cadence_seconds")
        if max(self.gaps, default=0) >= self.frames:
            raise ValueError(f"gaps names frame {max(self.gaps)}; the last one is {self.frames - 1}")
        if self.cells:
            self._drawable(self.cells)
        lives = [part.lifetime_minutes for part in (self.cells, self.layer) if part]
        longest = max((np.max(life) if life else math.inf for life in lives), default=0)
        if self.motion.shear and abs(self.motion.shear) / 1000 * longest * 60 > MOST_STRAIN:
            raise ValueError(
                "motion.shear draws the rain out beyond recognition; have less of it, or shorter "
                "lifetime_minutes of cells and layer"
            )
        return self

    def _drawable(self, cells: Cells) -> None:
        margin, pixels = 2 * cells.reach, self.rows * self.columns
        area = (self.rows * self.pixel_m + margin) * (self.columns * self.pixel_m + margin)
        count = cells.per_100_km * area / 1e10
        if count > MOST_CELLS or count * min((margin / self.pixel_m) ** 2, pixels) > MOST_DRAWN:
            raise ValueError(f"cells are too many ({count:.0f}) or too large; have a lower per_100_km or size_km")

    @property
    def x(self) -> np.ndarray:
        """Of the pixel centres: metres east of the radar."""
        return (np.arange(self.columns) - (self.columns - 1) / 2) * self.pixel_m

    @property
    def y(self) -> np.ndarray:
        """Of the pixel centres: metres north of the radar, row 0 first."""
        return ((self.rows - 1) / 2 - np.arange(self.rows)) * self.pixel_m


# --- the weather ----------------------------------------------------------------------------------


def simulate(settings: Simulator, index: int) -> np.ndarray:
    """One frame before it is rounded.

    Args:
        settings: Of the radar and the weather.
        index: Of the frame; ``gaps`` are not looked at.

    Returns:
        (row, column) float32 mm/h, row 0 north, NaN where the radar saw nothing.
    """
    seconds = float(index * settings.cadence_seconds)
    rain = np.zeros((settings.rows, settings.columns), np.float32)
    if settings.cells:
        _add_cells(rain, settings, settings.cells, seconds)
    if settings.layer:
        rain += _layer(settings, settings.layer, seconds)
    rng = np.random.default_rng([settings.seed, FAULTS, index])
    if settings.noise:
        count = rng.binomial(rain.size, settings.noise.probability)
        rain.ravel()[rng.integers(rain.size, size=count)] += rng.exponential(settings.noise.rain, count)
    np.minimum(rain, np.float32(HEAVIEST), out=rain)
    if settings.radius_km:
        rain[settings.x**2 + (settings.y**2)[:, None] > (settings.radius_km * 1000) ** 2] = np.nan
    if settings.dropouts and rng.random() < settings.dropouts.probability:
        rain[_sector(settings, 2 * math.pi * rng.random(), settings.dropouts.degrees)] = np.nan
    return rain


def _sector(settings: Simulator, azimuth: float, degrees: float) -> np.ndarray:
    """Pixels between two directions from the radar that are less than 180 degrees apart."""
    other = azimuth + math.radians(degrees)
    x, y = settings.x, settings.y[:, None]
    after = x * math.cos(azimuth) > y * math.sin(azimuth)
    return after & (x * math.cos(other) < y * math.sin(other))


def _flow(motion: Motion, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the air goes: what is ``p`` metres from the centre will be at ``matrix @ p + shift``.

    The velocity is ``gradient @ p + (u, v)``, and the square of the gradient is a multiple of the identity.
    """
    turn, shear = math.radians(motion.rotation) / 3600, motion.shear / 1000
    gradient, identity = np.array([[0, shear - turn], [turn, 0]]), np.eye(2)
    if root := cmath.sqrt(turn * (shear - turn)):
        even, odd = cmath.cosh(root * seconds).real, (cmath.sinh(root * seconds) / root).real
        integral = odd * identity + ((even - 1) / root**2).real * gradient
    else:
        even, odd = 1.0, seconds
        integral = odd * identity + seconds**2 / 2 * gradient
    return even * identity + odd * gradient, integral @ (motion.u, motion.v)


def _layer(settings: Simulator, layer: Layer, seconds: float) -> np.ndarray:
    """(row, column) mm/h: the part of a Gaussian field that rises above a threshold."""
    rows, columns = [], []
    for generation, weight, age in _generations(layer.lifetime_minutes, seconds):
        vectors, phases, amplitudes = _waves(settings.seed, generation, *layer.scale_km)
        matrix, shift = _flow(settings.motion, -age)
        along_x, along_y = matrix.T @ vectors  # a wave of where the air came from is a wave of where it is
        across = settings.x * along_x[:, None]
        down = settings.y[:, None] * along_y + (phases + shift @ vectors)
        rows += [weight * amplitudes * np.cos(down), -weight * amplitudes * np.sin(down)]
        columns += [np.cos(across), np.sin(across)]
    field = np.hstack(rows).astype(np.float32) @ np.vstack(columns).astype(np.float32)
    field -= np.float32(NormalDist().inv_cdf(1 - layer.coverage))
    field *= np.float32(layer.rain / DEPTH)
    return np.clip(field, 0, np.float32(layer.rain), out=field)


def _generations(lifetime_minutes: float | None, seconds: float) -> list[tuple[int, float, float]]:
    """Layers at a time: number, weight, and seconds since the moment for which its waves were drawn.

    One gives way to the next at a constant variance of the sum.
    """
    if lifetime_minutes is None:
        return [(0, 1.0, seconds)]
    lifetime = lifetime_minutes * 60
    number, part = divmod(seconds / lifetime, 1)
    angle = part * math.pi / 2
    return [
        (int(number) + later, weight, (part - later) * lifetime)
        for later, weight in enumerate((math.cos(angle), math.sin(angle)))
    ]


@lru_cache(maxsize=8)
def _waves(seed: int, generation: int, shortest: float, longest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wave vectors (2, n) in radians per metre, phases and amplitudes; the sum has a variance of 1.

    Lengths are even on a logarithmic axis and amplitudes grow with their square root, which makes a spectrum that
    falls with the third power of the wave number.
    """
    rng = np.random.default_rng([seed, LAYER, generation])
    lengths = np.exp(rng.uniform(math.log(shortest), math.log(longest), WAVES)) * 1000
    headings, phases = rng.uniform(0, 2 * math.pi, (2, WAVES))
    amplitudes = np.sqrt(2 * lengths / lengths.sum())
    return 2 * math.pi / lengths * np.stack([np.cos(headings), np.sin(headings)]), phases, amplitudes


def _add_cells(rain: np.ndarray, settings: Simulator, cells: Cells, seconds: float) -> None:
    """Draw the cells that live; where two meet, the stronger counts."""
    if cells.lifetime_minutes is None:
        generations = [(0, 0.0)]
    else:  # those born in this longest lifetime and in the one before
        longest = cells.lifetime_minutes[1] * 60
        now = int(seconds // longest)
        generations = [(number, number * longest) for number in (now - 1, now)]
    for number, begin in generations:
        for x, y, peak, deviation in _alive(settings, cells, number, begin, seconds).tolist():
            _draw(rain, settings, x, y, peak, deviation)


def _alive(settings: Simulator, cells: Cells, generation: int, begin: float, seconds: float) -> np.ndarray:
    """Cells of a generation that reach into the grid: (n, 4) x, y, peak, standard deviation; metres and mm/h.

    The air of the moment ``begin`` is divided into sites, which hold one cell each or none.
    """
    spacing = math.sqrt(1e10 * OCCUPIED / (cells.per_100_km * _overlap(cells)))
    x, y, present, size, peak, birth, life = _sites(settings, generation, seconds - begin, spacing, cells.reach)
    size, peak = _between(cells.size_km, size) * 1000, _between(cells.rain, peak, logarithmic=True)
    if cells.lifetime_minutes:
        life = _between(cells.lifetime_minutes, life) * 60
        age = seconds - begin - birth * cells.lifetime_minutes[1] * 60
        peak = peak * np.where((age > 0) & (age < life), np.sin(math.pi * age / life) ** 2, 0)
    there = (present < OCCUPIED) & (peak >= QUANTUM / 2)
    there &= (np.abs(x) < settings.x[-1] + cells.reach) & (np.abs(y) < settings.y[0] + cells.reach)
    alive: np.ndarray = np.stack([x, y, peak, size / HALF_WIDTHS], axis=-1)[there]
    return alive


def _overlap(cells: Cells) -> float:
    """Cells born in a longest lifetime for one that lives at any time."""
    return 2 / (1 + cells.lifetime_minutes[0] / cells.lifetime_minutes[1]) if cells.lifetime_minutes else 1.0


def _sites(settings: Simulator, generation: int, age: float, spacing: float, margin: float) -> np.ndarray:
    """(7, n) of all sites whose air is near the grid now: x and y of a point in them, five random numbers in [0, 1)."""
    matrix, shift = _flow(settings.motion, -age)
    half_x, half_y = settings.x[-1] + margin, settings.y[0] + margin
    corners = matrix @ np.array([[-half_x, half_x, half_x, -half_x], [-half_y, -half_y, half_y, half_y]])
    corners = np.floor((corners + shift[:, None]) / spacing).astype(int)
    (left, bottom), (right, top) = corners.min(axis=1), corners.max(axis=1)
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(left, right + 1), np.arange(bottom, top + 1)))
    draws = _random(7, settings.seed, generation, column, row)
    matrix, shift = _flow(settings.motion, age)
    places = matrix @ ((np.stack([column, row]) + draws[:2]) * spacing) + shift[:, None]
    return np.concatenate([places, draws[2:]])


def _between(limits: tuple[float, float], draw: np.ndarray, *, logarithmic: bool = False) -> np.ndarray:
    low, high = limits
    return low * (high / low) ** draw if logarithmic else low + (high - low) * draw


def _draw(rain: np.ndarray, settings: Simulator, x: float, y: float, peak: float, deviation: float) -> None:
    """Draw a Gaussian, a product of one along the row and one along the column; where rain is stronger, it stays."""
    row = (settings.rows - 1) / 2 - y / settings.pixel_m
    column = (settings.columns - 1) / 2 + x / settings.pixel_m
    deviation /= settings.pixel_m
    rows, down = _profile(row, deviation, settings.rows)
    columns, across = _profile(column, deviation, settings.columns)
    there = rain[rows, columns]
    np.maximum(there, np.multiply.outer(np.float32(peak) * down, across), out=there)


def _profile(place: float, deviation: float, size: int) -> tuple[slice, np.ndarray]:
    """Compute which pixels of an axis a Gaussian of height 1 reaches, and its values there."""
    first = max(0, math.ceil(place - REACH * deviation))
    last = min(size, math.floor(place + REACH * deviation) + 1)
    steps = (np.arange(first, max(first, last)) - place) / deviation
    return slice(first, max(first, last)), np.exp(-0.5 * steps * steps).astype(np.float32)


# --- random numbers that belong to a place --------------------------------------------------------


def _random(count: int, *keys: int | np.ndarray) -> np.ndarray:
    """(count, n) in [0, 1), the same for the same keys however many others are asked for.

    Steele et al. (2014), Fast splittable pseudorandom number generators (SplitMix64).
    """
    state = np.zeros(np.broadcast_shapes(*map(np.shape, keys)), np.uint64)
    for key in keys:
        state = _mixed(state + np.asarray(key, np.int64).astype(np.uint64) + np.uint64(GOLDEN))
    steps = [np.uint64(GOLDEN * number % 2**64) for number in range(1, count + 1)]
    return np.stack([_mixed(state + step) >> np.uint64(11) for step in steps]) * 2.0**-53


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state
