"""The page that compares the methods: from the installed program, and from a measurement that is kept beside it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lnlbench.contracts.method import MethodEntry
from lnlbench.engine.planner import Request, plan
from lnlbench.engine.profile import Measurement, MethodProfile
from lnlbench.errors import UsageError
from lnlbench.plugins import Registered, Registry
from lnlbench.store import LocalDataStore

Questions = dict[str, list[str]]
"""What a preset asks for, and on which suites."""

_PLUS = "\N{NO-BREAK SPACE}+\N{NO-BREAK SPACE}"
"""Keeps the two numbers of a narrow column in one line."""

_PAGE = """\
# Comparing the methods

What the installed methods use, and what they cost on one small task: `{task}`, {num_train:,} images, backbone
`{backbone}`, {epochs} epochs, every method with its preset for this task.

Measured on {day} on {device} ({device_type}, {precision}, {threads} CPU thread(s)) with lnlbench {lnlbench} and PyTorch
{torch}. One command measures again:

```
lnlbench profile --method {names} \\
    --suite {suite} --task {level} --out docs/reference/comparison.json
```

## What they use

| method | networks | views | trained models | asks for | reports |
| --- | --- | --- | --- | --- | --- |
{uses}

- *Networks*: trained / run / at test. Trained ones have an optimiser. Those run include averaged copies (mean
  teachers). Those at test vote.
- *Views* of an image in a training step. Where the batches of a step differ, as those of clean and of other samples
  may, each kind is listed.
- *Trained models* that a method starts from or listens to: `clip` is a vision-language model.
- A method *asks for* what a user may not know. It is listed for the CIFAR suites, and stamped on rows of the
  leaderboard.
- What a method *reports* of the training samples is scored, and written to `samples.npz` of its run.

## What they cost

| method | passes per step | steps | sets | judging | encoded | seconds | times `{first}` | memory | parameters |
| --- | --- | --: | --- | --: | --: | --: | --: | --: | --: |
{costs}

Per epoch, in the main phase of each method; warm-up is cheaper.

- *Passes per step*: calls of a network on a batch, with gradient + without.
- *Sets*: images through a network in an epoch, with gradient + without. The unit is the training set, so batch sizes do
  not matter. With gradient, a set costs about three times as much as without.
- *Judging*: how many of these sets are outside of training steps, to judge the samples.
- *Encoded*: sets through the image tower of a vision-language model. Features of un-augmented images are stored and
  cost nothing after the first run. *Prompt*: a learnable prompt goes through the text tower as well, step by step. With
  a large model this column outweighs the others.
- *Seconds* of training on this device, evaluation left out: the median of the last quarter of the epochs. On a CPU this
  is processor time. On larger images and networks the cost relative to `{first}` follows the sets.
- *Memory*: the peak, in MiB. On a CPU it is that of the process, and most of it is libraries: look at the differences.
- *Parameters* that are trained, of all networks together.

{stages}
## How to choose

{choices}

