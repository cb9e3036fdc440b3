"""``lnlbench profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lnlbench.cli.common import (
    console,
    data_options,
    data_store,
    json_option,
    load_registry,
    print_json,
    split_names,
)
from lnlbench.errors import UsageError

if TYPE_CHECKING:
    from lnlbench.engine.profile import Measurement, MethodProfile


@click.command()
@click.option("--method", "methods", multiple=True, required=True, help="Method; repeat it or separate by commas.")
@click.option("--suite", required=True, help="Suite, best a small one: `lnlbench list suites` shows what there is.")
@click.option("--task", help="Level of the suite, such as 0.40.  [default: its first level]")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Training seed.")
@click.option("--set", "overrides", multiple=True, metavar="OPTION=VALUE", help="Change a method's option.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train this long.  [default: the method's preset]")
@click.option("--limit-train", type=int, help="Use a fixed subset of the training images.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the suite's]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the measurement to this JSON file.")
@data_options
@json_option
def profile(
    methods: tuple[str, ...],
    suite: str,
    task: str | None,
    seed: int,
    overrides: tuple[str, ...],
    epochs: int | None,
    limit_train: int | None,
    device: str,
    threads: int | None,
    out: Path | None,
    data: Path | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Measure what methods use and cost on one task.

    Each method trains once, one after the other, in a process of its own. Counted is the last epoch. Seconds are the
    median over the last quarter of the epochs; on a CPU they are processor time. Nothing is scored, no run is kept.

    \b
    lnlbench profile --method ce,dividemix --suite digits-sym --task 0.40
    """
    registry = load_registry()
    from lnlbench.engine.device import resolve_devices, usable_cores
    from lnlbench.engine.planner import Request, parse_overrides, plan
    from lnlbench.engine.prepare import of_cells
    from lnlbench.engine.profile import measure
    from lnlbench.files import make_folder, write_json

    store = data_store(data, offline)
    name = resolve_devices(device)[0]
    entry = registry.suites.find(suite).entry
    planned = plan(
        Request(
            methods=split_names(methods),
            suites=[suite],
            tasks=[task or entry.tasks[0].name],
            seeds=[seed],
            overrides=parse_overrides(overrides),
            epochs=epochs,
            limit_train=limit_train,
            device_type=name.partition(":")[0],
        ),
        registry,
        store,
    )
    for skip in planned.skipped:
        raise UsageError(f"{skip.method} does not run on {skip.suite}@{skip.task}: {skip.reason}")
    if out is not None:
        make_folder(out.parent)
    for requirement in of_cells(registry, planned.cells):
        requirement.prepare(registry, store)
    measurement, failures = measure(
        planned.cells,
        planned.suites,
        data=store.root.absolute(),
        offline=offline,
        threads=threads or entry.threads or usable_cores(),
        device=name,
        registry=registry,
        started=lambda cell: click.echo(f"measuring {cell.label}", err=True),
    )
    for failure in failures:
        click.echo(f"failed: {failure.cell.label}: {failure.message}", err=True)
    if measurement is None:
        return 1
    if out is not None:
        write_json(out, measurement.model_dump(mode="json"))
    if as_json:
        print_json(measurement.model_dump(mode="json"))
    else:
        _show(measurement)
    return 0


def _show(measurement: Measurement) -> None:
    from rich.markup import escape
    from rich.table import Table

    first = measurement.methods[0]
    out = console()
    uses = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("method", "networks trained / run / at test", "views", "encoder", "asks for"):
        uses.add_column(column)
    costs = Table(box=None, header_style="bold", pad_edge=False)
    costs.add_column("method")
    for column in (
        "passes per step with / without gradient",
        "steps per epoch",
        "sets outside of steps",
        "s per epoch",
        f"times {first.method}",
        "memory, MiB",
        "parameters",
    ):
        costs.add_column(column, justify="right")
    for each in measurement.methods:
        uses.add_row(*map(escape, (each.method, *_uses(each))))
        costs.add_row(*map(escape, (each.method, *_costs(each, first))))
    out.print(uses)
    out.print()
    out.print(costs)
    where = measurement.environment
    out.print(
        f"{measurement.suite}@{measurement.task}, {measurement.num_train:,} images, on {where.device}", style="dim"
    )


def _uses(each: MethodProfile) -> tuple[str, ...]:
    usage = each.usage
    return (
        f"{usage.networks_trained} / {usage.networks_run} / {each.networks_at_test}",
        "; ".join(", ".join(views) for views in usage.views),
        ", ".join(usage.encoders),
        ", ".join(each.asked),
    )


def _costs(each: MethodProfile, first: MethodProfile) -> tuple[str, ...]:
    usage = each.usage
    return (
        f"{usage.passes_with_gradient:g} / {usage.passes_without_gradient:g}",
        str(usage.steps),
        f"{usage.sets_outside_steps:.2f}",
        f"{each.seconds_per_epoch:.2f}",
        f"{each.seconds_per_epoch / first.seconds_per_epoch:.1f}",
        f"{each.peak_memory_bytes / 2**20:,.0f}",
        f"{each.parameters:,}",
    )
