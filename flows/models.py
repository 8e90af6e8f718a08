"""The life of a chain's models: a checkpoint becomes a challenger, is compared, becomes champion, goes back."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact


@flow(name="register-model")
def register(config: str, file: str, name: str | None = None, reason: str = "", overrides: tuple[str, ...] = ()) -> str:
    """Registers a checkpoint as a challenger, which forecasts in the shadow from the next cycle on.

    Args:
        config: Operations file, or the name of a shipped one: operations/knmi.yaml.
        file: A checkpoint: runs/convlstm/best.safetensors.
        name: What it is called; after its recipe and digest where left out.
        reason: Kept in the journal.
        overrides: Changes to the operations file: promotion.least_runs=50.
    """
    from nowcast.operations import cycle, promotion

    return promotion.register(cycle.load(config, overrides), file, name=name, why=reason)


@flow(name="compare-models")
def compare(config: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """Judges all challengers against the champion by what they forecast live; the tables are an artifact.

    Args:
        config: Operations file, or the name of a shipped one.
        overrides: Changes to the operations file: promotion.least_runs=50.
    """
    from nowcast.operations import cycle, promotion

    settings = cycle.load(config, overrides)
    comparisons = [
        promotion.compare(settings, digest) for digest in promotion.open_registry(settings).standing.challengers
    ]
    text = "\n\n".join("\n".join([f"**{found}**", "", *_markdown(found.rows())]) for found in comparisons)
    create_markdown_artifact(key="compare-models", markdown=text or "No challengers.")
    return [str(found) for found in comparisons]


@flow(name="promote-model")
def promote(config: str, name: str, force: bool = False, reason: str = "", overrides: tuple[str, ...] = ()) -> str:
    """Makes a challenger the champion if its live scores are better; products follow at the next cycle.

    Args:
        config: Operations file, or the name of a shipped one.
        name: Of the challenger, or the beginning of its digest.
        force: Whatever the scores say; needs a reason.
        reason: Kept in the journal.
        overrides: Changes to the operations file: promotion.least_runs=50.
    """
    from nowcast.operations import cycle, promotion

    return promotion.promote(cycle.load(config, overrides), name, force=force, why=reason)


@flow(name="rollback-model")
def rollback(config: str, reason: str = "", overrides: tuple[str, ...] = ()) -> str:
    """Makes the champion before the present one champion again; returns its name.

    Args:
        config: Operations file, or the name of a shipped one.
        reason: Kept in the journal.
        overrides: Changes to the operations file: promotion.least_runs=50.
    """
    from nowcast.operations import cycle, promotion

    registry = promotion.open_registry(cycle.load(config, overrides))
    digest = registry.rollback(why=reason)
    return registry.standing.names[digest]


def _markdown(rows: list[dict[str, str]]) -> list[str]:
    """Rows as a table."""
    if not rows:
        return []
    lines = [" | ".join(row.values()) for row in rows]
    return [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|", *(f"| {line} |" for line in lines)]
