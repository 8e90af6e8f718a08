"""Lagrangian persistence: the newest frame carried along its own motion.

Motion: dense inverse search optical flow (Kroeger et al., 2016, doi:10.1007/978-3-319-46493-0_29) on frames
reduced to a few kilometres, where rain moves as one air mass and single cells do not pull the field about.
Transport: backward semi-Lagrangian with a mid-point trajectory (Germann and Zawadzki, 2002,
doi:10.1175/1520-0493(2002)130<2859:SDOTPO>2.0.CO;2).
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from nowcast.models.nowcaster import Nowcaster, check_past

AGES = 3
"""Earlier frames from each of which the newest is tracked: rain that has come far tells its motion best, rain that has
changed since does not tell it at all."""

STRAY = 0.5
"""Coarse pixels between a place and where tracking there and back again ends, that make a vector doubtful."""

REDUCTION = 4
"""Pixels per side of one coarse pixel, in which motion is estimated and trajectories are traced."""

SMOOTHING = 1.5
"""Standard deviation of the smoothing of motion, in coarse pixels."""

FILLING = 1.25
"""The same of what fills missing parts of a frame."""

SMALLEST = 32
"""Coarse pixels per side that optical flow needs; smaller frames are reduced less, or extended."""

NONE = np.empty(0, np.float32)
"""What OpenCV takes as an array left out."""

MIDPOINT_ITERATIONS = 2
"""Per step; it starts from the step before, so more change nothing."""


class Extrapolation(Nowcaster):
    """Extrapolation of the newest frame along the motion of the last frames; nothing to learn.

    Interpolates in the scale of its input. On the decibel axis of rain rate that mostly gives a lower error than
    interpolation of mm/h, because the mean of logarithms does not exaggerate a peak between two pixels.
    NaN comes out where a trajectory starts in a pixel without data or outside the grid. One frame in means no
    motion, so persistence. Runs on the CPU; channels move independently of each other.
    """

    handles_missing = True
    trainable = False
    history = (2, 4)

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW, NaN where rain from outside the grid would come in."""
        check_past(past_BTCHW, self)
        past = past_BTCHW.detach().to("cpu", torch.float32).numpy()
        batch, _, channels, height, width = past.shape
        future = np.empty((batch, self.out_steps, channels, height, width), np.float32)
        for b, c in np.ndindex(batch, channels):
            future[b, :, c] = self.forecast(past[b, :, c])
        return torch.from_numpy(future).to(past_BTCHW)

    def forecast(self, frames_THW: np.ndarray) -> np.ndarray:
        """(out_steps, H, W) of one sequence of one channel."""
        return advect(frames_THW[-1], motion(frames_THW), steps=self.out_steps)


def motion(frames_THW: np.ndarray) -> np.ndarray:
    """Smooth motion of the newest frame, known everywhere.

    Args:
        frames_THW: Frames in [0, 1], oldest first, at even steps; NaN is no data. The last four count.

    Returns:
        float32 (2, H, W) in pixels per step: [0] towards higher columns, [1] towards higher rows.
        Zero if nothing can be tracked: one frame, no rain, no data.
    """
    frames = np.asarray(frames_THW, np.float32)[-AGES - 1 :]
    height, width = frames.shape[1:]
    coarse = [_reduce(frame) for frame in frames]
    peak = max(image.max() for image, _ in coarse)
    rows, columns = coarse[0][0].shape
    if peak <= 0 or len(coarse) < 2:
        return np.zeros((2, height, width), np.float32)
    vectors = _smooth(*_track(coarse, peak=peak)) * np.array([width / columns, height / rows], np.float32)
    return np.moveaxis(cv2.resize(vectors, (width, height)), -1, 0)


def advect(frame_HW: np.ndarray, motion_2HW: np.ndarray, *, steps: int) -> np.ndarray:
    """Carries a frame along a steady motion field.

    Args:
        frame_HW: The field at step 0; NaN is no data.
        motion_2HW: Pixels per step, as from :func:`motion`.
        steps: How many steps to return.

    Returns:
        float32 (steps, H, W), bilinear between the pixels that have data; NaN where they hold less than
        half of the weight.
    """
    height, width = frame_HW.shape
    known = np.isfinite(frame_HW)
    source = cv2.merge([np.where(known, frame_HW, 0).astype(np.float32), known.astype(np.float32)])
    here = _positions(height, width)
    future = np.full((steps, height, width), np.nan, np.float32)
    for step, displacement in enumerate(displacements(motion_2HW, steps=steps)):
        origin = here - cv2.resize(displacement, (width, height))
        value, weight = cv2.split(cv2.remap(source, origin, NONE, cv2.INTER_LINEAR, borderValue=0))
        np.divide(value, weight, out=future[step], where=weight >= 0.5)
    return future


