"""Saved calibrators: what `to_dict` wrote, read back with every field checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossbook import calibrators, checks
from lossbook.calibrators._base import Calibrator
from lossbook.calibrators._inputs import check_choice, read_fields

KINDS = (
    "TemperatureScaling",
    "VectorScaling",
    "MatrixScaling",
    "DirichletCalibration",
    "PlattScaling",
    "BetaCalibration",
    "IsotonicCalibration",
    "HistogramBinning",
    "CorrectnessAwareScaling",
)


def from_dict(d: Any) -> Calibrator:
    """The fitted calibrator that `to_dict` wrote, from the JSON types it holds.

    Nothing in `d` is executed or imported by name: `kind` is one of nine words. The parameters of `TemperatureScaling`
    may be `{}`, which is its default objective.

    Raises:
        ValueError: an unknown kind, a missing or unknown field, a wrong length or type, a number that is NaN, infinite
            or out of its range; the sentence names the field.
    """
    d = read_fields("calibrator", d, {"kind", "num_classes", "parameters", "fitted"})
    check_choice("kind", d["kind"], KINDS)
    num_classes = checks.whole("num_classes", d["num_classes"], 2)
    kind = getattr(calibrators, d["kind"])
    parameters = d["parameters"]
    # A temperature does the same whatever objective chose it; other parameters change what a map does.
    if not (kind is calibrators.TemperatureScaling and parameters == {}):
        read_fields("parameters", parameters, set(kind().get_params()))
    calibrator = kind(**parameters)
    calibrator._check_parameters()
    calibrator._set_state(d["fitted"], num_classes)
    calibrator.classes_ = np.arange(num_classes)
    calibrator.n_features_in_ = num_classes
    return calibrator
