"""Errors of decoders as one sentence, optional decoders, and grey PNG pictures."""

from __future__ import annotations

import errno
import struct
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from nowcast.core.errors import BadInput, MissingExtra

DECODER_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    Image.DecompressionBombError,
)
"""What decoders raise on bad bytes. Other types, which some libraries raise, are converted at their calls: ``odd``."""

SYSTEM_FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EAGAIN, errno.ENOLCK, errno.ESTALE, errno.EIO),
)
"""Of ``OSError``: another try may succeed, and the file need not be fetched again."""


@contextmanager
def decoding(path: Path, form: str, *odd: type[Exception]) -> Iterator[None]:
    """Turn what decoders raise on a bad file into one sentence.

    A bug in a reader (``TypeError``, ``AttributeError``, ``KeyError`` ...) keeps its type and traceback.

    Args:
        path: The file.
        form: What it should be, such as ``a PNG image``.
        odd: Further types that a library raises on bad bytes; only around calls of that library alone.

    Raises:
        BadInput: In place of ``DECODER_ERRORS``.
        OSError: If the machine is at fault.
    """
    try:
        yield
    except (BadInput, ModuleNotFoundError):
        raise
    except FileNotFoundError:
        raise BadInput(path, "does not exist", "check the path") from None
    except (PermissionError, IsADirectoryError):
        raise BadInput(path, "cannot be opened", "give a file that may be read") from None
    except Exception as error:
        if not (is_decoder_error(error) or isinstance(error, odd)) or is_of_system(error):
            raise
        raise BadInput(path, f"is damaged or not {form}", "fetch it again or choose another reader") from error


def is_decoder_error(error: Exception) -> bool:
    """Tell whether a decoder raised this on bad bytes.

    h5py and ISA-L raise types that mistakes of a reader have too: these are told by where they were raised.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = frame.f_globals.get("__name__", "").partition(".")[0]
    return isinstance(error, DECODER_ERRORS) or raised_by == "h5py" or type(error).__name__ == "IsalError"


def is_of_system(error: Exception) -> bool:
    """Tell whether the machine is at fault and not the file: no room, too many open files, a lock."""
    return isinstance(error, OSError) and error.errno in SYSTEM_FAULTS


def optional(module: str, *, extra: str) -> ModuleType:
    """Import the library that decodes a format and is not installed with the package.

    Raises:
        ModuleNotFoundError: With the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install 'nowcast-radar[{extra}]'") from None


def grey_png(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read the grey levels of a PNG in mode L, P (grey palette) or RGB (equal channels).

    Args:
        path: The file.
        shape: Rows, columns that it must have.

    Returns:
        (row, column) uint8.

    Raises:
        BadInput: If it is no such picture.
    """
    with decoding(path, "a PNG image"), Image.open(path, formats=["PNG"]) as image:
        if image.size != shape[::-1]:
            raise BadInput(
                path,
                f"has {image.size[1]}x{image.size[0]} pixels, not {shape[0]}x{shape[1]}",
                "choose the reader for this source",
            )
        if image.mode not in ("L", "P", "RGB"):
            raise BadInput(path, f"is a PNG of mode {image.mode}, not grey", "choose the reader for this source")
        levels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    if levels.ndim == 3 and (levels != levels[..., :1]).any():
        raise BadInput(path, "is a coloured picture, not grey levels", "get the original data")
    return levels if levels.ndim == 2 else levels[..., 0]
