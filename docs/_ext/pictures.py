"""Pictures and tables of the noise definitions, made by the generators themselves on the embedded digits.

The directive ``pictures`` shows one or more pictures beside one another, ``noise-table`` a table. What the text
alternative of a picture says is computed from what the picture shows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from docutils import nodes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from lnlbench.api import GeneratedLabels
from lnlbench.builtin.datasets.digits import Digits
from lnlbench.builtin.noise.maps import SUPERCLASS_MEMBERS, class_map
from lnlbench.contracts.suite import Suite
from lnlbench.plugins import Registry, discover
from lnlbench.store import LocalDataStore

# The same picture gives the same bytes; letters are outlines, so that it looks alike everywhere.
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "lnlbench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_INK, _WRONG, _RIGHT = "#1f2328", "#b42318", "#3b6ea5"
_SEED = 1
_BALANCED = ("cifar10", "cifar100", "fashion")
"""Datasets with as many training images of each class; what noise does to them can be told without them."""
_TOLD = 100
"""Seeds over which a table counts."""
_UNSAID = ("stream",)
"""Switches that say which random numbers are drawn, and nothing about the noise."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("pictures", Pictures)
    app.add_directive("noise-table", NoiseTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# The noise.


@cache
def registry() -> Registry:
    """Return what is installed."""
    return discover()


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the embedded training images ``(N, 8, 8, 1)`` and their true labels ``(N,)``."""
    # The images come with an installed library: nothing is read from the folder.
    data = Digits().load(LocalDataStore(Path("unused"), offline=True))
    return np.asarray(data.train_images), data.train_labels


def draw(
    generator: str,
    rate: float,
    *,
    labels: NDArray[np.int64] | None = None,
    images: NDArray[np.uint8] | None = None,
    num_classes: int = 10,
    seed: int = _SEED,
    **options: Any,
) -> GeneratedLabels:
    """Let a generator draw labels, for the digits unless told otherwise."""
    registered = registry().noise.find(generator)
    if labels is None:
        images, labels = digits()
    pixels = {"images": images} if registered.entry.uses_images else {}
    drawn: GeneratedLabels = registered.load()(labels, rate, num_classes=num_classes, seed=seed, **pixels, **options)
    return drawn


def realised_matrix(true: NDArray[np.int64], given: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return the share of each given label (column) among the samples of each true class (row)."""
    counts = np.zeros((int(true.max()) + 1, num_classes))
    np.add.at(counts, (true, given), 1.0)
    shares: NDArray[np.float64] = counts / counts.sum(1, keepdims=True)
    return shares


def flip_rates(rate: float, size: int) -> NDArray[np.float64]:
    """Return the flip rates that part-dependent noise gives to the first ``size`` images."""
    # With one image to a class, the matrix shows each image's own rate. They do not depend on what an image shows.
    blank = np.zeros((size, 1, 1, 1), dtype=np.uint8)
    drawn = draw("part-dependent", rate, labels=np.arange(size), images=blank, num_classes=size, features="raw")
    return 1.0 - np.diag(drawn.matrix)


# The pictures.


@dataclass(frozen=True)
class Picture:
    """A drawing, and what it shows in words."""

    figure: Figure
    alternative: str

    def svg(self) -> bytes:
        """Return it as SVG, without date."""
        file = io.BytesIO()
        with mpl.rc_context(_STYLE):
            self.figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.08)
        return file.getvalue()


