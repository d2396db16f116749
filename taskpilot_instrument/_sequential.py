"""Intervals and p-values that hold however often one looks: the normal mixture of sequential analysis.

A fixed-sample interval is right with the promised probability at one look that was planned ahead. These are right at
all looks at once, so that one may look daily and stop when the answer is clear. An estimate with standard error ``s``
after ``n`` observations has the interval

    estimate ± s × sqrt((n + r) / n × ln((n + r) / (r × alpha²)))

which is the two-sided normal mixture boundary of Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 49), with estimated variances: an asymptotic
confidence sequence in the sense of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, "Time-uniform central limit
theory and asymptotic confidence sequences" (arXiv 2103.06476). The p-value is its inverse, the mixture sequential
probability ratio test of Johari, Koomen, Pekelis and Walsh 2022, "Always valid inference" (Operations Research 70).
Being asymptotic, both need a beginning without verdicts (Bibaut, Kallus and Lindon 2024, "Near-optimal non-parametric
sequential tests and confidence sequences with possibly dependent observations").
"""

import math
from typing import Final

#: Observations, of both sides together, at which the interval is as narrow as it can be; it holds at any number.
TUNED_FOR: Final = 2_000


def _mixture(alpha: float) -> float:
    """Return ``r``, the prior observations of the mixture, for intervals that are narrowest at :data:`TUNED_FOR`.

    The closed form of Waudby-Smith et al. 2024, where ``r`` is one over the square of their ``rho``.
    """
    doubled = -2 * math.log(alpha)
    return TUNED_FOR / (doubled + math.log1p(doubled))


def critical(n: float, alpha: float) -> float:
    """Return the half-width of the interval in standard errors.

    :param n: observations behind the estimate.
    :param alpha: how likely it may be that any interval, at any look, misses the truth.
    """
    r = _mixture(alpha)
    return math.sqrt((n + r) / n * (math.log((n + r) / r) - 2 * math.log(alpha)))


def p_value(z: float, n: float, alpha: float) -> float:
    """Return the p-value of a difference from zero that holds at any look.

    It is below ``alpha`` exactly where the interval leaves zero out.

    :param z: the estimate in standard errors.
    :param n: observations behind it.
    :param alpha: the level that the mixture is tuned for.
    """
    r = _mixture(alpha)
    log_ratio = z * z / 2 * n / (n + r) - math.log((n + r) / r) / 2
    return math.exp(-max(0.0, log_ratio))
