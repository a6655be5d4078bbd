"""Who calibrates a bank's methods, and what a recipe says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mergebench_ray.config import CalibrationRecord
from mergebench_ray.errors import InputError
from mergebench_ray.methods import Calibrated, CalibrationRequest, get_method, parse_parameters


class Calibrator(Protocol):
    """Makes statistics of the bank's specialists from their calibration data, or finds them on disk."""

    def record(self, method: str, samples: int) -> CalibrationRecord:
        """What data `method` would be calibrated on.

        Raises:
            InputError: a specialist without data.
        """

    def statistics(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """The files of a statistic."""


def calibration_record(
    calibrator: Calibrator | None, method: str, parameters: Mapping[str, Any]
) -> CalibrationRecord | None:
    """What data a merge is calibrated on; None where it takes none.

    Raises:
        InputError: there is none, or a wrong hyper-parameter.
    """
    samples = get_method(method).calibration_samples(parse_parameters(method, parameters))
    return require_calibrator(calibrator, method).record(method, samples) if samples else None


def require_calibrator(calibrator: Calibrator | None, method: str) -> Calibrator:
    """The calibrator.

    Raises:
        InputError: there is none.
    """
    if calibrator is None:
        raise InputError(f"{method} takes calibration data: say where each specialist's is")
    return calibrator