def matrix_picture(
    title: str, matrix: NDArray[np.float64], wrong: float, rows: Sequence[str], columns: Sequence[str]
) -> Picture:
    """Draw a transition matrix.

    Args:
        title: What noise it is.
        matrix: ``(R, C)``, P(given = column | true = row).
        wrong: Share of wrong labels.
        rows: R names of true classes.
        columns: C names.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.3, 3.5))
        axes = figure.add_subplot()
        # The square root makes shares of a few per cent visible.
        axes.imshow(np.sqrt(matrix), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for (row, column), share in np.ndenumerate(matrix):
            if share >= 0.005:
                colour = "white" if share > 0.4 else _INK
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(columns)), columns, rotation=0 if max(map(len, columns)) < 3 else 90)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_xlabel("given label")
        axes.set_ylabel("true label")
        axes.set_title(f"{title}\n{100 * wrong:.1f} % of the labels are wrong")
    inside = matrix[: len(columns)]
    kept = np.diag(inside)
    off = inside - np.diag(kept)
    row, column = np.unravel_index(off.argmax(), off.shape)
    alternative = (
        f"Transition matrix of {title}: {100 * wrong:.1f} % of the labels are wrong. Of a class, {_range(kept)} keep "
        f"their label; the largest other cell is {rows[row]} to {columns[column]}, {100 * off.max():.0f} %."
    )
    return Picture(figure, alternative)


def _range(shares: NDArray[np.float64]) -> str:
    low, high = f"{100 * shares.min():.0f}", f"{100 * shares.max():.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def of_digits(title: str, generator: str, rate: float, num_classes: int = 10, **options: Any) -> Picture:
    """Draw what a generator made of the digits."""
    true = digits()[1]
    given = draw(generator, rate, num_classes=num_classes, **options).labels
    names = [str(digit) for digit in range(10)]
    matrix = realised_matrix(true, given, num_classes)
    return matrix_picture(title, matrix, float((given != true).mean()), names, names[:num_classes])


def of_cifar10(title: str, generator: str, rate: float, **options: Any) -> Picture:
    """Draw the matrix that a generator intends for CIFAR-10, which has 5,000 images of each class."""
    names = registry().datasets.find("cifar10").load()("cifar10", None).class_names
    drawn = draw(generator, rate, labels=np.repeat(np.arange(10), 5_000), **options)
    return matrix_picture(title, drawn.matrix, float(1 - np.diag(drawn.matrix).mean()), names, names)


def counts(count: str) -> Picture:
    """Draw the share of wrong labels in each class."""
    true = digits()[1]
    wrong = draw("symmetric", 0.4, count=count).labels != true
    shares = np.array([wrong[true == label].mean() for label in range(10)])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.2, 2.1))
        axes = figure.add_subplot()
        axes.bar(range(10), 100 * shares, color=_RIGHT)
        axes.axhline(40, color=_WRONG, linewidth=1)
        axes.set_xticks(range(10))
        axes.set_ylim(0, 60)
        axes.set_xlabel("true label")
        axes.set_ylabel("wrong, per cent")
        axes.set_title(f"{count}: {wrong.sum()} of {len(true):,}")
    return Picture(
        figure,
        f"Bars, count {count}: {wrong.sum()} of {len(true):,} labels are wrong at a rate of 40 %, and in the classes "
        f"{_range(shares)}.",
    )


def strip(title: str, generator: str, rate: float, num_classes: int = 10, **options: Any) -> Picture:
    """Draw the first images with their given labels, and the true ones where they differ."""
    images, true = digits()
    given = draw(generator, rate, num_classes=num_classes, **options).labels
    shown = 18
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.6))
        figure.suptitle(title, fontsize=9)
        for number in range(shown):
            axes = figure.add_subplot(3, 6, number + 1)
            axes.imshow(255 - images[number, ..., 0], cmap="gray", vmin=0, vmax=255)
            right = given[number] == true[number]
            words = f"{given[number]}" if right else f"{given[number]}  (is {true[number]})"
            axes.set_title(words, fontsize=8, color=_INK if right else _WRONG, weight="normal" if right else "bold")
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_color(_INK if right else _WRONG)
                side.set_linewidth(0.6 if right else 2.0)
    told = ", ".join(
        f"{given[n]}" if given[n] == true[n] else f"{given[n]} on an image of {true[n]}" for n in range(shown)
    )
    return Picture(figure, f"{title}: the first {shown} images and their labels: {told}.")


def flip_rate_histogram() -> Picture:
    """Draw the flip rates of the digits at three nominal rates."""
    size = len(digits()[1])
    parts = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.6))
        axes = figure.add_subplot()
        for rate, colour, style in ((0.1, "#7a5195", ":"), (0.2, _WRONG, "--"), (0.4, _RIGHT, "-")):
            rates = flip_rates(rate, size)
            axes.hist(rates, np.linspace(0, 1, 51), histtype="step", color=colour, linestyle=style, linewidth=1.4,
                      label=f"nominal {100 * rate:.0f} %: mean {100 * rates.mean():.1f} %")  # fmt: skip
            parts.append(f"at nominal {100 * rate:.0f} % their mean is {100 * rates.mean():.1f} %")
        axes.set_xlim(0, 0.8)
        # Room for the legend.
        axes.set_ylim(0, 1.5 * axes.get_ylim()[1])
        axes.set_xlabel("flip rate of an image")
        axes.set_ylabel("images")
        axes.legend(frameon=False, fontsize=8)
    return Picture(figure, f"Histograms of the flip rates of {size:,} images: " + ", ".join(parts) + ".")


def cifar100_map(name: str) -> Picture:
    """Draw to which class each class of CIFAR-100 goes."""
    targets = class_map(name, 100)
    superclass = np.empty(100, dtype=np.int64)
    for number, members in enumerate(SUPERCLASS_MEMBERS):
        superclass[list(members)] = number
    inside = superclass == superclass[targets]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.1, 2.3))
        axes = figure.add_subplot()
        sources = np.arange(100)
        axes.plot(sources[~inside], targets[~inside], "x", color=_WRONG, markersize=3.5)
        axes.plot(sources[inside], targets[inside], "o", color=_RIGHT, markersize=3)
        axes.set_aspect("equal")
        axes.set_xlabel("true fine id")
        axes.set_ylabel("goes to")
        axes.set_title(f"{name}: {inside.sum()} of 100\nin the superclass")
    return Picture(figure, f"Map {name}: {inside.sum()} of 100 classes go to a class of their own superclass.")


_PDN = "part-dependent"
PICTURES: Mapping[str, Callable[[], Picture]] = {
    "symmetric-exclusive": lambda: of_digits("symmetric 50 %, exclusive", "symmetric", 0.5, replacement="exclusive"),
    "symmetric-inclusive": lambda: of_digits("symmetric 50 %, inclusive", "symmetric", 0.5, replacement="inclusive"),
    "count-exact": lambda: counts("exact"),
    "count-exact-per-class": lambda: counts("exact-per-class"),
    "count-bernoulli": lambda: counts("bernoulli"),
    "strip-symmetric": lambda: strip("digits-sym@0.40, seed 1", "symmetric", 0.4),
    "asymmetric-cifar10": lambda: of_cifar10("cifar10-asym@0.40", "asymmetric", 0.4, map="cifar10"),
    "asymmetric-mnist": lambda: of_digits("digits-asym@0.40", "asymmetric", 0.4, count="exact-per-class", map="mnist"),
    "strip-asymmetric": lambda: strip(
        "digits-asym@0.40, seed 1", "asymmetric", 0.4, count="exact-per-class", map="mnist"
    ),
    "map-superclass": lambda: cifar100_map("superclass"),
    "map-block5": lambda: cifar100_map("block5"),
    "map-next": lambda: cifar100_map("next"),
    "pair": lambda: of_digits("pair 45 %", "pair", 0.45),
    "flip-rates": flip_rate_histogram,
    "part-dependent-raw": lambda: of_digits("40 %, raw pixels", _PDN, 0.4, features="raw"),
    "part-dependent-normalised": lambda: of_digits("40 %, normalised pixels", _PDN, 0.4, features="normalised"),
    "part-dependent-shared": lambda: of_digits(
        "40 %, raw, one projection", _PDN, 0.4, features="raw", projection="shared"
    ),
    "open-set": lambda: of_digits("digits-openset@sym@0.20", "open-set", 0.2, 8, count="exact"),
    "strip-open-set": lambda: strip("digits-openset@sym@0.20, seed 1", "open-set", 0.2, 8, count="exact"),
}
"""Every picture, by name."""


class Pictures(SphinxDirective):
    """Show pictures by name, beside one another."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Draw them into the folder of generated files, and refer to them there."""
        box = nodes.container(classes=["pictures"])
        folder = Path(self.env.srcdir) / "explanation" / "generated"
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.arguments[0].split():
            picture = PICTURES[name]()
            path = folder / f"{name}.svg"
            path.write_bytes(picture.svg())
            box += nodes.image(uri=f"/explanation/generated/{name}.svg", alt=picture.alternative)
        self.set_source_info(box)
        return [box]


