"""Correctness-aware scaling: a temperature for each row, learned from how predictions change under transformations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional

from lossbook import checks, losses
from lossbook.calibrators._base import Calibrator
from lossbook.calibrators._inputs import (
    check_choice,
    check_logits,
    read_fields,
    read_matrix,
    read_number,
    read_vector,
    to_numpy,
)

_LOW, _HIGH = 0.1, 10.0
OBJECTIVES = ("ca", "ce", "mse")
_OFFSETS = {"softplus": math.log(math.expm1(1 - _LOW)), "clamp": 1.0}  # each makes T = 1


class CorrectnessAwareScaling(Calibrator):
    """softmax(z / T(φ)), with a temperature for each row from how the predictions of transformed copies of it look.

        φ  the probabilities of each of the M copies at the row's top_k classes, largest first: M · top_k numbers
        T = activation(v · relu(U φ + u) + v₀)

    A prediction that a small rotation or a loss of colour changes is likelier wrong. Decisions are those of the logits,
    whatever T is. The objective is `lossbook.losses.correctness_aware`: squared distance of the confidence to whether
    the prediction is right. It is not convex; Adam runs over all rows at once, from T ≈ 1.

    Args:
        hidden: width of the hidden layer, ≥ 1.
        top_k: classes that each copy is read at, ≥ 1; K where there are fewer.
        balanced: weigh right and wrong rows alike in the correctness-aware objective, as the paper's code does.
        steps: of Adam, ≥ 1.
        lr: learning rate > 0.
        loss: "ca" for the correctness-aware objective; for comparison "ce", cross-entropy, and "mse", the Brier score.
        activation: "softplus" for T = 0.1 + log(1 + e^·); "clamp" into [0.1, 10] is the paper's, without a gradient
            outside.
        random_state: seed ≥ 0 of the first weights.

    Attributes:
        hidden_weight_, hidden_bias_: U (hidden, M · top_k) and u.
        output_weight_, output_bias_: v (hidden,) and v₀.
        n_copies_: M.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Liu, Wang, Zou, Zou, Zheng 2024 (arXiv 2404.13016), which has M = 3 copies (rotation, grey, colour jitter),
    top_k = 4, Adam at 1e-4 for 10 epochs of batches of 1000.
    """

    hidden_weight_: np.ndarray
    hidden_bias_: np.ndarray
    output_weight_: np.ndarray
    output_bias_: float
    n_copies_: int

    def __init__(
        self,
        hidden: int = 5,
        top_k: int = 4,
        balanced: bool = True,
        steps: int = 200,
        lr: float = 1e-2,
        loss: str = "ca",
        activation: str = "softplus",
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.top_k = top_k
        self.balanced = balanced
        self.steps = steps
        self.lr = lr
        self.loss = loss
        self.activation = activation
        self.random_state = random_state

    def fit(self, logits: Any, y: Any, *, transformed: Any = None) -> CorrectnessAwareScaling:
        """Learn the temperature's network.

        Args:
            logits: (N, K) of held-out data, on which some predictions are wrong.
            y: (N,) integer labels in [0, K), of at least two classes.
            transformed: the network's logits (N, K) for each of M ≥ 1 transformed copies of the data, as a sequence or
                an (M, N, K) array. None: the logits themselves are the only copy.

        Raises:
            ValueError: as in the other calibrators, or copies of another shape than the logits.
        """
        z, labels = self._begin(logits, y)
        copies = _copies(transformed, z)
        self.n_copies_ = len(copies)
        self._fit(z, labels, _features(z, copies, self.top_k))
        self.classes_ = np.arange(self.n_features_in_)
        return self

    def _fit(self, z: np.ndarray, y: np.ndarray, phi: np.ndarray) -> None:  # type: ignore[override]
        with torch.inference_mode(False), torch.enable_grad():
            logits, target, features = torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(phi)
            parameters = self._first_parameters(phi.shape[1])
            optimizer = torch.optim.Adam(parameters, lr=self.lr)
            for _ in range(self.steps):
                optimizer.zero_grad()
                self._objective(logits, target, _temperature(features, parameters, self.activation)).backward()
                optimizer.step()
        weight, bias, output, offset = (parameter.detach().numpy() for parameter in parameters)
        self.hidden_weight_, self.hidden_bias_ = weight, bias
        self.output_weight_, self.output_bias_ = output, float(offset)

    def _first_parameters(self, num_features: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.random_state)

        def uniform(*shape: int) -> Tensor:
            # torch's own start of a linear layer
            return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) / math.sqrt(shape[-1])

        weight, output = uniform(self.hidden, num_features), uniform(self.hidden)
        bias = torch.zeros(self.hidden, dtype=torch.float64)
        offset = torch.tensor(_OFFSETS[self.activation], dtype=torch.float64)
        return [parameter.requires_grad_() for parameter in (weight, bias, output, offset)]

    def _objective(self, logits: Tensor, target: Tensor, temperature: Tensor) -> Tensor:
        if self.loss == "ca":
            return losses.correctness_aware(logits, target, temperature=temperature, balanced=self.balanced)
        scaled = logits / temperature[:, None]
        return losses.cross_entropy(scaled, target) if self.loss == "ce" else losses.brier(scaled, target)

    def predict_proba(self, logits: Any, *, transformed: Any = None) -> np.ndarray:
        """(N, K) float64 probabilities softmax(z / T).

        `transformed` holds as many copies as in fit, made by the same transformations in the same order.

        Raises:
            ValueError: wrong shape, another number of columns or copies than fitted, NaN or infinity.
        """
        temperature = self.temperatures(logits, transformed=transformed)
        return softmax(check_logits(self, logits, reset=False) / temperature[:, None], axis=1)

    def temperatures(self, logits: Any, *, transformed: Any = None) -> np.ndarray:
        """(N,) the temperature T of each row. Arguments and errors as in `predict_proba`."""
        check_is_fitted(self, "classes_")
        z = check_logits(self, logits, reset=False)
        copies = _copies(transformed, z)
        if len(copies) != self.n_copies_:
            raise ValueError(f"transformed holds {len(copies)} copies, but the fit had {self.n_copies_}")
        parameters = (self.hidden_weight_, self.hidden_bias_, self.output_weight_, np.array(self.output_bias_))
        phi = torch.from_numpy(_features(z, copies, self.top_k))
        return _temperature(phi, [torch.from_numpy(p) for p in parameters], self.activation).numpy()

    def predict(self, logits: Any) -> np.ndarray:
        """(N,) the label of the largest logit, whatever the copies are. Raises as `predict_proba`."""
        check_is_fitted(self, "classes_")
        return self.classes_[check_logits(self, logits, reset=False).argmax(axis=1)]

    def _probabilities(self, z: np.ndarray) -> np.ndarray:
        return self.predict_proba(z)

    def _check_parameters(self) -> None:
        for name in ("hidden", "top_k", "steps"):
            checks.whole(name, getattr(self, name), 1)
        checks.parameter("lr", self.lr, 0, open_low=True)
        check_choice("loss", self.loss, OBJECTIVES)
        check_choice("activation", self.activation, tuple(_OFFSETS))
        checks.whole("random_state", self.random_state, 0, 2**63 - 1)
        if not isinstance(self.balanced, bool):
            raise ValueError(f"balanced must be True or False, but is {self.balanced!r}")

    def _state(self) -> dict[str, Any]:
        return {
            "n_copies": self.n_copies_,
            "hidden_weight": self.hidden_weight_.tolist(),
            "hidden_bias": self.hidden_bias_.tolist(),
            "output_weight": self.output_weight_.tolist(),
            "output_bias": self.output_bias_,
        }

    def _set_state(self, state: Any, num_classes: int) -> None:
        fields = {"n_copies", "hidden_weight", "hidden_bias", "output_weight", "output_bias"}
        state = read_fields("fitted", state, fields)
        self.n_copies_ = checks.whole("fitted.n_copies", state["n_copies"], 1)
        num_features = self.n_copies_ * min(self.top_k, num_classes)
        self.hidden_weight_ = read_matrix("fitted.hidden_weight", state["hidden_weight"], self.hidden, num_features)
        self.hidden_bias_ = read_vector("fitted.hidden_bias", state["hidden_bias"], self.hidden)
        self.output_weight_ = read_vector("fitted.output_weight", state["output_weight"], self.hidden)
        self.output_bias_ = read_number("fitted.output_bias", state["output_bias"])


def _copies(transformed: Any, z: np.ndarray) -> list[np.ndarray]:
    """The M arrays (N, K) of copies, checked against the logits z."""
    if transformed is None:
        return [z]
    copies = [np.asarray(to_numpy(copy), dtype=np.float64) for copy in transformed]
    if not copies:
        raise ValueError("transformed holds no copy")
    for m, copy in enumerate(copies):
        if copy.shape != z.shape:
            raise ValueError(f"transformed[{m}] must have the shape {z.shape} of the logits, but has {copy.shape}")
        if not np.isfinite(copy).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(copy))[0])
            raise ValueError(f"transformed[{m}][{row}, {column}] is {copy[row, column]}, not a finite number")
    return copies


def _features(z: np.ndarray, copies: list[np.ndarray], top_k: int) -> np.ndarray:
    """(N, M · top_k) the copies' probabilities at the top classes of z."""
    top = np.argsort(-z, axis=1, kind="stable")[:, :top_k]
    return np.concatenate([np.take_along_axis(softmax(copy, axis=1), top, axis=1) for copy in copies], axis=1)


def _temperature(phi: Tensor, parameters: Sequence[Tensor], activation: str) -> Tensor:
    weight, bias, output, offset = parameters
    score = torch.relu(phi @ weight.T + bias) @ output + offset
    return _LOW + functional.softplus(score) if activation == "softplus" else score.clamp(_LOW, _HIGH)
