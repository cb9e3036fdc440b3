"""``lnlbench select``."""

from __future__ import annotations

from pathlib import Path

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


@click.command()
@click.option("--method", required=True, help="Method that selects before training.")
@click.option("--suite", "suites", multiple=True, required=True, help="Suite; repeat it or separate by commas.")
@click.option("--task", "tasks", multiple=True, help="Level such as 0.40, or SUITE@LEVEL.  [default: all levels]")
@click.option("--seeds", help="Seeds, e.g. 1,2 or 0-4.  [default: the suite's]")
@click.option("--set", "overrides", multiple=True, metavar="OPTION=VALUE", help="Change a method's option.")
@click.option("--limit-train", type=int, help="Use a fixed subset of the training images.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="selections",
    show_default=True,
    help="Folder for one CSV per task and seed.",
)
@data_options
@json_option
def select(
    method: str,
    suites: tuple[str, ...],
    tasks: tuple[str, ...],
    seeds: str | None,
    overrides: tuple[str, ...],
    limit_train: int | None,
    device: str,
    out: Path,
    data: Path | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Select clean samples without training; write and score the verdicts.

    One CSV per task and seed: index, given label, clean probability, selected. The scores printed are against true
    labels, which the method does not see.

    \b
    lnlbench select --method clipcleaner --suite digits-sym
    """
    registry = load_registry()
    registered = registry.methods.find(method)
    if not registered.entry.selects:
        able = [each.entry.name for each in registry.methods if each.entry.selects]
        raise UsageError(
            f"method {method!r} selects nothing before training; those that do: {', '.join(able) or 'none'}"
        )
    import torch

    from lnlbench.engine.device import resolve_devices
    from lnlbench.engine.planner import Request, parse_overrides, parse_seeds, plan
    from lnlbench.engine.select import select as select_on

    store = data_store(data, offline)
    name = resolve_devices(device)[0]
    planned = plan(
        Request(
            methods=[method],
            suites=split_names(suites),
            tasks=split_names(tasks),
            seeds=parse_seeds(seeds) if seeds else (),
            overrides=parse_overrides(overrides),
            limit_train=limit_train,
            device_type=name.partition(":")[0],
        ),
        registry,
        store,
    )
    for skip in planned.skipped:
        click.echo(f"skipped: {skip.method} on {skip.suite}@{skip.task}: {skip.reason}", err=True)
    rows = []
    for cell in planned.cells:
        selected = select_on(cell, planned.suites[cell.suite], store, registry, torch.device(name), lambda _event: None)
        path = selected.write_csv(out)
        click.echo(f"{path}", err=True)
        rows.append({"suite": cell.suite, "task": cell.task, "seed": cell.seed, "file": str(path), **selected.scores})
    if as_json:
        print_json(rows)
    else:
        _show(rows)
    return 0


def _show(rows: list[dict[str, object]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    columns = {"clean_precision": "precision", "clean_recall": "recall", "clean_auc": "AUC", "clean_size": "size"}
    table = Table(box=None, header_style="bold", pad_edge=False, title="clean samples, in percent")
    for title in ("task", "seed", *columns.values()):
        table.add_column(title, justify="left" if title == "task" else "right")
    for row in rows:
        scores = [f"{100 * value:.2f}" if isinstance(value := row.get(key), float) else "" for key in columns]
        table.add_row(escape(f"{row['suite']}@{row['task']}"), str(row["seed"]), *scores)
    console().print(table)