# The tables.


def _levels(suite: Suite) -> list[tuple[float, dict[str, Any]]]:
    """Return nominal rate and options of every level; the rate of labels that are not drawn is 0."""
    return [(task.rate or 0.0, suite.noise.options | task.noise) for task in suite.tasks]


def drawn_suites(generator: str | None = None) -> list[Suite]:
    """Return the suites whose labels are drawn, by one generator or by any."""
    found = [registered.entry for registered in registry().suites]
    drawn = [suite for suite in found if registry().noise.find(suite.noise.generator).entry.kind == "generated"]
    return [suite for suite in drawn if generator in (None, suite.noise.generator)]


def expected_rate(suite: Suite, rate: float, options: Mapping[str, Any]) -> float | None:
    """Return the share of wrong labels that the definition gives; ``None`` where it needs data that are not here."""
    if suite.dataset == "digits":
        images, labels = digits()
        total = 10
    elif suite.dataset in _BALANCED:
        dataset = registry().datasets.find(suite.dataset).load()(suite.dataset, None)
        total = dataset.num_classes
        labels = np.repeat(np.arange(total), dataset.num_train // total)
        # Part-dependent noise flips as many labels of blank images.
        images = np.zeros((len(labels), 1, 1, 1), dtype=np.uint8)
    else:
        return None
    known = suite.known_classes or total
    matrix = draw(suite.noise.generator, rate, labels=labels, images=images, num_classes=known, **options).matrix
    kept = np.zeros(total)
    kept[:known] = np.diag(matrix[:known])
    return float(1.0 - kept[labels].mean())


def rates_table() -> str:
    """Nominal and expected rates of all suites with drawn labels."""
    lines = ["| suite | noise | nominal, % | wrong labels, % |", "| --- | --- | --- | --- |"]
    for suite in drawn_suites():
        levels = _levels(suite)
        nominal = " / ".join(f"{100 * rate:g}" for rate, _ in levels)
        shares = [expected_rate(suite, rate, options) for rate, options in levels]
        expected = " / ".join("" if share is None else f"{100 * share:.1f}".removesuffix(".0") for share in shares)
        lines.append(f"| `{suite.name}` | {_switches(suite)} | {nominal} | {expected} |")
    return "\n".join(lines)


def suites_table(generator: str) -> str:
    """The suites that use a generator, or whose labels are released or their own, with the definition's source."""
    lines = ["| suite | switches | where the definition comes from |", "| --- | --- | --- |"]
    for registered in registry().suites:
        suite = registered.entry
        if suite.noise.generator in generator.split():
            lines.append(f"| `{suite.name}` | {_switches(suite)} | {suite.facts.replace('|', '/')} |")
    return "\n".join(lines)


def counts_table() -> str:
    """How far counts differ between seeds, on the digits."""
    true = digits()[1]
    lines = ["| `count` | wrong labels, of all | wrong labels, of a class |", "| --- | --- | --- |"]
    for count in ("exact", "exact-per-class", "bernoulli"):
        seeds = range(1, _TOLD + 1)
        wrong = np.array([draw("symmetric", 0.4, count=count, seed=seed).labels != true for seed in seeds])
        shares = np.array([wrong[:, true == label].mean(1) for label in range(10)])
        lines.append(f"| `{count}` | {_from_to(wrong.mean(1))} | {_from_to(shares)} |")
    return "\n".join(lines)


def concentration_table() -> str:
    """To how few classes part-dependent noise sends the labels of a class, on the digits."""
    lines = ["| features | projection | of a class's flips, to its most frequent target | to digit | on average |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    true = digits()[1]
    for features, projection in (("raw", "per-class"), ("raw", "shared"), ("normalised", "per-class")):
        given = draw(_PDN, 0.4, features=features, projection=projection).labels
        flips = realised_matrix(true, given, 10)
        np.fill_diagonal(flips, 0.0)
        flips /= flips.sum(1, keepdims=True)
        targets = " ".join(map(str, flips.argmax(1)))
        lines.append(
            f"| {features} | {projection} | {_from_to(flips.max(1))} | {targets} | {flips.max(1).mean():.0%} |"
        )
    return "\n".join(lines)


def _from_to(shares: NDArray[np.float64]) -> str:
    low, high = f"{100 * shares.min():.1f}", f"{100 * shares.max():.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _switches(suite: Suite) -> str:
    """Say how the generator is set; where levels differ in a switch, all its values."""
    values: dict[str, dict[str, None]] = {}
    for _, options in _levels(suite):
        for name, value in options.items():
            values.setdefault(name, {})[str(value)] = None
    words = [f"{name} {' / '.join(several)}" for name, several in sorted(values.items()) if name not in _UNSAID]
    return f"{suite.noise.generator}: {', '.join(words)}" if words else suite.noise.generator


TABLES: Mapping[str, Callable[..., str]] = {
    "rates": rates_table,
    "counts": counts_table,
    "concentration": concentration_table,
    "suites": suites_table,
}
"""Every table, by name."""


class NoiseTable(SphinxDirective):
    """Show a table by name; ``suites`` takes the generators."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Write it as Markdown and have it parsed."""
        name, _, rest = self.arguments[0].partition(" ")
        text = TABLES[name](rest) if rest else TABLES[name]()
        return self.parse_text_to_nodes(text)
