"""The errors that we raise on purpose. Each is one sentence that says what is wrong and what to do about it.

    NowcastError
    +-- OptionError       an unknown name, or an option out of its range        (ValueError)
    +-- ConfigError       a settings file or an override                        (ValueError)
    +-- BadInput          a file, or data, that cannot be taken                 (ValueError)
    |   +-- FromFuture    a frame that is ahead of the clock
    +-- ShapeError        arrays that do not fit together, or not the network   (ValueError)
    +-- WeightsError      official weights of another network                   (ValueError)
    +-- StoreError        a store that cannot be read or written                (RuntimeError)
    +-- RegistryError     what a registry of checkpoints does not do            (ValueError)
    +-- ForecastError     a model that cannot make this forecast                (ValueError)
    |   +-- StoppedError  one that took too long or too much memory, or died
    +-- TrainingError     a training that cannot go on                          (RuntimeError)
    +-- DiskError         a file that cannot be written: the disk is full       (OSError)
    +-- BusyError         another process has the work in hand
    +-- DeploymentError   a Prefect server, runner or flow run that failed
    +-- ClusterError      a Dask scheduler that does not answer                 (ConnectionError)
    +-- MissingExtra      a library that is not installed with the package      (ModuleNotFoundError)

The command line shows these as they are; any other exception is a programming error and keeps its traceback. The
second base lets callers, and pydantic, catch the built-in one.
"""

from __future__ import annotations


class NowcastError(Exception):
    """Base of all errors that we raise on purpose."""


class OptionError(NowcastError, ValueError):
    """A name that is unknown, or an option out of its range; the sentence lists what is possible."""


class ConfigError(NowcastError, ValueError):
    """A settings file or override that is refused; one sentence per mistake."""


class BadInput(NowcastError, ValueError):
    """An input that cannot be taken. One sentence: where, what is wrong, what to do."""

    def __init__(self, where: object, fault: str, remedy: str = "") -> None:
        self.where, self.fault, self.remedy = str(where), fault, remedy
        super().__init__(f"{where}: {fault}" + (f"; {remedy}" if remedy else "") + ".")

    def __reduce__(self) -> tuple[type[BadInput], tuple[object, ...]]:
        """Pickle with all three parts."""
        return BadInput, (self.where, self.fault, self.remedy)


class FromFuture(BadInput):
    """A frame from the future, which comes true in time."""

    def __init__(self, where: object, time: object, until: float) -> None:
        super().__init__(where, f"is from the future ({time} UTC)", "check the clocks of sender and receiver")
        self.time, self.until = time, until
        """Seconds since 1970 from which it is none: ``until``."""

    def __reduce__(self) -> tuple[type[BadInput], tuple[object, ...]]:
        """Pickle with all three parts."""
        return FromFuture, (self.where, self.time, self.until)


class ShapeError(NowcastError, ValueError):
    """Arrays of shapes that do not fit together, or not the network."""


class WeightsError(NowcastError, ValueError):
    """Official weights that are not those of the named network."""


class StoreError(NowcastError, RuntimeError):
    """A store that cannot be opened, read or written."""


class DiskError(NowcastError, OSError):
    """A file that cannot be written: the disk is full, or not ours to write on."""


class RegistryError(NowcastError, ValueError):
    """What a registry of checkpoints does not do, and why."""


class ForecastError(NowcastError, ValueError):
    """Why a model cannot make this forecast, in a few words."""


class StoppedError(ForecastError):
    """A forecast that took too long or too much memory and was stopped, or whose process died."""


class TrainingError(NowcastError, RuntimeError):
    """A training that cannot go on; one sentence says why, and what to do."""


class BusyError(NowcastError):
    """Another process does this work already."""


class DeploymentError(NowcastError):
    """The Prefect server, the runner or a flow run failed."""


class ClusterError(NowcastError, ConnectionError):
    """No Dask scheduler answers."""


class MissingExtra(NowcastError, ModuleNotFoundError):
    """A library that is not installed with the package; the sentence names the extra that brings it."""