Accuracy is not on this page: it depends on the noise. The leaderboards have it.
"""


def page(registry: Registry, source: Path) -> str:
    """Write the page.

    Args:
        registry: What is installed; every method has a row.
        source: The measurement, as ``lnlbench profile --out`` writes it; methods that it lacks have dashes.
    """
    measurement = Measurement.model_validate_json(source.read_text(encoding="utf-8"))
    measured = {each.method: each for each in measurement.methods}
    questions = {each.entry.name: _questions(registry, each) for each in registry.methods}
    for each in measurement.methods:
        for question in each.asked:
            questions.get(each.method, {}).setdefault(question, [])
    first, where = measurement.methods[0], measurement.environment
    entries = [each.entry for each in registry.methods]
    return _PAGE.format(
        task=f"{measurement.suite}@{measurement.task}",
        suite=measurement.suite,
        level=measurement.task,
        num_train=measurement.num_train,
        backbone=first.backbone,
        epochs=first.epochs,
        day=measurement.measured,
        lnlbench=where.lnlbench,
        torch=where.versions["torch"],
        precision=measurement.precision,
        device=where.device,
        device_type=where.device_type,
        threads=where.threads,
        names=",".join(measured),
        first=first.method,
        uses="\n".join(_use_row(each, measured.get(each.name), questions[each.name]) for each in entries),
        costs="\n".join(_cost_row(each, measured.get(each.name), first) for each in entries),
        stages=_stages(measurement),
        choices="\n".join(_choices(entries, measured, questions)),
    )


def _questions(registry: Registry, registered: Registered[MethodEntry]) -> Questions:
    cifar = [each.entry for each in registry.suites if each.entry.dataset in ("cifar10", "cifar100")]
    suites = [suite.name for suite in cifar if suite.variant_of is None]
    asked: dict[str, dict[str, None]] = {}
    # A method that supports none of the suites asks for nothing on them.
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UsageError):
        planned = plan(Request([registered.entry.name], suites), registry, LocalDataStore(Path(folder), offline=True))
        for cell in planned.cells:
            for question in cell.method.asked:
                asked.setdefault(question, {})[cell.suite] = None
        everywhere = len(planned.suites)
        return {question: [] if len(on) == everywhere else list(on) for question, on in asked.items()}
    return {}


def _use_row(entry: MethodEntry, measured: MethodProfile | None, questions: Questions) -> str:
    asks = [f"{question} (on {', '.join(on)})" if on else question for question, on in questions.items()]
    networks = views = reports = "—"
    if measured is not None:
        usage = measured.usage
        networks = f"{usage.networks_trained} / {usage.networks_run}"
        views = "; ".join(", ".join(each) for each in usage.views)
        reports = ", ".join(each.replace("_", " ") for each in usage.reports) or "nothing"
    models = ", ".join(each for each in entry.supervision if each != "scratch") or "none"
    return _row(
        f"`{entry.name}`",
        f"{networks} / {entry.networks_at_test}",
        views,
        models,
        ", ".join(asks) or "nothing",
        reports,
    )


def _cost_row(entry: MethodEntry, measured: MethodProfile | None, first: MethodProfile) -> str:
    if measured is None:
        return _row(f"`{entry.name}`", *["—"] * 9)
    usage = measured.usage
    return _row(
        f"`{entry.name}`",
        f"{usage.passes_with_gradient:g}{_PLUS}{usage.passes_without_gradient:g}",
        str(usage.steps),
        f"{usage.sets_with_gradient:.1f}{_PLUS}{usage.sets_without_gradient:.1f}",
        f"{usage.sets_outside_steps:.1f}",
        f"{usage.sets_encoded:.1f}" + (" + prompt" if usage.prompts_encoded else ""),
        f"{measured.seconds_per_epoch:.2f}",
        f"{measured.seconds_per_epoch / first.seconds_per_epoch:.1f}",
        f"{measured.peak_memory_bytes / 2**20:,.0f}",
        f"{measured.parameters:,}",
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _stages(measurement: Measurement) -> str:
    done = [
        f"`{each.method}` {stage} ({seconds:.0f} s)"
        for each in measurement.methods
        for stage, seconds in each.stage_seconds.items()
    ]
    return f"Before training, and stored for later runs: {', '.join(done)}.\n" if done else ""


def _choices(
    entries: list[MethodEntry], measured: dict[str, MethodProfile], questions: dict[str, Questions]
) -> Iterable[str]:
    known = [measured[entry.name] for entry in entries if entry.name in measured]
    groups = {
        "No model that was trained on other data": [e.name for e in entries if e.supervision == ("scratch",)],
        "No knowledge of the noise": [e.name for e in entries if not questions[e.name]],
        "One network at test": [e.name for e in entries if e.networks_at_test == 1],
        "One network in training": [each.method for each in known if each.usage.networks_run == 1],
        "A verdict on samples out of distribution": [each.method for each in known if "ood" in each.usage.reports],
        "A start from another method's selection, if asked for": [e.name for e in entries if e.starts_from_selection],
        "By seconds, the fastest first": [
            each.method for each in sorted(known, key=lambda each: each.seconds_per_epoch)
        ],
    }
    for what, names in groups.items():
        yield f"- {what}: {', '.join(f'`{name}`' for name in names) or 'none'}."
