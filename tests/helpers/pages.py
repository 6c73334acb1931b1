"""Pages of a report: what a reader sees, and what a browser makes of them."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


def words_of(page: str) -> str:
    """Return what a reader sees: tags dropped, entities resolved, white space folded."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def dump_dom(page: Path, profile: Path, width: int = 1280) -> str:
    """Return the DOM of a page after headless Chromium has run it."""
    assert CHROMIUM
    command = [
        CHROMIUM,
        *CHROMIUM_FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        "--virtual-time-budget=4000",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
