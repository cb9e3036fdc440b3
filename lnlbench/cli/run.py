"""``lnlbench run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import (
    console,
    data_options,
    data_store,
    dataset_name,
    json_option,
    leaderboards_option,
    load_registry,
    print_json,
    runs_option,
    split_names,
    tell_of,
)
from lnlbench.errors import UsageError

if TYPE_CHECKING:
    from lnlbench.contracts.suite import Suite
    from lnlbench.engine.planner import Plan
    from lnlbench.engine.session import Outcome
    from lnlbench.plugins import Registry
    from lnlbench.records import CellSpec
    from lnlbench.store import LocalDataStore


@click.command()
@click.option("--method", "methods", multiple=True, required=True, help="Method; repeat it or separate by commas.")
@click.option("--suite", "suites", multiple=True, help="Suite; repeat it or separate by commas.")
@click.option("--dataset", help="Instead of a suite: a dataset, or folder:PATH for your own images.")
@click.option("--noise", help="With --dataset: the noise to add.  [default: the labels as they are]")
@click.option("--rate", "rates", help="With --noise: nominal rates, e.g. 0.2,0.4; each is a task.")
@click.option("--noise-set", multiple=True, metavar="OPTION=VALUE", help="With --noise: a switch of the noise.")
@click.option("--data-set", multiple=True, metavar="OPTION=VALUE", help="With --dataset: an option of the dataset.")
@click.option("--task", "tasks", multiple=True, help="Level such as 0.40, or SUITE@LEVEL.  [default: all levels]")
@click.option("--seeds", help="Training seeds, e.g. 1,2 or 0-4.  [default: the suite's]")
@click.option("--noise-seed", type=click.IntRange(min=0), help="Freeze the noise.  [default: the training seed]")
@click.option("--set", "overrides", multiple=True, metavar="OPTION=VALUE", help="Change a method's option.")
@click.option("--select", "selector", help="Start from the clean samples that this method selects before training.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train this long; fewer than the preset is a reduced run.")
@click.option("--limit-train", type=int, help="Use a fixed subset of the training images: a reduced run.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0 or cuda:0,cuda:1.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16"]),
    help="Precision of forward passes.  [default: the suite's]",
)
@click.option("--compile", "compile_networks", is_flag=True, help="Compile networks with torch.compile.")
@click.option(
    "--deterministic/--fast-kernels", default=True, show_default=True, help="Deterministic kernels, or the fastest."
)
@click.option("--jobs-per-gpu", type=click.IntRange(min=1), default=1, show_default=True, help="Cells on one GPU.")
@click.option("--jobs", type=click.IntRange(min=1), help="Cells side by side on the CPU.  [default: cores / threads]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a cell.  [default: the suite's]")
@click.option(
    "--executor", default="local", show_default=True, help="How cells are run; see `lnlbench list executors`."
)
@runs_option
@leaderboards_option
@click.option("--dry-run", is_flag=True, help="Show what would be run, and stop.")
@data_options
@json_option
def run(
    methods: tuple[str, ...],
    suites: tuple[str, ...],
    dataset: str | None,
    noise: str | None,
    rates: str | None,
    noise_set: tuple[str, ...],
    data_set: tuple[str, ...],
    tasks: tuple[str, ...],
    seeds: str | None,
    noise_seed: int | None,
    overrides: tuple[str, ...],
    selector: str | None,
    epochs: int | None,
    limit_train: int | None,
    device: str,
    precision: str | None,
    compile_networks: bool,
    deterministic: bool,
    jobs_per_gpu: int,
    jobs: int | None,
    threads: int | None,
    executor: str,
    runs: Path,
    leaderboards: Path,
    dry_run: bool,
    data: Path | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Train methods on noisy suites and score them into a leaderboard.

    A cell is one method (with its options) on one task with one seed. The same command issued again runs only the cells
    that are missing and resumes those that were interrupted. The exit code is 1 if any cell failed.

    \b
    lnlbench run --method ce,dividemix --suite digits-sym
    lnlbench run --method dividemix --suite cifar10-sym --task 0.50 --set lambda_u=25
    lnlbench run --method dividemix --dataset folder:photos --noise symmetric --rate 0.4
    """
    registry = load_registry()
    from lnlbench.contracts.executor import Executor, Resources
    from lnlbench.engine.device import resolve_devices, usable_cores
    from lnlbench.engine.planner import Request, parse_overrides, parse_seeds, plan
    from lnlbench.engine.session import run_cells
    from lnlbench.files import make_folder

    if bool(split_names(suites)) == (dataset is not None):
        raise UsageError("give either --suite or --dataset; `lnlbench list suites` shows what there is")
    if dataset is None and (noise or rates or noise_set or data_set):
        raise UsageError("--noise, --rate, --noise-set and --data-set go with --dataset; a suite fixes them itself")
    devices = resolve_devices(device)
    store = data_store(data, offline)
    own = () if dataset is None else (_own_suite(registry, store, dataset, noise, rates, noise_set, data_set),)
    planned = plan(
        Request(
            methods=split_names(methods),
            suites=split_names(suites),
            select=selector,
            own_suites=own,
            tasks=split_names(tasks),
            seeds=parse_seeds(seeds) if seeds else (),
            noise_seed=noise_seed,
            overrides=parse_overrides(overrides),
            epochs=epochs,
            limit_train=limit_train,
            precision=precision,
            compile=compile_networks,
            deterministic=deterministic,
            device_type=devices[0].partition(":")[0],
        ),
        registry,
        store,
    )
    for skip in planned.skipped:
        click.echo(f"skipped: {skip.method} on {skip.suite}@{skip.task}: {skip.reason}", err=True)
    if dry_run:
        return _show_plan(planned, runs, as_json)

    on_cpu = devices == ("cpu",)
    cores = usable_cores()
    threads_of = {suite: threads or planned.suites[suite].threads or cores for suite in _suites(planned)}
    side_by_side = (jobs or max(1, cores // max(threads_of.values()))) if on_cpu else jobs_per_gpu
    chosen: type[Executor] = registry.executors.find(executor).load()
    make_folder(runs)
    todo = [cell for cell in planned.cells if not _is_done(runs, cell)]
    _fetch_data(todo, registry, store)
    from lnlbench.cli.progress import display

    screen = console(stderr=True)
    if len(todo) < len(planned.cells):
        click.echo(f"{len(planned.cells) - len(todo)} of {len(planned.cells)} cells are finished already", err=True)
    with display(screen, len(todo), sum(cell.method.config["epochs"] for cell in todo)) as shown:
        outcomes = run_cells(
            planned.cells,
            runs,
            data=store.root.absolute(),
            offline=offline,
            threads=lambda cell: threads_of[cell.suite],
            executor=chosen(),
            resources=Resources(devices=devices, jobs_per_device=side_by_side),
            registry=registry,
            suites=planned.suites,
            listen=shown.hear,
        )
    return _report(outcomes, leaderboards / "measured", as_json)


def _suites(planned: Plan) -> list[str]:
    return sorted({cell.suite for cell in planned.cells})


def _is_done(runs: Path, cell: CellSpec) -> bool:
    from lnlbench.engine.planner import cell_folder
    from lnlbench.engine.session import read_record

    return read_record(cell_folder(runs, cell)) is not None


def _fetch_data(cells: Sequence[CellSpec], registry: Registry, store: Any) -> None:
    # Before any worker starts: a download has one progress bar, and a missing file stops the command, not each cell.
    from lnlbench.engine.prepare import of_cells

    for requirement in of_cells(registry, cells):
        requirement.prepare(registry, store)


def _own_suite(
    registry: Registry,
    store: LocalDataStore,
    dataset: str,
    noise: str | None,
    rates: str | None,
    noise_set: Sequence[str],
    data_set: Sequence[str],
) -> Suite:
    from lnlbench.engine.data import find_dataset
    from lnlbench.engine.own import own_suite
    from lnlbench.engine.planner import parse_overrides

    options = parse_overrides(data_set, "--data-set")
    name = dataset_name(dataset, store)
    opened = find_dataset(registry, name, options)
    # Own images are taken as they are now; what they are is part of the plan.
    opened.prepare(store)
    opened.open(store)
    generator = "own" if noise is None else registry.noise.find(noise).entry.name
    drawn = registry.noise.find(generator).entry.kind == "generated"
    if drawn and not rates:
        raise UsageError(f"--noise {generator} needs a rate, e.g. --rate 0.4")
    if rates and not drawn:
        raise UsageError(f"--rate goes with noise that is drawn; {generator!r} is not")
    try:
        numbers = [float(rate) for rate in split_names([rates or ""])]
    except ValueError:
        raise UsageError(f"--rate {rates!r} is not of the form 0.2,0.4") from None
    return own_suite(opened, options, generator, parse_overrides(noise_set, "--noise-set"), numbers)


def _show_plan(planned: Plan, runs: Path, as_json: bool) -> int:
    from lnlbench.engine.estimate import estimate_seconds

    rows: list[dict[str, Any]] = []
    for cell in planned.cells:
        seconds = estimate_seconds(runs, cell)
        rows.append(
            {
                "cell": cell.id,
                "suite": cell.suite,
                "task": cell.task,
                "method": cell.method.name,
                "selector": cell.selector and cell.selector.name,
                "seed": cell.seed,
                "epochs": cell.method.config["epochs"],
                "reduced": list(cell.reduced),
                "done": _is_done(runs, cell),
                "estimated_seconds": seconds,
            }
        )
    if as_json:
        print_json(rows)
        return 0
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("method", "task", "seeds", "epochs", "estimated time", "state"):
        table.add_column(column)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['selector']}+{row['method']}" if row["selector"] else row["method"]
        groups.setdefault((name, row["suite"], row["task"]), []).append(row)
    for (method, suite, task), members in groups.items():
        missing = [row for row in members if not row["done"]]
        known = [row["estimated_seconds"] for row in missing if row["estimated_seconds"] is not None]
        done = len(members) - len(missing)
        state = "finished" if not missing else f"{done} of {len(members)} finished" if done else "to do"
        table.add_row(
            escape(method),
            escape(f"{suite}@{task}"),
            " ".join(str(row["seed"]) for row in members),
            str(members[0]["epochs"]) + (" (reduced)" if members[0]["reduced"] else ""),
            "" if not missing else f"{sum(known):.0f} s" if len(known) == len(missing) else "no earlier run",
            state,
        )
    out = console()
    out.print(table)
    missing_rows = [row for row in rows if not row["done"]]
    known = [row["estimated_seconds"] for row in missing_rows if row["estimated_seconds"] is not None]
    total = f"; about {sum(known):.0f} s of computing" if missing_rows and len(known) == len(missing_rows) else ""
    out.print(f"{len(rows)} cells, {len(missing_rows)} to run, {sum(r['epochs'] for r in missing_rows)} epochs{total}")
    return 0


def _report(outcomes: Sequence[Outcome], board: Path, as_json: bool) -> int:
    from lnlbench.leaderboard.aggregate import summarise
    from lnlbench.leaderboard.render import leaderboard_table, rows_as_json
    from lnlbench.leaderboard.store import score

    scored = [outcome for outcome in outcomes if outcome.record is not None]
    if scored:
        report = score([outcome.folder for outcome in scored], board)
        rows = summarise([outcome.record for outcome in scored if outcome.record is not None])
        if as_json:
            click.echo(rows_as_json(rows))
        else:
            out = console()
            for suite in sorted({row.suite for row in rows}):
                out.print(leaderboard_table([row for row in rows if row.suite == suite], suite))
            for path in report.boards:
                click.echo(f"leaderboard: {path}")
        tell_of(report)
    elif as_json:
        print_json([])
    bad = [outcome for outcome in outcomes if outcome.status != "finished"]
    for outcome in bad:
        click.echo(f"{outcome.status}: {outcome.cell.label}: {outcome.message}", err=True)
    if bad:
        click.echo(f"{len(bad)} of {len(outcomes)} cells did not finish; the others are scored", err=True)
    return 1 if bad else 0
