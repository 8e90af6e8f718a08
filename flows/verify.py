"""Flow that scores what became verifiable, outside a cycle: after late data, or with other thresholds."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from nowcast.flows.report import skipped


@flow(name="verify")
def verify(config: str, overrides: tuple[str, ...] = ()) -> State[None]:
    """Compare every forecast not yet scored with the frames observed since.

    Args:
        config: Operations file, or the name of a shipped one: operations/knmi.yaml.
        overrides: Changes to it: thresholds=[0.5,5].
    """
    from nowcast.operations.cycle import load
    from nowcast.verification.run import verify as score

    settings = load(config, overrides)
    scored = score(settings.store, settings.forecasts, settings.scores, thresholds=settings.thresholds)
    if not scored:
        return skipped("Nothing became verifiable.")
    return Completed(message=f"{scored} forecast frames scored.")
