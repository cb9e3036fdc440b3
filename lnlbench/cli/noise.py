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
    from lnlbench.records import NoiseFacts, NoiseSpec

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
    names = loaded.class_names
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
                "intended_matrix": None if realisation.intended is None else realisation.intended.tolist(),
                **realisation.facts.model_dump(mode="json"),
            }
        )
        return
    from rich.markup import escape
    from rich.table import Table

    out = console()
    facts = realisation.facts
    seeded = "" if spec.seed is None else f", noise seed {spec.seed}"
    out.print(f"[bold]{escape(task)}[/bold]{seeded}", soft_wrap=True)
    out.print(f"  noise          {escape(spec.variant)}", soft_wrap=True)
    if spec.rate is not None:
        out.print(f"  nominal rate   {spec.rate:.4f}")
    out.print(f"  realised rate  {_rate(facts, loaded.facts.num_train)}")
    if facts.num_ood:
        out.print(f"  out of distribution  {facts.num_ood} of {loaded.facts.num_train} images")
    out.print(f"  digest         {facts.digest}", soft_wrap=True)
    if confusion is None:
        return
    if len(names) > _MOST_CLASSES:
        out.print(f"  {len(names)} classes: the transition matrix is in the --json output")
        return
    table = Table(title="given label (columns) for each true label (rows), per cent", box=None, header_style="bold")
    table.add_column("true", no_wrap=True)
    for name in names[: loaded.num_classes]:
        table.add_column(escape(name)[:6], justify="right")
    for name, row in zip(names, confusion, strict=True):
        total = max(sum(row), 1)
        table.add_row(escape(name)[:12], *(f"{100 * count / total:.0f}" if count else "·" for count in row))
    out.print(table)


def _rate(facts: NoiseFacts, num_train: int) -> str:
    if facts.realised_rate is None:
        return "unknown: nobody knows which labels are right"
    of = f"{num_train} labels" if facts.num_known == num_train else f"{facts.num_known} labels that are known"
    return f"{facts.realised_rate:.4f} ({facts.num_changed} of {of})"


@noise.command()
@click.argument("task")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Noise seed.")
@data_options
def export(task: str, file: Path, seed: int, data: Path | None, offline: bool) -> None:
    """Write the labels of TASK to FILE as CSV: index, given label, true label, changed, ood; blank if unknown."""
    from lnlbench.engine.realisation import export_csv

    loaded, _, realisation = _realise(task, seed, data, offline)
    export_csv(realisation, file)
    click.echo(
        f"{file}: {loaded.facts.num_train} labels, realised rate {_rate(realisation.facts, loaded.facts.num_train)}"
    )


def _realise(task: str, seed: int, data: Path | None, offline: bool) -> tuple[LoadedData, NoiseSpec, NoiseRealisation]:
    suite_name, at, level = task.partition("@")
    if not at:
        raise UsageError(f"{task!r} is not a task; write SUITE@LEVEL, e.g. digits-sym@0.40")
    from lnlbench.engine.data import dataset_options, find_dataset, load_data
    from lnlbench.engine.planner import noise_spec
    from lnlbench.engine.realisation import noisy_labels
    from lnlbench.engine.sources import into_memory

    registry = load_registry()
    suite = registry.suites.find(suite_name).entry
    chosen = suite.task(level)
    store = data_store(data, offline)
    dataset = find_dataset(registry, suite.dataset, dataset_options(suite, chosen), store)
    loaded = load_data(dataset, store, known_classes=suite.known_classes, test_sets=chosen.test_sets)
    spec = noise_spec(registry, suite, chosen, seed)
    if registry.noise.find(spec.generator).entry.uses_images:
        loaded = into_memory(loaded, store)
    return loaded, spec, noisy_labels(registry, store, suite.name, suite.version, chosen.name, spec, loaded)
