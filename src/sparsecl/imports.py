"""Importing without optional packages that would make every job wait (used by the notebooks' start)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(package: str, before: str = "") -> Iterator[None]:
    """Let `package` look not installed inside the block, unless it is imported already; afterwards it is there as before.

    `before` names one that asks for `package` only once, at its own start: where it has started already, nothing is hidden.
    """
    if package in sys.modules or before in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]
