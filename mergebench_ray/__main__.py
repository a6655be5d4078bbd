"""The command `mergebench-ray`, and `python -m mergebench_ray`: signals first, then everything that takes time."""

from __future__ import annotations

from typing import NoReturn

from mergebench_ray import interrupts


def main() -> NoReturn:
    """Run the command line."""
    interrupts.install()
    from mergebench_ray.cli import main as run

    run()


if __name__ == "__main__":
    main()
