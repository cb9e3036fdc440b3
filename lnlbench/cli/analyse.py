"""``lnlbench analyse``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import console, data_options, data_store, json_option, load_registry, print_json
from lnlbench.errors import LnlbenchError

if TYPE_CHECKING:
    from rich.console import Console

    from lnlbench.engine.analyse import Analysis, PairMeasures


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--taxonomy",
    type=click.Path(path_type=Path),
    help="TOML file with lines class = 'parent'.  [default: the dataset's, if it has one]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@data_options
@json_option
def analyse(
    folders: tuple[Path, ...], taxonomy: Path | None, device: str, data: Path | None, offline: bool, as_json: bool
) -> int:
    """Measure what the networks of finished runs under FOLDERS make of the classes.

    The networks are restored from the last checkpoint and see the main test set, whose true labels are used. For each
    network: how evenly the features of the classes scatter, and how close in a tree of classes its two most probable
    ones are. For each two: whether they place images alike, and how far apart their logits are.

    Nothing is written. The exit code is 1 if a finished run could not be analysed, or there was none.

    lnlbench analyse runs/digits-sym/0.40/dividemix
    """
    from lnlbench.builtin.taxonomies import read_taxonomy
    from lnlbench.leaderboard.store import find_runs

    tree = None if taxonomy is None else read_taxonomy(taxonomy)
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    registry = load_registry()
    import torch

    from lnlbench.engine.analyse import NotFinishedError
    from lnlbench.engine.analyse import analyse as analyse_run
    from lnlbench.engine.device import resolve_devices

    store = data_store(data, offline)
    where = torch.device(resolve_devices(device)[0])
    analyses: list[Analysis] = []
    code = 0
    for run in runs:
        try:
            analyses.append(analyse_run(run, registry, store, where, _hear, tree))
        except LnlbenchError as error:
            if not isinstance(error, NotFinishedError):
                code = max(code, error.exit_code)
            click.echo(f"not analysed: {run}: {error}", err=True)
            continue
        if not as_json:
            _show(analyses[-1], console())
    if as_json:
        print_json([each.as_json() for each in analyses])
    return code if analyses else max(code, 1)


def _hear(event: dict[str, Any]) -> None:
    if event["event"] == "warning":
        click.echo(f"lnlbench: warning: {event['message']}", err=True)


def _show(analysis: Analysis, out: Console) -> None:
    from rich.markup import escape

    out.print(f"[bold]{escape(analysis.cell.label)}[/bold], {analysis.num_test} test images", soft_wrap=True)
    trees = [] if analysis.taxonomy is None else ["LCA distance"]
    rows = [
        [
            each.name,
            f"{100 * each.accuracy:.2f}",
            _decimals(each.variance_entropy),
            _decimals(each.variance_entropy_share),
            *(_decimals(each.lca_distance) for _ in trees),
        ]
        for each in analysis.networks
    ]
    _print_table(out, ["network", "accuracy", "variance entropy", "of its maximum", *trees], rows)
    if analysis.pairs:
        rows = [
            [" and ".join(each.networks), _decimals(each.embedding_consistency), _decimals(each.logit_wasserstein)]
            for each in analysis.pairs
        ]
        _print_table(out, ["networks", "embedding consistency", "logit Wasserstein distance"], rows)
    widths = {each.name: each.width for each in analysis.networks}
    for pair in analysis.pairs:
        if note := _note(pair, widths):
            out.print(f"  {escape(note)}", soft_wrap=True)
    if analysis.taxonomy is not None:
        out.print(f"  taxonomy: {escape(analysis.taxonomy)}", soft_wrap=True)
    out.print()


def _note(pair: PairMeasures, widths: dict[str, int]) -> str:
    one, other = pair.networks
    if widths[one] != widths[other]:
        return f"{one} has {widths[one]} features and {other} {widths[other]}: consistency needs as many in both"
    if pair.embedding_consistency is None:
        return f"{one} and {other}: no two images have different features, so there is no consistency to measure"
    return f"{one} and {other}: consistency over a sample of {pair.pairs} pairs of images" if pair.sampled else ""


def _print_table(out: Console, columns: list[str], rows: list[list[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
