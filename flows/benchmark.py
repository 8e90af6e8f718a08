"""Flow that trains networks under one protocol, scores them on held-out frames, and shows the table."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.concurrency.sync import concurrency

from nowcast.flows.report import progress_bar
from nowcast.flows.train import GPU, Store, with_data


@flow(name="benchmark")
def benchmark(
    config: str, overrides: tuple[str, ...] = (), store: Store | None = None, archive: Store | None = None
) -> str:
    """Train and score every network of a benchmark; return the path of its table.

    Args:
        config: Benchmark file, or the name of a shipped one: benchmarks/radar-debug.yaml.
        overrides: Changes to it: budget.steps=2000, seeds=[0,1,2].
        store: Cube store to train and score on; left empty, that of the file or the archive.
        archive: Store of the domain, in place of the stores that a shipped benchmark names.
    """
    from nowcast.benchmark.run import benchmark as compare
    from nowcast.config import Benchmark, load

    settings = with_data(load(Benchmark, config, overrides), config, store=store, archive=archive)
    # A lease lost when the server restarts must not end days of training.
    with concurrency(GPU, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        table = compare(settings, progress=progress_bar("benchmark-progress"))
    create_markdown_artifact(key="benchmark", markdown=table.read_text())
    return str(table)
