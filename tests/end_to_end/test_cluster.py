"""The batch scripts of the documentation, run as they stand by a real Slurm of one node."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
SCRIPTS = ROOT / "docs" / "examples" / "cluster"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
WHAT = ("--method", "ce", "--suite", "digits-sym", "--task", "0.40", "--device", "cpu")
TINY = ("--epochs", "20", "--limit-train", "200")

pytestmark = [
    # It waits for daemons and timers of Slurm: more than a minute on an idle machine.
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="daemons of Slurm are started by root"),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="needs the packages slurm-wlm and munge"),
]


def wait_until(what: Callable[[], Any], why: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


class Cluster:
    """A Slurm of one node, which has as many graphics cards as there are empty files with such a name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.environment: Mapping[str, str] = {**kept, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}

    def configure(self) -> None:
        """Write the files of the daemons."""
        host = socket.gethostname().partition(".")[0]
        with ExitStack() as stack:
            ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
        for name in ("state", "spool"):
            (self._folder / name).mkdir()
        for number in range(4):
            (self._folder / f"gpu{number}").touch()
        (self._folder / "key").write_bytes(secrets.token_bytes(64))
        (self._folder / "key").chmod(0o400)
        (self._folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self._folder / "gres.conf").write_text(f"Name=gpu File={self._folder}/gpu[0-3]\n")
        (self._folder / "slurm.conf").write_text(
            f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={self._folder}/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={self._folder}/state
SlurmdSpoolDir={self._folder}/spool
SlurmctldPidFile={self._folder}/slurmctld.pid
SlurmdPidFile={self._folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 Gres=gpu:4
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE
"""
        )

    def daemons(self) -> list[list[str]]:
        """How to start what the cluster consists of, in this order."""
        munge = ["--force", "--foreground", *(f"--{name}={self._folder / name}" for name in ("pid-file", "seed-file"))]
        conf = ["-D", "-f", str(self._folder / "slurm.conf")]
        files = [f"--key-file={self._folder / 'key'}", f"--socket={self._folder / 'munge'}"]
        return [["munged", *munge, *files], ["slurmctld", *conf], ["slurmd", *conf]]

    def logs(self) -> str:
        """What the daemons said."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self._folder.glob("*.out"))

    def do(self, *command: str | Path) -> str:
        """Run a command of Slurm."""
        done = subprocess.run([*map(str, command)], env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *command: str | Path) -> str:
        """Submit a script and return the number of the job."""
        return self.do("sbatch", "--parsable", *command)

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(word.split("=", 1) for word in self.do("scontrol", "show", "job", job).split() if "=" in word)

    def start_soon(self, job: str) -> None:
        """Spare a requeued job the two minutes that Slurm has it wait."""
        wait_until(lambda: self.facts(job)["JobState"] == "PENDING", lambda: self.facts(job))
        # The node refuses a job that starts in the second in which its first life was ended.
        self.do("scontrol", "update", f"jobid={job}", "StartTime=now+3")

    def left_over(self) -> list[psutil.Process]:
        """Processes of the cluster: its daemons, and jobs with all they started."""
        return [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get("SLURM_CONF") == self.environment["SLURM_CONF"]
        ]


@pytest.fixture
def cluster(workplace: Path) -> Iterator[Cluster]:
    # Sockets have short names, so the folder does not lie where those of tests usually do.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        made = Cluster(Path(name))
        made.configure()
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command in made.daemons():
                with (Path(name) / f"{command[0]}.out").open("wb") as out:
                    running.append(
                        subprocess.Popen(
                            command, env=made.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                        )
                    )
                if command[0] == "munged":
                    wait_until((Path(name) / "munge").exists, made.logs)
            wait_until(lambda: all_up(made, running), made.logs)
            yield made
            made.do("scancel", "--user=root")
            wait_until(lambda: not made.do("squeue", "--noheader"), made.logs)
        finally:
            for daemon in reversed(running):
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        wait_until(lambda: not made.left_over(), made.left_over)


def all_up(cluster: Cluster, running: list[subprocess.Popen[bytes]]) -> bool:
    assert not any(daemon.poll() for daemon in running), cluster.logs()
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=cluster.environment, capture_output=True, text=True
    )
    return asked.stdout.strip() == "idle"


def test_an_array_that_is_interrupted_ends_as_if_it_had_not_been(
    cluster: Cluster, cli: Callable[..., Any], workplace: Path
) -> None:
    cells = workplace / "runs" / "digits-sym" / "0.40" / "ce"

    def epochs(seed: int) -> int:
        return sum(len(log.read_text().splitlines()) for log in cells.glob(f"seed{seed}-*/metrics.jsonl"))

    def said() -> str:
        logs = [f"{log.name}: {log.read_text()}" for log in workplace.glob("lnlbench-*.log")]
        return "\n".join([*logs, cluster.logs(), cluster.do("scontrol", "show", "job")])

    array = cluster.submit("--array=1-2", SCRIPTS / "array.sbatch", *WHAT, *TINY)
    first, second = f"{array}_1", f"{array}_2"
    assert cluster.facts(first)["Requeue"] == "1"
    # One job gets the signal that announces the end of its time, to the script alone; the other is cancelled.
    interruptions = {1: ("--batch", "--signal=USR1", first), 2: (second,)}

    def interrupted() -> bool:
        for seed in [seed for seed in interruptions if epochs(seed) >= 2]:
            cluster.do("scancel", *interruptions.pop(seed))
        return not interruptions

    wait_until(interrupted, said)
    cluster.start_soon(first)
    wait_until(lambda: cluster.facts(second)["JobState"] == "CANCELLED", said)
    again = cluster.submit("--array=2", SCRIPTS / "array.sbatch", *WHAT, *TINY)
    collect = cluster.submit(f"--dependency=afterany:{array}:{again}", SCRIPTS / "collect.sbatch")
    wait_until(lambda: not cluster.do("squeue", "--noheader"), said)

    facts = [cluster.facts(job) for job in (first, f"{again}_2", collect)]
    assert [(each["JobState"], each["ExitCode"]) for each in facts] == [("COMPLETED", "0:0")] * 3, said()
    assert [each["Restarts"] for each in facts] == ["1", "0", "0"]
    assert facts[2]["StartTime"] >= max(each["EndTime"] for each in facts[:2])
    assert cluster.facts(second)["JobState"] == "CANCELLED"
    assert said().count("resumed at epoch") == 2

    (row,) = csv.DictReader((workplace / "leaderboards" / "measured" / "digits-sym.csv").read_text().splitlines())
    assert (row["method"], row["n"], row["seeds"]) == ("ce", "2", "1 2")
    assert (workplace / "site" / "index.html").exists()

    apart = ("--runs", "apart/runs", "--leaderboards", "apart/leaderboards")
    assert cli("run", *WHAT, *TINY, "--seeds", "1,2", "--executor", "inline", *apart).code == 0
    folders = sorted(cells.iterdir())
    assert len(folders) == 2
    for cell in folders:
        record = json.loads((cell / "result.json").read_text())
        assert (record["status"], record["resumed"], record["resume"]) == ("finished", 1, "exact")
        twin = workplace / "apart" / cell.relative_to(workplace)
        for name in ("predictions.npz", "samples.npz"):
            assert (cell / name).read_bytes() == (twin / name).read_bytes()
