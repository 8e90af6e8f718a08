"""Flows that register, compare, promote and roll back the models of a chain."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact


@flow(name="register-model")
def register(config: str, file: str, name: str | None = None, reason: str = "", overrides: tuple[str, ...] = ()) -> str:
    """Register a checkpoint as a challenger, which makes shadow forecasts from the next cycle on.

    Args:
        config: Operations file, or the name of a shipped one: operations/knmi.yaml.
        file: A checkpoint: runs/convlstm/best.safetensors.
        name: Name in the registry; left empty, made of its recipe and digest.
        reason: Kept in the journal.
        overrides: Changes to the operations file: promotion.least_runs=50.
    """
    from nowcast.operations import cycle, promotion

    return promotion.register(cycle.load(config, overrides), file, name=name, why=reason)


@flow(name="compare-models")
def compare(config: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """Compare all challengers with the champion by their live forecasts; the tables are an artifact.

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
    """Make a challenger the champion if its live scores are better; products follow at the next cycle.

    Args:
        config: Operations file, or the name of a shipped one.
        name: Name of the challenger, or the beginning of its digest.
        force: Promote whatever the scores are; needs a reason.
        reason: Kept in the journal.
        overrides: Changes to the operations file: promotion.least_runs=50.
    """
    from nowcast.operations import cycle, promotion

    return promotion.promote(cycle.load(config, overrides), name, force=force, why=reason)


@flow(name="rollback-model")
def rollback(config: str, reason: str = "", overrides: tuple[str, ...] = ()) -> str:
    """Make the champion before the present one champion again; return its name.

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
    """Format rows as the lines of a Markdown table."""
    if not rows:
        return []
    lines = [" | ".join(row.values()) for row in rows]
    return [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|", *(f"| {line} |" for line in lines)]
