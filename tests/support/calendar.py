"""Whole processes on another day, by libfaketime."""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["days_later"]


def days_later(days: int) -> list[str]:
    """Words before a command that shall believe that so many days have passed; skips where that cannot be had."""
    if shutil.which("faketime") is None:
        if os.environ.get("CI"):
            pytest.fail("faketime is missing; CI must have it")
        pytest.skip("whole processes on another day need faketime")
    return ["faketime", "-f", f"+{days}d"]
