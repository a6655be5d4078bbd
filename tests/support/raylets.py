"""Raylets of Ray's own test cluster, without what no test asks of them: each process takes a second to start."""

from __future__ import annotations

from typing import Any

LEAN_HEAD: dict[str, Any] = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""For the node that begins a cluster: nobody sees its logs from elsewhere, and it does not grow."""
