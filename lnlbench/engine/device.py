"""Which device, which precision, and what bit-exactness depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Literal

import torch

import lnlbench
from lnlbench.errors import UsageError
from lnlbench.records import Environment

_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "timm")


def resolve_devices(name: str) -> tuple[str, ...]:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``cuda:0,cuda:1`` into device names.

    Raises:
        UsageError: No such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = tuple(f"cuda:{number}" for number in range(count))
    if name == "auto":
        return available or ("cpu",)
    if name == "cuda" and available:
        return available
    devices = tuple(part.strip() for part in name.split(","))
    for device in devices:
        if device != "cpu" and device not in available:
            here = ", ".join(("auto", "cpu", *available))
            raise UsageError(f"device {device!r} is not available here; available: {here}")
    return devices


def has_fast_bf16(device_type: str) -> bool:
    """Whether the hardware computes in bf16 natively."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def resolve_precision(requested: str, device_type: str) -> Literal["float32", "bf16"]:
    """Turn ``auto`` into ``bf16`` where that is fast, else ``float32``.

    Raises:
        UsageError: The precision is unknown.
    """
    if requested == "auto":
        return "bf16" if has_fast_bf16(device_type) else "float32"
    if requested not in ("float32", "bf16"):
        raise UsageError(f"unknown precision {requested!r}; known: auto, float32, bf16")
    return "float32" if requested == "float32" else "bf16"


def set_determinism(deterministic: bool, compiled: bool) -> None:
    """Choose between deterministic kernels and the fastest ones. Call before CUDA starts.

    Args:
        deterministic: Whether a run must repeat bit for bit.
        compiled: Whether networks will be compiled.
    """
    # cuBLAS reads this variable once, when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if compiled:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    else:
        # The same switch, short of the compiler's own, whose import takes seconds in every worker.
        torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic


def describe_environment(device: torch.device, threads: int) -> Environment:
    """Collect what a reader of the result may want to know."""
    return Environment(
        lnlbench=lnlbench.__version__,
        python=platform.python_version(),
        versions={name: _version(name) for name in _LIBRARIES},
        commit=_commit(),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        device_type=device.type,
        threads=threads,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which in a container is fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the commit of the working copy the core runs from, with '+' if modified; empty for an installed wheel."""
    root = Path(lnlbench.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "lnlbench", "plugins"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip()[:12] + ("+" if status.stdout.strip() else "")
