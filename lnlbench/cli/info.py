"""``lnlbench info``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lnlbench.cli.common import console, json_option, load_registry, print_json
from lnlbench.errors import UnknownNameError


@click.command()
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Tell all about NAME: a method, suite, task (SUITE@LEVEL), dataset, noise, backbone or encoder."""
    registry = load_registry()
    kinds: tuple[tuple[str, bool, Callable[[Any, str], dict[str, Any]]], ...] = (
        ("method", name in registry.methods, _method),
        ("suite", name in registry.suites, _suite),
        ("task", "@" in name, _task),
        ("dataset", name in registry.datasets or name.partition(":")[0] + ":" in registry.datasets, _dataset),
        ("noise", name in registry.noise, _noise),
        ("backbone", name in registry.backbones or name.partition(":")[0] + ":" in registry.backbones, _backbone),
        ("encoder", name in registry.encoders or name.partition(":")[0] + ":" in registry.encoders, _encoder),
        ("executor", name in registry.executors, _executor),
    )
    described = [{"kind": kind, **describe(registry, name)} for kind, known, describe in kinds if known]
    if not described:
        known = [each for catalogue in registry.catalogues().values() for each in catalogue.names()]
        raise UnknownNameError("name", name, known)
    if as_json:
        print_json(described)
        return
    for facts in described:
        _print(facts)


def _method(registry: Any, name: str) -> dict[str, Any]:
    registered = registry.methods.find(name)
    entry = registered.entry
    cls = registered.load()
    options = {
        key: {"type": _type_name(field.annotation), "meaning": field.description or ""}
        for key, field in cls.Config.model_fields.items()
    }
    return {
        "name": name,
        "summary": entry.summary,
        "provider": str(registered.provider),
        "supervision": list(entry.supervision),
        "networks at test": entry.networks_at_test,
        "paper": _paper(entry.paper),
        "description": _paragraph(cls.__doc__),
        "options": options,
    }


def _suite(registry: Any, name: str) -> dict[str, Any]:
    from lnlbench.engine.prepare import of_suite

    registered = registry.suites.find(name)
    suite = registered.entry
    return {
        "name": f"{suite.name} (version {suite.version})",
        "summary": suite.title,
        "provider": str(registered.provider),
        "dataset": suite.dataset,
        "noise": {"generator": suite.noise.generator, **suite.noise.options},
        "tasks": {f"{suite.name}@{task.name}": _level(task) for task in suite.tasks},
        "known classes": f"{suite.known_classes}; the others are out of distribution" if suite.known_classes else "",
        "dataset options": suite.data,
        "seeds": " ".join(str(seed) for seed in suite.seeds),
        "backbone": suite.backbone,
        "encoder": suite.encoder,
        "epochs": suite.epochs,
        "precision": suite.precision,
        "views": {key: " + ".join(op.op for op in recipe.ops) or "none" for key, recipe in suite.views.items()},
        "variant of": suite.variant_of or "",
        "variants": [each.entry.name for each in registry.suites if each.entry.variant_of == suite.name],
        "facts": suite.facts,
        "needs": {
            each.path: f"{each.what}. {each.source}{' (downloaded)' if each.download else ''}"
            for requirement in of_suite(registry, suite)
            for each in requirement.needs(registry)
        },
    }


def _level(task: Any) -> str:
    parts = [] if task.rate is None else [f"nominal rate {task.rate:g}"]
    parts += [f"{key}={value}" for key, value in {**task.noise, **task.data}.items()]
    if task.test_sets:
        parts.append("tested on " + " and ".join(task.test_sets))
    if task.aliases:
        parts.append("also known as " + ", ".join(task.aliases))
    return "; ".join(parts) or "one level"


