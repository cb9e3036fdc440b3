"""Plots of a board: accuracy against noise, and accuracy against cost. Each comes with its numbers as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from lnlbench.site.boards import Board, Entry
from lnlbench.site.plots import Series, lines, scatter
from lnlbench.site.render import render

_MOST = 8
"""Entries that a plot tells apart by colour."""


def noise_figure(board: Board) -> Iterator[Markup]:
    """Draw accuracy against noise rate, if there are two rates; of the best entries where there are many."""
    rates = {task: rate for task in board.tasks if (rate := _rate(board, task)) is not None}
    if len(set(rates.values())) < 2 or len(rates) < len(board.tasks):
        return
    drawable = [entry for entry in board.entries if sum(task in entry.rows for task in rates) > 1]
    entries = drawable[:_MOST]
    if not entries:
        return
    tasks = sorted(rates, key=lambda task: rates[task])
    series = []
    for entry in entries:
        points = [
            (rates[task], mean, entry.rows[task].last10_std)
            for task in tasks
            if task in entry.rows and (mean := entry.rows[task].last10_mean) is not None
        ]
        series.append(Series(entry.name, tuple((x, y) for x, y, _ in points), tuple(sd for _, _, sd in points)))
    drawing = lines(
        f"Accuracy against noise rate: {board.title}",
        f"Test accuracy over the final ten epochs of {', '.join(each.name for each in series)}, by noise rate from "
        f"{min(rates.values()):g} to {max(rates.values()):g} %. The numbers are in the table of the board.",
        "noise rate, %",
        "test accuracy, %",
        series,
        marks=True,
        id_prefix=f"{board.anchor}-noise",
    )
    caption = "Last 10 epochs; bars are ± one sample standard deviation. The numbers are in the table above."
    if len(drawable) > len(entries):
        caption = f"The {len(entries)} best of {len(drawable)} methods. {caption}"
    yield _figure("Accuracy against noise rate", drawing, caption)


def cost_figures(board: Board) -> Iterator[Markup]:
    """Draw mean accuracy against training time, on each device by itself, and against the number of parameters."""
    entries = [entry for entry in board.entries if board.mean(entry, "last10") is not None]
    devices: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.seconds:
            devices.setdefault(" and ".join(entry.values("device")), []).append(entry)
    for number, (device, members) in enumerate(devices.items(), start=1):
        costs = [(entry, entry.seconds or 0.0) for entry in members]
        what = f"training time on {device}"
        yield from _pareto(board, costs, what, "seconds of training per run", f"{board.anchor}-time-{number}")
    sizes = [(entry, entry.mean("parameters") or 0.0) for entry in entries]
    yield from _pareto(board, sizes, "size", "trainable parameters of all networks", f"{board.anchor}-size")


def _pareto(board: Board, costs: Sequence[tuple[Entry, float]], what: str, unit: str, prefix: str) -> Iterator[Markup]:
    if len({cost for _, cost in costs}) < 2:
        return
    points = [(entry, cost, board.mean(entry, "last10") or 0.0) for entry, cost in costs]
    front = _front(points)
    title = f"Accuracy against {what}"
    named = ", ".join(entry.name for entry, _, _ in front)
    drawing = scatter(
        f"{title}: {board.title}",
        f"Mean test accuracy over all levels by {unit}. No method is both cheaper and better than: {named}.",
        unit,
        "mean test accuracy, %",
        [Series(entry.name, ((cost, accuracy),)) for entry, cost, accuracy in points],
        log_x=True,
        front=tuple((cost, accuracy) for _, cost, accuracy in front),
        id_prefix=prefix,
    )
    best = {entry.name for entry, _, _ in front}
    rows = [
        (entry.name, f"{cost:,.0f}", f"{accuracy:.2f}", "yes" if entry.name in best else "")
        for entry, cost, accuracy in points
    ]
    caption = "Last 10 epochs, mean over all levels. The line is the Pareto front: nothing is both cheaper and better."
    yield _figure(title, drawing, caption, ("Method", unit.capitalize(), "Mean accuracy", "On the front"), rows)


def _front(points: Sequence[tuple[Entry, float, float]]) -> list[tuple[Entry, float, float]]:
    """Return the points that no other one beats in both, cheapest first."""
    front: list[tuple[Entry, float, float]] = []
    for point in sorted(points, key=lambda each: (each[1], -each[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    return front


def _rate(board: Board, task: str) -> float | None:
    """Return the noise rate of a task: the nominal one, or else what was found in the data."""
    rows = [entry.rows[task] for entry in board.entries if task in entry.rows]
    for column in ("nominal_rate", "realised_rate_mean"):
        found = [rate for row in rows if (rate := getattr(row, column)) is not None]
        if found:
            return float(found[0])
    return None


def _figure(
    title: str,
    drawing: Markup,
    caption: str,
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> Markup:
    text = render("figure.html", "", title=title, drawing=drawing, caption=caption, columns=columns, rows=rows)
    return Markup(text)  # noqa: S704 - it comes from a template that escapes
