"""Each check passes for a plain method, and fails with its reason for one that errs in one way."""

from __future__ import annotations

import json
import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lnlbench.cli.main import _run as command_line
from lnlbench.errors import UnknownNameError, UsageError
from lnlbench.testing import CHECKS, checks
from lnlbench.testing.conformance import Outcome, examine, find_check
from lnlbench.testing.laboratory import Lab, settings

README = """
| option | meaning |
| --- | --- |
| `epochs`, `batch_size` | usual |
| `backbone` | usual |
| `rate` | of learning |

| metric | meaning |
| --- | --- |
| `net1_loss` | of a network |
"""

ANNOUNCEMENT = """
    from lnlbench.api import MethodEntry, hookimpl

    NAMES = {names}

    @hookimpl
    def lnlbench_methods():
        return [MethodEntry(name=name, target=f"{module}_code:" + cls, summary="For tests.") for name, cls in NAMES]
"""

METHODS = """
    import os, sys

    import numpy as np
    import torch
    from pydantic import Field
    from torch import nn

    from lnlbench.api import Method, MethodConfig


    class Plain(Method["Plain.Config"]):
        class Config(MethodConfig):
            rate: float = Field(0.2, description="Learning rate.")

        batch_size, drop_last = 32, False

        @classmethod
        def preset(cls, task):
            return cls.Config(epochs=task.default_epochs, batch_size=cls.batch_size, backbone=task.default_backbone)

        def fit(self, task, run):
            self.task, self.run = task, run
            torch.manual_seed(0) if self.seeds_in_setup else None
            pixels = task.info.channels * task.info.image_size ** 2
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, task.num_classes))
            nn.init.zeros_(self.network[1].weight)
            nn.init.zeros_(self.network[1].bias)
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=self.config.rate, momentum=0.9)
            self.notes = {"offset": 0.0}
            run.track(**self.tracked())
            for epoch in run.epochs(self.config.epochs):
                self.begin(epoch)
                for batch in task.loader("net", batch_size=self.config.batch_size, drop_last=self.drop_last):
                    losses = self.losses(batch)
                    self.optimizer.zero_grad()
                    losses.mean().backward()
                    self.optimizer.step()
                    run.log(net1_loss=losses.mean(), net2_loss=losses.mean())
                self.end(epoch)

        seeds_in_setup = False

        def tracked(self):
            return {"network": self.network, "optimizer": self.optimizer, "notes": self.notes}

        def begin(self, epoch):
            pass

        def losses(self, batch):
            return nn.functional.cross_entropy(self.network(batch.images), batch.labels, reduction="none")

        def end(self, epoch):
            self.run.report(clean_probs=torch.ones(self.task.num_train))

        def predict(self, images):
            return self.network(images)


    class Lazy(Plain):
        def losses(self, batch):
            return 0.0 * super().losses(batch)


    class Unseeded(Plain):
        def begin(self, epoch):
            self.network[1].bias.data += 0.1 * torch.from_numpy(np.random.default_rng().normal(size=10)).float()


    class Hashed(Plain):
        def begin(self, epoch):
            self.network[1].bias.data[0] += hash("a name") % 1000 / 1000


    class Forgetful(Plain):
        def tracked(self):
            return {"network": self.network}


    class Short(Plain):
        def fit(self, task, run):
            class Once:
                def __getattr__(self, name):
                    return getattr(run, name)
                def epochs(self, total):
                    return (epoch for epoch in run.epochs(total) if epoch < 1 or run.epochs is None)
            Plain.fit(self, task, run) if False else self.once(task, run)

        def once(self, task, run):
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(task.info.channels * 64, task.num_classes))
            run.track(network=self.network)
            for epoch in run.epochs(self.config.epochs):
                break


    class Peeking(Plain):
        def begin(self, epoch):
            frame = sys._getframe()
            while "noise" not in frame.f_locals or not hasattr(frame.f_locals["noise"], "true_labels"):
                frame = frame.f_back
            self.right = torch.from_numpy(frame.f_locals["noise"].true_labels) == self.task.labels

        def end(self, epoch):
            self.run.report(clean_probs=self.right.float())


    class Threaded(Plain):
        def begin(self, epoch):
            torch.set_num_threads(2)
            np.seterr(under="warn")


    class Reseeding(Plain):
        def end(self, epoch):
            np.random.seed(7)


    class SeedingFirst(Plain):
        seeds_in_setup = True


    class Grey(Plain):
        def losses(self, batch):
            if batch.images.shape[1] != 1:
                raise ValueError("one channel only")
            return super().losses(batch)


    class Dividing(Plain):
        def losses(self, batch):
            losses = super().losses(batch)
            return losses / torch.bincount(batch.labels, minlength=10).min()


    class Counting(Plain):
        def begin(self, epoch):
            for label in range(self.task.num_classes):
                self.least = min(self.task.labels.tolist().index(label), 1)


    class Dropping(Plain):
        drop_last = True

        def end(self, epoch):
            self.run.log(net1_loss=self.last / 2)

        def losses(self, batch):
            losses = super().losses(batch)
            self.last = losses.mean().detach()
            return losses


    class Normalising(Plain):
        def losses(self, batch):
            return super().losses(batch) + 0 * nn.BatchNorm1d(64)(batch.images.flatten(1)[:, :64]).sum(1)


    class Trusting(Plain):
        @classmethod
        def preset(cls, task):
            preset = super().preset(task)
            rate = task.ask_noise_rate() or 0.0
            if rate > 0.95:
                raise ValueError("no such rate")
            return preset


    class Talkative(Plain):
        def end(self, epoch):
            super().end(epoch)
            self.run.log(accuracy=1.0)


    class Nameless(Plain):
        class Config(MethodConfig):
            rate: float = 0.2


    class Optional(Plain):
        class Config(Plain.Config):
            more: float = Field(0.2, description="Of something.")


    class Declining(Plain):
        @classmethod
        def supports(cls, task):
            return "needs colour images"


    class Exempt(Lazy):
        skip_checks = {"learns": "it is a constant on purpose"}


    class Misnamed(Lazy):
        skip_checks = {"lerns": "it is a constant on purpose"}
"""

