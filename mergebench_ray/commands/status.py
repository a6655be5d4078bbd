"""How a run is getting on, for people."""

from __future__ import annotations

from datetime import UTC, datetime

from mergebench_ray.runs.spending import amount
from mergebench_ray.runs.status import RunStatus


def status_lines(status: RunStatus) -> list[str]:
    """What `status` prints."""
    done = sum(status.candidates.values())
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in sorted(status.candidates.items()))
    # Runs of earlier versions do not say when they were worked on.
    minutes = "" if status.since is None else f"{amount(status.worked.minutes)} minutes, "
    tried = f"{done}" if status.most is None else f"{done} of {status.most}"
    return [
        f"{status.name}: {status.state}{_since(status)}",
        f"candidates: {tried}{f' ({kinds})' if kinds else ''}",
        *([f"best so far: {status.best}"] if status.best else []),
        *([f"on test: {status.on_test}"] if status.on_test else []),
        f"spent: {minutes}{amount(status.tokens)} tokens",
        status.next_step,
    ]


def _since(status: RunStatus) -> str:
    if status.since is None:
        return ""
    began = f", begun {status.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if status.last_row is None or status.state != "under way":
        return began
    minutes = (datetime.now(UTC) - status.last_row).total_seconds() / 60
    return f"{began}, last model scored {amount(max(0.0, minutes))} minutes ago"