def _task(registry: Any, name: str) -> dict[str, Any]:
    suite_name, _, level = name.partition("@")
    suite = registry.suites.find(suite_name).entry
    task = suite.task(level)
    presets: dict[str, Any] = {}
    from lnlbench.engine.data import dataset_options, find_dataset, task_info

    dataset = find_dataset(registry, suite.dataset, dataset_options(suite, task))
    for registered in registry.methods:
        facts = task_info(suite, task, dataset)
        try:
            cls = registered.load()
            reason = cls.supports(facts)
            if reason is not None:
                presets[registered.entry.name] = f"declines: {reason}"
                continue
            config = cls.preset(facts).model_dump(mode="json")
            presets[registered.entry.name] = ", ".join(f"{key}={value}" for key, value in config.items())
        except Exception as error:  # a plugin's preset may fail in any way; the others are still of interest
            presets[registered.entry.name] = f"its preset failed: {error}"
    return {
        "name": f"{suite.name}@{task.name}",
        "summary": suite.title,
        "nominal rate": "" if task.rate is None else task.rate,
        "noise": {"generator": suite.noise.generator, **suite.noise.options, **task.noise},
        "dataset": suite.dataset,
        "training images": dataset.num_train,
        "test images": dataset.num_test,
        "presets": presets,
    }


def _dataset(registry: Any, name: str) -> dict[str, Any]:
    from lnlbench.engine.data import find_dataset

    registered = registry.datasets.find(name)
    dataset = find_dataset(registry, name)
    return {
        "name": name,
        "summary": registered.entry.summary,
        "provider": str(registered.provider),
        "classes": ", ".join(dataset.class_names),
        "training images": dataset.num_train,
        "test images": dataset.num_test,
        "image size": f"{dataset.image_size} x {dataset.image_size} x {dataset.channels}",
        "normalisation": f"mean {dataset.mean}, std {dataset.std}",
        "needs": {
            each.path: f"{each.what}. {each.source}{' (downloaded)' if each.download else ''}"
            for each in dataset.needs()
        },
        "files": {file.name: f"{file.url} ({file.digest})" for file in dataset.files()},
        "source": dataset.source,
        "licence": dataset.licence,
        "paper": _paper(registered.entry.paper),
        "suites": [each.entry.name for each in registry.suites if each.entry.dataset == name],
    }


def _noise(registry: Any, name: str) -> dict[str, Any]:
    registered = registry.noise.find(name)
    return {
        "name": name,
        "summary": registered.entry.summary,
        "provider": str(registered.provider),
        "options": {
            key: f"{', '.join(values)} (default: {values[0]})" for key, values in registered.entry.options.items()
        },
        "paper": _paper(registered.entry.paper),
        "description": _paragraph(registered.load().__doc__) if registered.entry.target else "",
        "suites": [each.entry.name for each in registry.suites if each.entry.noise.generator == name],
    }


def _backbone(registry: Any, name: str) -> dict[str, Any]:
    registered = registry.backbones.find(name)
    facts = {"name": name, "summary": registered.entry.summary, "provider": str(registered.provider)}
    if not name.endswith(":"):
        network = registered.load()(name, num_classes=10, channels=3, image_size=32)
        count = sum(parameter.numel() for parameter in network.parameters())
        facts["parameters"] = f"{count:,} (10 classes, 3 x 32 x 32 images)"
    return facts


def _encoder(registry: Any, name: str) -> dict[str, Any]:
    registered = registry.encoders.find(name)
    facts = {
        "name": name,
        "summary": registered.entry.summary,
        "provider": str(registered.provider),
        "paper": _paper(registered.entry.paper),
        "suites": [each.entry.name for each in registry.suites if each.entry.encoder == name],
    }
    if not name.endswith(":"):
        model = registered.load()(name)
        facts |= {
            "input": f"{model.image_size} x {model.image_size} x {len(model.mean)}, mean {model.mean}, std {model.std}",
            "features": model.embed_dim,
            "width of a token": model.context_dim,
            "temperature": round(model.temperature, 6),
            "weights": f"SHA-256 {model.fingerprint}",
        }
    return facts


def _executor(registry: Any, name: str) -> dict[str, Any]:
    registered = registry.executors.find(name)
    return {"name": name, "summary": registered.entry.summary, "provider": str(registered.provider)}


def _paper(paper: Any) -> str:
    return f"{paper.authors}: {paper.title}. {paper.venue} {paper.year}. {paper.url}".strip() if paper else ""


def _paragraph(text: str | None) -> str:
    import inspect

    return inspect.cleandoc(text or "")


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _print(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value in ("", [], {}):
            continue
        table.add_row(escape(key), escape(_text(value)))
    out.print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            if isinstance(inner, dict):
                inner = f"({inner['type']}) {inner['meaning']}"
            lines.append(f"{key}: {inner}")
        return "\n".join(lines)
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    return str(value)
