"""Makes what is due, in time: baselines in this process, networks in one that can be killed, late ones replaced."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from nowcast.config import Operations, Product
from nowcast.core.errors import ForecastError, StoppedError
from nowcast.core.provenance import stamp
from nowcast.forecasting.fallback import Run, issue, withhold
from nowcast.forecasting.netcdf import export
from nowcast.forecasting.past import Past
from nowcast.forecasting.run import Made, run_model
from nowcast.forecasting.worker import Worker
from nowcast.models import MODELS, model_class
from nowcast.operations.schedule import Due
from nowcast.operations.stores import Stores

SHARE = 0.8
"""Part of the step of the feed that all networks of a cycle may take together."""
DEADLINE_SHARE, LONGEST_SECONDS = 0.5, 300.0
"""Part of the step that one network may take, and the most that it may where steps are long."""
LEAST_SECONDS = 1.0
"""With less time left than this a network is not begun."""
IDLE_CYCLES, IDLE_SECONDS = 3, 120
"""The process of the networks ends when so many cycles and seconds have passed without work."""
log = logging.getLogger(__name__)


@contextmanager
def apart(step: str, failures: list[str]) -> Iterator[None]:
    """Note that a step failed, whatever the reason: the steps after it go on."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s", step, error, exc_info=True)
        failures.append(f"{step}: {error}")


def is_baseline(model: str) -> bool:
    """Tell whether a model is one of the references that need neither weights nor much time."""
    return model in MODELS and not model_class(model).trainable and not model_class(model).extra


@dataclass
class Issuing:
    """The forecasts of one cycle."""

    settings: Operations
    stores: Stores
    step_seconds: float
    """Of the feed."""
    started: float = field(default_factory=monotonic)
    lines: list[str] = field(default_factory=list)
    """One per product made."""
    alarms: list[str] = field(default_factory=list)
    """One per network that was stopped and replaced."""
    failures: list[str] = field(default_factory=list)
    """One per forecast or file that could not be written; the others were."""
    limited: bool = True
    """Whether all networks share the time of one cycle; each has its own deadline in any case."""

    def __post_init__(self) -> None:
        """Name the process of the networks."""
        self.worker = worker(self.settings)
        self._stopped: set[str] = set()

    @property
    def seconds_left(self) -> float:
        """Time that is left to the networks of this cycle."""
        return self.started + SHARE * self.step_seconds - monotonic() if self.limited else LONGEST_SECONDS

    def baselines(self, due: Due) -> None:
        """Make the forecasts that need no network, or state why there are none."""
        products = [product for product in self.settings.makers if product.name in due.products]
        if due.reason:
            self._withhold(due, products)
        else:
            self._issue(due, [product for product in products if is_baseline(product.model)])

    def networks(self, due: Due) -> None:
        """Make the forecasts of networks, each in a commit of its own; those that were stopped before come last."""
        for product in self.pending(due):
            self._issue(due, [product])

    def pending(self, due: Due) -> list[Product]:
        """List the products of networks, those stopped in this cycle last."""
        products = [product for product in self.settings.makers if product.name in due.products and not due.reason]
        networks = [product for product in products if not is_baseline(product.model)]
        return sorted(networks, key=lambda product: product.name in self._stopped)

    def rest(self, dues: Sequence[Due]) -> None:
        """Make what is due from older times as far as time allows; the next cycle goes on."""
        for due in dues:
            if not due.reason and self.seconds_left < LEAST_SECONDS:
                log.info("%d older forecasts are left to the next cycle", len(dues))
                continue
            self.baselines(due)
            self.networks(due)

    def _issue(self, due: Due, products: Sequence[Product]) -> None:
        if not products:
            return
        with apart("forecasts", self.failures):
            made = issue(
                self.stores.frames,
                self.stores.forecasts,
                products,
                fallback=self.settings.fallback,
                leads=self.settings.leads,
                time=due.time,
                channel=self.settings.quantity,
                again=due.again,
                run=self._run_of(products[0]),
            )
            self.lines += made
            if made and self.settings.netcdf:
                with apart("NetCDF", self.failures):
                    export(self.stores.forecasts, due.time, self.settings.netcdf)

    def _withhold(self, due: Due, products: Sequence[Product]) -> None:
        with apart("forecasts", self.failures):
            self.lines += withhold(
                self.stores.frames,
                self.stores.forecasts,
                products,
                leads=self.settings.leads,
                time=due.time,
                reason=due.reason,
                channel=self.settings.quantity,
            )

    def _run_of(self, product: Product) -> Run:
        """Return what runs the models of a product: a baseline here, all others in the process of the networks."""

        def run(model: str, frames: Past, leads: Sequence[int]) -> Made:
            if is_baseline(model):
                return run_model(model, frames, leads)
            return self._run_network(product, model, frames, leads)

        return run

    def _run_network(self, product: Product, model: str, frames: Past, leads: Sequence[int]) -> Made:
        if product.name in self._stopped and self.limited:
            raise ForecastError("was stopped in this cycle before")
        seconds = min(deadline_seconds(self.settings, product, self.step_seconds), self.seconds_left)
        if seconds < LEAST_SECONDS:
            raise ForecastError("no time was left to it in this cycle")
        try:
            return self.worker.run(
                self.stores.frames, model, leads, time=frames.time[-1], channel=frames.quantity, seconds=seconds
            )
        except StoppedError as error:
            self._stopped.add(product.name)
            alarm = f"{product.name} {stamp(frames.time[-1])}: {error}; its fallback takes its place"
            log.error(alarm)
            self.alarms.append(alarm)
            raise


def worker(settings: Operations) -> Worker:
    """Name the process of a chain's networks."""
    idle = IDLE_SECONDS + IDLE_CYCLES * 60 * settings.every_minutes
    return Worker(str(settings.site.resolve()), idle_seconds=idle, memory_gigabytes=settings.memory_gigabytes)


def deadline_seconds(settings: Operations, product: Product, step_seconds: float) -> float:
    """Return the time that the network of a product may take."""
    own = product.deadline_seconds or settings.deadline_seconds
    return own or min(LONGEST_SECONDS, DEADLINE_SHARE * step_seconds)
