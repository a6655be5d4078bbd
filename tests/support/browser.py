"""Opens a page in a real browser that reaches no network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def body_in_browser(page: Path, profile: Path) -> str:
    """The page's body once its scripts have run; fails on any message in the console.

    Args:
        page: an HTML file.
        profile: folder for what the browser writes.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the report was not opened in a browser")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--enable-logging=stderr", *quiet),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"),
            *("--virtual-time-budget=8000", "--window-size=1400,4000", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert messages == []
    return done.stdout[done.stdout.rindex("<body") :]
