"""The registries as rows: what can be trained, what can be read."""

from __future__ import annotations

from models import MODELS, build, model_class
from nowcast.readers import READERS, get


def networks() -> list[dict[str, object]]:
    """One row per model and published size: parameters, options, first line of its documentation."""
    rows = []
    for name in MODELS:
        kind = model_class(name)
        for size in kind.SIZES or ("",):
            full = f"{name}:{size}" if size else name
            weights = sum(weight.numel() for weight in build(full, in_steps=2, out_steps=2).parameters())
            what, options = (kind.__doc__ or "").splitlines()[0], ", ".join(kind.options())
            learns = "yes" if kind.trainable else "no"
            rows.append({"model": full, "parameters": weights, "trained": learns, "options": options, "what": what})
    return rows


def sources() -> list[dict[str, object]]:
    """One row per reader: title, cadence, licence."""
    rows: list[dict[str, object]] = []
    for name in READERS:
        reader = get(name)
        step = f"{reader.CADENCE // 60} min" if reader.CADENCE else "in the files"
        rows.append({"reader": name, "what": reader.TITLE, "step": step, "licence": reader.LICENCE})
    return rows
