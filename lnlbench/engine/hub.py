"""The Hugging Face hub, which libraries fetch weights of backbones and encoders from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
"""While it is 1, libraries that fetch weights from the hub stay off the network."""


@contextmanager
def offline_if(offline: bool) -> Iterator[None]:
    """Keep libraries off the network meanwhile, if so told; leave them as they are otherwise."""
    if not offline:
        yield
        return
    before = os.environ.get(OFFLINE_VARIABLE)
    os.environ[OFFLINE_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OFFLINE_VARIABLE]
        else:
            os.environ[OFFLINE_VARIABLE] = before
