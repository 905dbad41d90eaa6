"""What all calibrators are: scikit-learn classifiers on logits that can be saved as plain JSON types."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from lossbook.calibrators._inputs import check_labels, check_logits


class Calibrator(ClassifierMixin, BaseEstimator, ABC):
    """fit(logits, y), predict_proba(logits), predict(logits), to_dict().

    A subclass writes what is learned (`_fit`), how it is applied (`_probabilities`), and how it is saved and read
    (`_state`, `_set_state`); `_check_parameters` refuses bad arguments of the constructor.
    """

    classes_: np.ndarray
    n_features_in_: int

    def fit(self, logits: Any, y: Any) -> Any:
        """Learn the calibration map.

        Args:
            logits: (N, K) array or tensor of finite numbers, K ≥ 2. Use data that the network was not trained on.
                Probabilities P enter as log P; scores s of two classes as the columns (0, s).
            y: (N,) integer labels in [0, K), of at least two classes.

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, a single class, a bad parameter.
        """
        self._fit(*self._begin(logits, y))
        self.classes_ = np.arange(self.n_features_in_)
        return self

    def predict_proba(self, logits: Any) -> np.ndarray:
        """(N, K) float64 probabilities; rows sum to one.

        Raises:
            ValueError: wrong shape, another number of columns than fitted, NaN or infinity.
        """
        check_is_fitted(self, "classes_")
        return self._probabilities(check_logits(self, logits, reset=False))

    def predict(self, logits: Any) -> np.ndarray:
        """(N,) the label of the largest probability. Raises as `predict_proba`."""
        check_is_fitted(self, "classes_")
        return self.classes_[self.predict_proba(logits).argmax(axis=1)]

    def to_dict(self) -> dict[str, Any]:
        """The fitted calibrator in JSON's types, which `lossbook.calibrators.from_dict` reads.

        `{"kind": class name, "num_classes": K, "parameters": {…}, "fitted": {…}}`.
        """
        check_is_fitted(self, "classes_")
        return {
            "kind": type(self).__name__,
            "num_classes": len(self.classes_),
            "parameters": {
                name: getattr(value, "item", lambda v=value: v)() for name, value in self.get_params().items()
            },
            "fitted": self._state(),
        }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # It starts from the decisions of the logits; on features that are no logits it classifies poorly.
        tags.classifier_tags.poor_score = True
        return tags

    def _begin(self, logits: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """The checked logits and labels, with which a fit begins."""
        self._check_parameters()
        z = check_logits(self, logits, reset=True)
        return z, check_labels(y, *z.shape)

    def _check_parameters(self) -> None:
        pass

    @abstractmethod
    def _fit(self, z: np.ndarray, y: np.ndarray) -> None: ...

    @abstractmethod
    def _probabilities(self, z: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _set_state(self, state: Any, num_classes: int) -> None: ...
