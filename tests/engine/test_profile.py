"""What is counted while a method trains, on a method of which everything is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lnlbench.engine.profile import WATCHED, profile_of
from lnlbench.engine.session import Outcome, read_record
from lnlbench.engine.watching import Usage, Watch
from lnlbench.errors import PluginError
from lnlbench.plugins import Registry, discover
from lnlbench.records import CellSpec

# 120 images in batches of 50: three steps. Before them everything through the student and its peer, after them the last
# batch through the teacher. A step has three passes with gradient (one of them by embed and classify), two without, an
# encoding and a prompt, and is followed by a step of something that is no network.
TEACHER = """
    import copy
    import torch
    from lnlbench.api import (
        Ensemble, Method, MethodConfig, MethodEntry, RandomCrop, RandomFlip, ViewRecipe, hookimpl
    )

    class Teacher(Method["Teacher.Config"]):
        class Config(MethodConfig):
            train: bool = True

        @classmethod
        def preset(cls, task):
            return cls.Config(epochs=4, batch_size=50, backbone="small-cnn")

        def fit(self, task, run):
            student, peer = task.network("student", "small-cnn"), task.network("peer", "small-cnn")
            teacher = copy.deepcopy(student).requires_grad_(False)
            weight = torch.nn.Parameter(torch.ones(()))
            optimiser = torch.optim.SGD(student.parameters(), lr=0.01)
            other = torch.optim.SGD([weight], lr=0.01)
            run.track(student=student, optimiser=optimiser)
            self.student = student
            encoder = task.encoder("glyphs")
            encoder.training_features()
            student(task.labels.new_zeros(7, 1, 8, 8).float())  # before any epoch: not counted
            recipe = ViewRecipe(ops=(RandomCrop(padding=1), RandomFlip()))
            loader = task.loader("train", batch_size=50, views=("weak", recipe)).forever()
            for epoch in run.epochs(self.config.epochs):
                with torch.no_grad():
                    for network in (student, peer):
                        for batch in task.loader("judge", batch_size=40, views=("plain",), shuffle=False):
                            network(batch.images)
                run.report(selected=torch.ones(task.num_train, dtype=torch.bool), ood=None)
                for _ in range(3 if self.config.train or epoch == 0 else 0):
                    batch = next(loader)
                    loss = student(batch.views[0]).logsumexp(1).mean()
                    loss = loss + student.classify(student.embed(batch.views[1])).square().mean()
                    loss = loss + weight * student(batch.views[0].flip(0)).square().mean()
                    with torch.no_grad():
                        teacher(batch.views[0])
                        peer(batch.views[1])
                    encoder.image_features(batch.images[:20])
                    encoder.prompt_features(encoder.token_embeddings("a sign"), ["zero", "one"])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    other.step()
                with torch.no_grad():
                    teacher(batch.images )

        def predict(self, images):
            return self.student(images)

    @hookimpl
    def lnlbench_methods():
        return [MethodEntry(name="teacher", target="teacher_plugin:Teacher", summary="Known in all its parts.")]
"""

Cells = Callable[..., tuple[CellSpec, ...]]
RunHere = Callable[..., tuple[Path, list[dict[str, Any]]]]


@pytest.fixture
def teacher(plugins: Any) -> Registry:
    plugins.add("lnlbench-teacher", "teacher_plugin", TEACHER)
    return discover()


def watch(registry: Registry, cell: CellSpec, run_here: RunHere) -> tuple[Watch, Path]:
    watch = Watch()
    folder, _ = run_here(cell, watch.methods(registry))
    assert not (folder / "failure.json").exists(), (folder / "failure.json").read_text()
    return watch, folder


def test_everything_is_counted_once(teacher: Registry, make_cells: Cells, run_here: RunHere) -> None:
    (cell,) = make_cells(teacher, methods=["teacher"], limit_train=120)
    watched, _ = watch(teacher, cell, run_here)
    assert len(watched.processor_seconds) == 2
    assert watched.usage() == Usage(
        networks_trained=1,
        networks_run=3,
        views=(("weak", "crop + flip"),),
        steps=3,
        passes_with_gradient=3,
        passes_without_gradient=2,
        sets_with_gradient=3,
        # The last batch of a pass has 20 images.
        sets_without_gradient=(2 * 120 + 2 * 120 + 20) / 120,
        sets_outside_steps=(2 * 120 + 20) / 120,
        reports=("selected",),
        encoders=("glyphs",),
        sets_encoded=3 * 20 / 120,
        prompts_encoded=1.0,
    )


def test_an_epoch_without_a_step_has_no_usage(teacher: Registry, make_cells: Cells, run_here: RunHere) -> None:
    (cell,) = make_cells(teacher, methods=["teacher"], limit_train=120, overrides={"train": "false"})
    assert watch(teacher, cell, run_here)[0].usage() is None


def test_being_watched_changes_no_result(
    registry: Registry, make_cells: Cells, run_here: RunHere, tmp_path: Path
) -> None:
    (cell,) = make_cells(methods=["dividemix"], overrides={"warmup_epochs": "1"})
    plain, _ = run_here(cell, runs=tmp_path / "plain")
    _, watched = watch(registry, cell, run_here)
    assert (watched / "predictions.npz").read_bytes() == (plain / "predictions.npz").read_bytes()
    assert (watched / "samples.npz").read_bytes() == (plain / "samples.npz").read_bytes()


def test_seconds_are_those_of_the_last_quarter(make_cells: Cells, run_here: RunHere) -> None:
    (cell,) = make_cells(epochs=9)
    watched, folder = watch(discover(), cell, run_here)
    assert all(seconds > 0 for seconds in watched.processor_seconds)
    assert len(watched.processor_seconds) == 9
    watched.processor_seconds = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    watched.write(folder / WATCHED)
    record = read_record(folder)
    assert record is not None
    assert profile_of(Outcome(cell, folder, "finished", "", record, new=True)).seconds_per_epoch == 1.5

    # On a GPU the processor only gives orders: there the clock of the run counts.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for epoch, row in enumerate(rows):
        row["seconds"]["train"] = 100.0 - epoch
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gpu = record.model_copy(update={"environment": record.environment.model_copy(update={"device_type": "cuda"})})
    assert profile_of(Outcome(cell, folder, "finished", "", gpu, new=True)).seconds_per_epoch == 92.5

    Watch().write(folder / WATCHED)
    with pytest.raises(PluginError, match="no step to measure"):
        profile_of(Outcome(cell, folder, "finished", "", record, new=True))
