"""Gradient-boosted trees by XGBoost."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from outrider.runtime.errors import BadModelError, BadRecipeError
from outrider.trainer.models.base import ModelKind, Sample, Scores, Trained
from outrider.trainer.progress import Progress


class XGBoost(ModelKind, frozen=True, kw_only=True):
    """`params` go to `xgboost.train` as they stand; objective, metric and threads are chosen here.

    Training ends after `rounds` rounds, or once the log loss on the validation rows has not fallen for
    `early_stopping` rounds; the rounds up to the best one are kept.
    """

    rounds: Annotated[int, Meta(ge=1, le=100_000)] = 300
    early_stopping: Annotated[int, Meta(ge=1)] = 20
    threads: Annotated[int, Meta(ge=1, le=1024)] = 2
    seed: Annotated[int, Meta(ge=0)] = 0
    params: dict[str, float | int | str | bool] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        reserved = sorted(_RESERVED & set(self.params))
        if reserved:
            raise ValueError(f"params must not hold {reserved[0]!r}, which follows from the recipe")

    def framework(self) -> str:
        """XGBoost."""
        return "xgboost"

    def file_name(self) -> str:
        """XGBoost's binary JSON."""
        return "model.ubj"

    def train(self, train: Sample, valid: Sample, names: tuple[str, ...], classes: int, progress: Progress) -> Trained:
        """Boost (see `ModelKind.train`). Raises BadRecipeError where XGBoost refuses the parameters."""
        import xgboost

        binary = classes == 2
        params: dict[str, Any] = {
            "tree_method": "hist",
            **self.params,
            "objective": "binary:logistic" if binary else "multi:softprob",
            "eval_metric": "logloss" if binary else "mlogloss",
            "nthread": self.threads,
            "seed": self.seed,
            "verbosity": 0,
            **({} if binary else {"num_class": classes}),
        }
        try:
            booster = xgboost.train(
                params,
                _matrix(train, names),
                num_boost_round=self.rounds,
                evals=[(_matrix(valid, names), "valid")],
                callbacks=[_make_reporter(progress), _make_stopper(self.early_stopping)],
                verbose_eval=False,
            )
        except xgboost.core.XGBoostError as e:
            lines = [line for line in str(e).splitlines() if line.strip() and "Stack trace" not in line]
            raise BadRecipeError(f"XGBoost refuses: {lines[0] if lines else e}") from e
        return Boosted(booster)

    def load(self, data: bytes) -> Trained:
        """Read a booster (see `ModelKind.load`)."""
        import xgboost

        try:
            return Boosted(xgboost.Booster({"nthread": self.threads}, model_file=bytearray(data)))
        except xgboost.core.XGBoostError as e:
            raise BadModelError(f"not an XGBoost model: {str(e).splitlines()[0]}") from e


_RESERVED = frozenset({"objective", "eval_metric", "nthread", "n_jobs", "seed", "num_class", "verbosity"})


class Boosted:
    """A trained booster."""

    def __init__(self, booster: Any) -> None:
        self.booster = booster

    @property
    def rounds(self) -> int:
        """Boosting rounds."""
        return int(self.booster.num_boosted_rounds())

    def scores(self, features: NDArray[np.float32]) -> Scores:
        """Probabilities (see `Trained.scores`)."""
        return np.asarray(self.booster.inplace_predict(features, validate_features=False), dtype=np.float32)

    def serialise(self) -> bytes:
        """UBJSON."""
        return bytes(self.booster.save_raw("ubj"))


def _matrix(sample: Sample, names: tuple[str, ...]) -> Any:
    import xgboost

    return xgboost.DMatrix(sample.features, label=sample.labels, weight=sample.weights, feature_names=list(names))


def _make_stopper(rounds: int) -> Any:
    import xgboost

    return xgboost.callback.EarlyStopping(rounds=rounds, save_best=True)


def _make_reporter(progress: Progress) -> Any:
    """A callback that tells each tenth round."""
    import xgboost

    class Reporter(xgboost.callback.TrainingCallback):
        """Tells the validation loss."""

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            """Never stops the training."""
            if epoch % 10 == 0:
                ((_, values),) = evals_log["valid"].items()
                progress("train", f"round {epoch + 1}, {model.num_features()} features, log loss {values[-1]:.4f}")
            return False

    return Reporter()
