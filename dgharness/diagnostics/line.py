"""Lines and parabolas through accuracies, on the raw and on the probit scale.

Phi is the distribution function of the standard normal; the probit scale shows Phi^-1 of an accuracy. On it,
accuracy out of distribution is often a straight line in that in distribution.

Paper: Miller et al., Accuracy on the Line, ICML 2021; Liang et al., Accuracy on the Curve, ICML 2023

Shapes: P points, B bootstrap samples, K coefficients, R runs, M sums of powers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["raw", "probit"]
SAMPLES = 2000  # of the bootstrap
FEWEST_RUNS = 5  # fewer are not resampled: their samples repeat one another
LEVEL = (0.025, 0.975)
_ROUNDING = 1e-9  # a spread below this, relative to the numbers, is rounding


@dataclass(frozen=True)
class Interval:
    """The 95 % percentile interval of a bootstrap; NaN where it cannot be had."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Curve:
    """Least-squares fits of degree 1 and 2 of y on x, with what tells them apart."""

    scale: Scale
    points: int
    runs: int
    slope: float
    intercept: float
    r: float  # Pearson
    r_interval: Interval
    spearman: float
    r2_linear: float
    r2_quadratic: float
    adjusted_linear: float
    adjusted_quadratic: float
    coefficients: tuple[float, float, float]  # c0 + c1 x + c2 x^2
    curvature_interval: Interval  # of c2, over runs
    x_range: tuple[float, float]

    @property
    def delta_r2(self) -> float:
        return self.r2_quadratic - self.r2_linear

    @property
    def curvature(self) -> float:
        return self.coefficients[2]

    @property
    def vertex(self) -> float:
        """Where the parabola turns: -c1 / 2 c2."""
        _, c1, c2 = self.coefficients
        return -c1 / (2 * c2) if c2 else float("nan")

    @property
    def turns(self) -> bool:
        """Whether the parabola turns within the range of x, and its curvature is not that of noise."""
        low, high = self.x_range
        clear = not np.isnan(self.curvature_interval.low) and 0 not in self.curvature_interval
        return bool(clear and low < self.vertex < high)


