r"""Evidence against a limit on a probability, valid at every moment.

For k successes in n trials and the hypothesis p <= q, the e-process is the likelihood ratio of a Beta(a, b)
mixture truncated to (q, 1] against q:

    E = integral over (q, 1] of (p/q)^k ((1-p)/(1-q))^(n-k) dBeta(p; a, b) / P(Beta(a, b) > q)
      = B(a+k, b+n-k) / B(a, b) * I^c_q(a+k, b+n-k) / I^c_q(a, b) * q^-k (1-q)^-(n-k)

with I^c the upper tail of the regularised incomplete beta function. Under any p <= q, changing with time or not,
it is a supermartingale with mean at most 1, so P(E ever reaches 1/alpha) <= alpha (Ville), however often one looks.
a = b = 1/2 is Jeffreys' prior. Everything is computed as logarithms.

Reference: Ramdas, Grünwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference (2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaln

MAX_LOG_E = 690.0  # exp of more overflows; reported e-values stop here


def log_evidence_above(
    successes: ArrayLike, trials: ArrayLike, limit: ArrayLike, *, a: float = 0.5, b: float = 0.5
) -> NDArray[np.float64]:
    """Log e-value against "p <= limit", elementwise; -inf where there is none or none can be computed.

    A limit outside (0, 1) is not tested: -inf.
    """
    k, n, q = np.broadcast_arrays(
        np.asarray(successes, np.float64), np.asarray(trials, np.float64), np.asarray(limit, np.float64)
    )
    tested = (q > 0) & (q < 1)
    q = np.where(tested, q, 0.5)
    # A tail that underflows becomes -inf: any finite floor in its place would be evidence that is not there.
    with np.errstate(divide="ignore", under="ignore"):
        tail = np.log(betaincc(a + k, b + n - k, q))
        prior = np.log(betaincc(a, b, q))
    log_e = betaln(a + k, b + n - k) - betaln(a, b) + tail - prior - k * np.log(q) - (n - k) * np.log1p(-q)
    result: NDArray[np.float64] = np.where(tested & np.isfinite(prior), log_e, -np.inf)
    return result


def log_evidence_below(
    successes: ArrayLike, trials: ArrayLike, limit: ArrayLike, *, a: float = 0.5, b: float = 0.5
) -> NDArray[np.float64]:
    """Log e-value against "p >= limit": `log_evidence_above` of the failures. Here a and b are of the failures."""
    failures = np.asarray(trials, np.float64) - np.asarray(successes, np.float64)
    return log_evidence_above(failures, trials, 1.0 - np.asarray(limit, np.float64), a=a, b=b)


def log_sum(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Logarithm of the sum of exponentials along an axis; -inf where all are -inf."""
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", under="ignore"):
        total: NDArray[np.float64] = np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis=axis)
    return total


def e_value(log_e: float) -> float:
    """The e-value of a logarithm, kept finite."""
    return float(np.exp(min(log_e, MAX_LOG_E)))
