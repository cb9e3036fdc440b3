"""``lnlbench noise``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lnlbench.cli.common import console, data_options, data_store, json_option, load_registry, print_json
from lnlbench.errors import UsageError

if TYPE_CHECKING:
    from lnlbench.engine.data import LoadedData
    from lnlbench.engine.realisation import NoiseRealisation
    from lnlbench.records import NoiseSpec

_MOST_CLASSES = 20


@click.group()
def noise() -> None:
    """Show or export the noisy labels of a task, SUITE@LEVEL."""


@noise.command()
@click.argument("task")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Noise seed.")
@data_options
@json_option
def show(task: str, seed: int, data: Path | None, offline: bool, as_json: bool) -> None:
    """Show definition, realised rate and transition matrix of the noise of TASK, e.g. digits-sym@0.40."""
    loaded, spec, realisation = _realise(task, seed, data, offline)
    names = loaded.dataset.class_names
    confusion = realisation.facts.confusion
    if as_json:
        print_json(
            {
                "task": task,
                "variant": spec.variant,
                "nominal_rate": spec.rate,
                "seed": seed,
                "num_train": loaded.facts.num_train,
                "classes": list(names),
                "intended_matrix": realisation.intended.tolist(),
                **realisation.facts.model_dump(mode="json"),
            }
        )
        return
    from rich.markup import escape
    from rich.table import Table

    out = console()
    facts = realisation.facts
    out.print(f"[bold]{escape(task)}[/bold], noise seed {seed}", soft_wrap=True)
    out.print(f"  generator      {escape(spec.variant)}", soft_wrap=True)
    out.print(f"  nominal rate   {spec.rate:.4f}")
    out.print(f"  realised rate  {facts.realised_rate:.4f} ({facts.num_changed} of {loaded.facts.num_train} labels)")
    out.print(f"  digest         {facts.digest}", soft_wrap=True)
    if len(names) > _MOST_CLASSES:
        out.print(f"  {len(names)} classes: the transition matrix is in the --json output")
        return
    table = Table(title="given label (columns) for each true label (rows), per cent", box=None, header_style="bold")
    table.add_column("true", no_wrap=True)
    for name in names:
        table.add_column(escape(name)[:6], justify="right")
    for name, row in zip(names, confusion, strict=True):
        total = max(sum(row), 1)
        table.add_row(escape(name)[:12], *(f"{100 * count / total:.0f}" if count else "·" for count in row))
    out.print(table)


@noise.command()
@click.argument("task")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Noise seed.")
@data_options
def export(task: str, file: Path, seed: int, data: Path | None, offline: bool) -> None:
    """Write the labels of TASK to FILE as CSV: index, given label, true label, changed."""
    from lnlbench.engine.realisation import export_csv

    loaded, _, realisation = _realise(task, seed, data, offline)
    export_csv(realisation, file)
    click.echo(f"{file}: {loaded.facts.num_train} labels, realised rate {realisation.facts.realised_rate:.4f}")


def _realise(task: str, seed: int, data: Path | None, offline: bool) -> tuple[LoadedData, NoiseSpec, NoiseRealisation]:
    suite_name, at, level = task.rpartition("@")
    if not at:
        raise UsageError(f"{task!r} is not a task; write SUITE@LEVEL, e.g. digits-sym@0.40")
    from lnlbench.engine.data import find_dataset, load_data
    from lnlbench.engine.planner import noise_spec
    from lnlbench.engine.realisation import realise

    registry = load_registry()
    suite = registry.suites.find(suite_name).entry
    chosen = suite.task(level)
    store = data_store(data, offline)
    loaded = load_data(find_dataset(registry, suite.dataset), store, None)
    spec = noise_spec(registry, suite, chosen, seed)
    realisation = realise(
        store.root,
        suite.name,
        suite.version,
        chosen.name,
        suite.dataset,
        spec,
        registry.noise.find(spec.generator).load(),
        loaded.images.train_labels,
        loaded.dataset.num_classes,
        loaded.dataset.class_names,
    )
    return loaded, spec, realisation