def clipped(accuracy_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """Accuracies kept half an example away from 0 and 1, so that their probit is finite.

    >>> clipped(np.array([0.0, 0.5, 1.0]), np.array([10, 10, 10]))
    array([0.05, 0.5 , 0.95])
    """
    return np.clip(accuracy_P, 1 / (2 * count_P), 1 - 1 / (2 * count_P))


def scaled(accuracy_P: np.ndarray, scale: Scale) -> np.ndarray:
    """Accuracies as they are, or Phi^-1 of them.

    >>> scaled(np.array([0.5, 0.975]), "probit").round(2)
    array([0.  , 1.96])
    """
    from scipy.special import ndtri

    return accuracy_P if scale == "raw" else ndtri(accuracy_P)


def unscaled(value_P: np.ndarray, scale: Scale) -> np.ndarray:
    """The way back from ``scaled``."""
    from scipy.special import ndtr

    return value_P if scale == "raw" else ndtr(value_P)


def line(x_P: np.ndarray, y_P: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the least-squares line; NaN with fewer than two points or no spread of x.

    >>> line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    (2.0, 1.0)
    """
    if len(x_P) < 2 or not _varies(x_P):
        return float("nan"), float("nan")
    centred_P = x_P - x_P.mean()
    slope = float((centred_P * y_P).sum() / (centred_P**2).sum())
    return slope, float(y_P.mean() - slope * x_P.mean())


def fit_curve(
    x_P: np.ndarray,
    y_P: np.ndarray,
    run_P: np.ndarray,
    scale: Scale = "raw",
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Curve:
    """Fit a line and a parabola; x and y are accuracies, already clipped, and shown on ``scale``.

    ``run_P`` numbers the run of each point. The intervals come from a bootstrap that draws whole runs,
    because checkpoints of one run are no independent points; with fewer than 5 runs they are NaN. What the
    points do not determine is NaN: a line with two values of x, a parabola with three.
    """
    x_P, y_P = scaled(x_P, scale), scaled(y_P, scale)
    line_K, parabola_K = _polynomial(x_P, y_P, 1), _polynomial(x_P, y_P, 2)
    r2_linear, r2_quadratic = (_r2(x_P, y_P, c_K) for c_K in (line_K, parabola_K))
    n = len(x_P)
    curvature_B, r_B = _resampled(x_P, y_P, run_P, samples, seed)
    return Curve(
        scale=scale,
        points=n,
        runs=len(np.unique(run_P)),
        slope=line_K[1],
        intercept=line_K[0],
        r=_pearson(x_P, y_P),
        r_interval=_interval(r_B),
        spearman=_spearman(x_P, y_P),
        r2_linear=r2_linear,
        r2_quadratic=r2_quadratic,
        adjusted_linear=_adjusted(r2_linear, n, 1),
        adjusted_quadratic=_adjusted(r2_quadratic, n, 2),
        coefficients=(parabola_K[0], parabola_K[1], parabola_K[2]),
        curvature_interval=_interval(curvature_B),
        x_range=(float(x_P.min()), float(x_P.max())) if n else (float("nan"), float("nan")),
    )


def _polynomial(x_P: np.ndarray, y_P: np.ndarray, degree: int) -> list[float]:
    """Coefficients from the constant on; NaN where x takes too few values."""
    if len(np.unique(x_P.round(12))) <= degree or not _varies(x_P):
        return [float("nan")] * (degree + 1)
    fitted = np.polynomial.Polynomial.fit(x_P, y_P, degree).convert().coef
    return [*map(float, fitted), *[0.0] * (degree + 1 - len(fitted))]


def _r2(x_P: np.ndarray, y_P: np.ndarray, c_K: list[float]) -> float:
    if not len(y_P) or not _varies(y_P):
        return float("nan")
    residual_P = y_P - np.polynomial.polynomial.polyval(x_P, c_K)
    return float(1 - (residual_P**2).sum() / ((y_P - y_P.mean()) ** 2).sum())


def _adjusted(r2: float, n: int, degree: int) -> float:
    return 1 - (1 - r2) * (n - 1) / (n - degree - 1) if n > degree + 1 else float("nan")


def _pearson(x_P: np.ndarray, y_P: np.ndarray) -> float:
    if len(x_P) < 3 or not _varies(x_P) or not _varies(y_P):
        return float("nan")
    return float(np.corrcoef(x_P, y_P)[0, 1])


def _spearman(x_P: np.ndarray, y_P: np.ndarray) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(x_P), rankdata(y_P)) if len(x_P) else float("nan")


def _varies(values_P: np.ndarray) -> bool:
    return bool(np.ptp(values_P) > _ROUNDING * max(1.0, float(np.abs(values_P).max())))


def _resampled(
    x_P: np.ndarray, y_P: np.ndarray, run_P: np.ndarray, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Curvature and Pearson correlation of every sample of runs that determines them."""
    runs, run_P = np.unique(run_P, return_inverse=True)
    if len(runs) < FEWEST_RUNS or not _varies(x_P) or not _varies(y_P):
        return np.array([]), np.array([])
    chance = np.random.default_rng(seed)
    drawn_BR = chance.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=samples)
    # Of unit spread around 0: the normal equations would be ill conditioned for accuracies near 1.
    spread_x, spread_y = x_P.std(), y_P.std()
    x_P, y_P = (x_P - x_P.mean()) / spread_x, (y_P - y_P.mean()) / spread_y
    terms = (*(x_P**k for k in range(5)), *(x_P**k * y_P for k in range(3)), y_P**2)
    sums_RM = np.stack([np.bincount(run_P, weights=term_P) for term_P in terms], 1)
    sums_BM = drawn_BR @ sums_RM
    moment_BKK = sums_BM[:, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]]
    determined_B = np.linalg.cond(moment_BKK) < 1e8
    solved_BK = np.linalg.solve(moment_BKK[determined_B], sums_BM[determined_B, 5:8, None])[..., 0]
    n_B, x_B, xx_B, y_B, xy_B, yy_B = sums_BM[:, [0, 1, 2, 5, 6, 8]].T
    spread_B = np.sqrt(np.maximum((n_B * xx_B - x_B**2) * (n_B * yy_B - y_B**2), 0)) / n_B**2
    r_B = (n_B * xy_B - x_B * y_B)[spread_B > _ROUNDING] / (n_B**2 * spread_B)[spread_B > _ROUNDING]
    return solved_BK[:, 2] * spread_y / spread_x**2, r_B


def _interval(value_B: np.ndarray) -> Interval:
    if not len(value_B):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(value_B, LEVEL)
    return Interval(float(low), float(high))