def coarse_shape(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the grid that motion is found on."""
    factor = max(1, min(REDUCTION, min(height, width) // SMALLEST))
    return -(-height // factor), -(-width // factor)


def _positions(height: int, width: int) -> np.ndarray:
    """(height, width, 2) float32: column and row of every pixel, the order of OpenCV."""
    return np.dstack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)))


def _reduce(frame_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame in coarse pixels with missing parts filled from around them, and the share of data there.

    A hole filled with zeros would look like an edge that stands still.
    """
    rows, columns = coarse_shape(*frame_HW.shape)
    known = np.isfinite(frame_HW)
    filled = cv2.merge([np.where(known, np.maximum(frame_HW, 0), 0), known.astype(np.float32)])
    total, share = cv2.split(cv2.resize(filled, (columns, rows), interpolation=cv2.INTER_AREA))
    total_around, share_around = (cv2.GaussianBlur(part, (0, 0), FILLING) for part in (total, share))
    return total + (1 - share) * total_around / np.maximum(share_around, 1e-6), share_around


def _track(coarse: list[tuple[np.ndarray, np.ndarray]], *, peak: float) -> tuple[np.ndarray, np.ndarray]:
    """Sum over the earlier frames of motion times weight (h, w, 2) and sum of the weights (h, w), in coarse pixels.

    Tracked from the newest frame back, so that a vector lies where the rain is now. Weights are the slope of the newest
    frame, as only edges show motion. They grow with the square of the age, since errors in place do not, and fall where
    data are missing or tracking forth from there leads elsewhere: that rain is new, or another.
    """
    image, known = coarse[-1]
    now, here = _bytes(image, peak=peak), _positions(*image.shape)
    # Not cv2.magnitude: its last bit depends on where the array lies in memory, and runs must repeat bit for bit.
    slope = np.hypot(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1))
    momentum, weights = np.zeros((*image.shape, 2), np.float32), np.zeros(image.shape, np.float32)
    for age, (before, known_before) in enumerate(coarse[-2::-1], start=1):
        then = _bytes(before, peak=peak)
        backward, forward = _flow(now, then, image.shape), _flow(then, now, image.shape)
        returned = cv2.remap(forward, here + backward, NONE, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        stray = np.square(backward + returned).sum(axis=-1) / STRAY**2
        weight = age**2 * slope * (known_before * known) ** 4 * np.exp(-stray)
        momentum -= backward / age * weight[..., None]
        weights += weight
    return momentum, weights


def _flow(image: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where each pixel of one image is in the other, (h, w, 2) in pixels."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    return search.calc(image, other, NONE)[: shape[0], : shape[1]]


def _bytes(image: np.ndarray, *, peak: float) -> np.ndarray:
    """uint8 with the peak at 255, extended to the size that optical flow needs."""
    below, right = (max(0, SMALLEST - size) for size in image.shape)
    scaled = np.clip(image / peak * 255 + 0.5, 0, 255).astype(np.uint8)
    return cv2.copyMakeBorder(scaled, 0, below, 0, right, cv2.BORDER_REPLICATE)


def _smooth(momentum: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean motion around every coarse pixel; far from rain that of a wider circle, then of all."""
    floor = 1e-3 * weights.mean() + 1e-12
    motion: np.ndarray = momentum.sum(axis=(0, 1)) / (weights.sum() + floor)
    for deviation in (4 * SMOOTHING, SMOOTHING):
        around, total = (cv2.GaussianBlur(part, (0, 0), deviation) for part in (momentum, weights))
        motion = (around + floor * motion) / (total + floor)[..., None]
    return motion


def displacements(motion_2HW: np.ndarray, *, steps: int) -> Iterator[np.ndarray]:
    """Yield the way travelled to every coarse pixel after each step, (h, w, 2) in pixels."""
    height, width = motion_2HW.shape[1:]
    rows, columns = coarse_shape(height, width)
    scale = np.array([columns / width, rows / height], np.float32)
    field = np.ascontiguousarray(np.moveaxis(motion_2HW, 0, -1))
    velocity = cv2.resize(field, (columns, rows), interpolation=cv2.INTER_AREA) * scale
    here, travelled = _positions(rows, columns), np.zeros_like(velocity)
    step: np.ndarray = velocity
    for _ in range(steps):
        for _ in range(MIDPOINT_ITERATIONS):
            midpoint = here - travelled - step / 2
            step = cv2.remap(velocity, midpoint, NONE, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        travelled = travelled + step
        yield travelled / scale