HASTY = METHODS + "\n\n    torch.backends.cudnn.benchmark = True\n"


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three distributions as an installer leaves them: well described, described badly, and changing things early."""
    folder = tmp_path_factory.mktemp("site")
    classes = [line.split()[1].partition("(")[0] for line in METHODS.splitlines() if line.startswith("    class ")]
    for distribution, code, readme, only in (
        ("odd", METHODS, README, classes),
        ("unread", METHODS, "", ["Plain"]),
        ("hasty", HASTY, README, ["Hashed"]),
    ):
        names = [(name.lower() if distribution == "odd" else distribution, name) for name in only]
        (folder / f"{distribution}_methods.py").write_text(
            textwrap.dedent(ANNOUNCEMENT.replace("{names}", repr(names)).replace("{module}", distribution))
        )
        (folder / f"{distribution}_code.py").write_text(textwrap.dedent(code))
        metadata = folder / f"lnlbench_{distribution}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: lnlbench-{distribution}\nVersion: 1.0\n\n{readme}"
        )
        (metadata / "entry_points.txt").write_text(f"[lnlbench]\n{distribution} = {distribution}_methods\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        yield folder
    for name in [name for name in sys.modules if name.endswith(("_methods", "_code"))]:
        del sys.modules[name]


def outcome(method: str, check: str) -> Outcome:
    (found,) = examine(method, only=[check])
    assert found.check.name == check
    assert "\n" not in found.detail
    return found


def test_a_plain_method_passes_every_check_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    torch.manual_seed(5)
    before = settings(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = list(examine("plain"))
    assert [(each.check.name, each.status) for each in found] == [(check.name, "passed") for check in CHECKS]
    after = settings(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("method", "check", "reason"),
    [
        ("lazy", "learns", "10.0 % of test images right, chance is 10 %; at least 30 % are expected"),
        ("unseeded", "repeats", "a second run with the same seed is another one: 'net1_loss' is "),
        ("forgetful", "resumes", "something that must survive is not handed to run.track(): 'net1_loss' is "),
        ("short", "resumes", "it left the loop over run.epochs() early, so that it could not be interrupted"),
        ("peeking", "no-leak", "it does something else when the true labels are shuffled: the reported clean_probs"),
        ("threaded", "global-state", "fit() leaves PyTorch's number of threads (1 to 2), NumPy's treatment"),
        ("reseeding", "global-state", "it seeds NumPy's global generator in epoch 0; use run.rng(name) instead"),
        ("seedingfirst", "global-state", "it seeds PyTorch's global generator in the set-up"),
        ("grey", "files", "failed in epoch 0: ValueError: one channel only (odd_code.py, line "),
        ("counting", "missing-class", "failed in epoch 0: ValueError: 3 is not in list (odd_code.py, line "),
        ("dividing", "single-class", "it diverged: net1_loss is inf at epoch 0"),
        ("dropping", "few-images", "AttributeError: 'Dropping' object has no attribute 'last' (odd_code.py, line "),
        ("normalising", "last-image", "Expected more than 1 value per channel when training"),
        ("trusting", "all-wrong", "preset() of 'trusting' (lnlbench-odd 1.0) failed: ValueError: no such rate"),
        ("talkative", "documented", "the README has no table row for these metrics: accuracy"),
        ("optional", "documented", "the README has no table row for these options: more"),
        ("nameless", "documented", "these options have no description: rate"),
        ("unread", "documented", 'lnlbench-unread has no README; name it in pyproject.toml: readme = "README.md"'),
        ("declining", "no-noise", "declining on check-drawn@0.00: needs colour images"),
    ],
)
def test_a_method_that_errs_is_told_how(method: str, check: str, reason: str) -> None:
    before = settings()
    found = outcome(method, check)
    assert settings() == before
    assert found.status == "failed"
    assert reason in found.detail, found.detail
    assert "log.txt" not in found.detail


def test_a_process_of_its_own_shows_what_this_one_hides() -> None:
    repeats, global_state = examine("hasty", only=["repeats", "global-state"])
    assert (repeats.status, global_state.status) == ("failed", "failed")
    assert repeats.detail.startswith("a run in a process of its own is another one: 'net1_loss' is ")
    assert global_state.detail == "importing it changes torch.backends.cudnn.benchmark (False to True)"


def test_a_check_is_left_out_for_a_reason_only() -> None:
    reasons = {"learns": "it needs more data"}
    (found,) = examine("lazy", only=["learns"], skip=reasons)
    assert (found.status, found.detail, found.seconds) == ("skipped", "it needs more data", 0.0)
    found = outcome("exempt", "learns")
    assert (found.status, found.detail) == ("skipped", "it is a constant on purpose")
    with pytest.raises(UsageError, match="check 'learns' is skipped without a reason"):
        list(examine("lazy", only=["learns"], skip={"learns": " "}))
    with pytest.raises(UnknownNameError, match="unknown check 'lerns'; did you mean 'learns'"):
        list(examine("lazy", skip={"lerns": "so"}))
    with pytest.raises(UnknownNameError, match="unknown check 'lerns'"):
        list(examine("misnamed", only=["no-noise"]))
    with pytest.raises(UnknownNameError, match="unknown check 'lerns'"):
        checks("lazy", skip={"lerns": "so"})


def test_names_and_sentences_of_checks() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.meaning.endswith(".")
        assert check.meaning[0].isupper()
        assert find_check(check.name) is check


def test_runs_of_a_lab_are_of_the_given_kinds() -> None:
    lab = Lab("plain")
    try:
        facts = {
            (suite, task): lab.run(lab.cell(suite, task), task).record.noise
            for suite, task in (("check-drawn", "0.00"), ("check-drawn", "1.00"), ("check-own", "one-class"))
        }
        missing = lab.run(lab.cell("check-own", "missing-class"), "missing").arrays("samples.npz")["given_labels"]
        files = lab.run(lab.cell("check-drawn", "files"), "files").record
        sizes = [lab.cell("check-drawn", "0.40", limit=limit).limit_train for limit in (7, 33)]
    finally:
        lab.close()
    assert [fact.realised_rate for fact in facts.values()][:2] == [0.0, 1.0]
    one_class = facts["check-own", "one-class"].confusion
    assert one_class is not None
    assert [sum(column) for column in zip(*one_class, strict=True)] == [200, *[0] * 9]
    assert set(missing.tolist()) == set(range(10)) - {3}
    assert files.data.num_train == 200
    assert sizes == [7, 33]
    assert not lab.root.exists()


# ---------------------------------------------------------------- the command and pytest


def test_the_command_tells_each_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only", "learns,no-noise", "--only", "few-images"]
    assert command_line(["check", "lazy", *only, "--skip", "few-images=it needs more"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "FAILED   learns         10.0 % of test images right, chance is 10 %; at least 30 % are expected",
        "                        A short training on noisy digits is far better than guessing.",
        "ok       no-noise       200 images, 4 epochs",
        "skipped  few-images     it needs more",
        "3 checks: 1 passed, 1 failed, 1 skipped",
    ]
    assert command_line(["check", "plain", "--only", "no-noise", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told.pop("seconds") >= 0
    assert told == {
        "check": "no-noise",
        "meaning": "A training set without a wrong label does no harm.",
        "status": "passed",
        "detail": "200 images, 4 epochs",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "unknown method 'plan'; did you mean 'plain'"),
        (["plain", "--only", "resume"], "unknown check 'resume'; did you mean 'resumes'?"),
        (["plain", "--skip", "resumes"], "--skip 'resumes' is not of the form option=value"),
        (["plain", "--skip", "resumes="], "check 'resumes' is skipped without a reason; say why it does not apply"),
        ([], "which method? `lnlbench list methods` shows what there is"),
    ],
)
def test_a_bad_request_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert command_line(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_lists_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["check", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[check.name, check.meaning] for check in CHECKS]
    assert command_line(["check", "--list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [check.name for check in CHECKS]


def test_the_same_checks_under_pytest() -> None:
    parameters: list[Any] = list(checks("lazy", skip={"few-images": "it needs more"}))
    assert [each.id for each in parameters] == [check.name for check in CHECKS]
    calls: dict[str, Callable[[], None]] = {each.id: each.values[0] for each in parameters}
    calls["no-noise"]()
    with pytest.raises(
        pytest.fail.Exception, match=r"^learns: 10\.0 % of test images right(.|\n)*better than guessing"
    ):
        calls["learns"]()
    with pytest.raises(pytest.skip.Exception, match="it needs more"):
        calls["few-images"]()


def test_parameters_are_made_before_the_method_is_looked_up() -> None:
    parameters: list[Any] = list(checks("a method that need not be there yet"))
    call: Callable[[], None] = parameters[0].values[0]
    with pytest.raises(UnknownNameError, match="unknown method"):
        call()
