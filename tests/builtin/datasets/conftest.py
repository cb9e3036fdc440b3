"""A data folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnlbench.store import LocalDataStore


@pytest.fixture
def store(tmp_path: Path) -> LocalDataStore:
    """An empty data folder without a connection."""
    return LocalDataStore(tmp_path / "data", offline=True)
