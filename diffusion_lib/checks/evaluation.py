"""Checks for measuring samples."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import metrics
from .engine import Case, Check, Mistake, fixed_normal


def _features() -> list[Case]:
    mix = fixed_normal(5, 5, seed=1)
    # Equal sizes: a covariance over the wrong dimension raises nothing.
    return [(fixed_normal(40, 5, seed=2) @ mix, 0.7 * fixed_normal(40, 5, seed=3) + 0.4)]


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _distance(a: Tensor, b: Tensor, correction: int = 1) -> Tensor:
    return metrics.frechet_gaussian(
        a.mean(0), a.T.cov(correction=correction), b.mean(0), b.T.cov(correction=correction)
    )


def _of_covariances(a: Tensor, b: Tensor, cross: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """|mean difference|² + tr(c1 + c2) − 2 cross(c1, c2)."""
    c1, c2 = a.T.cov(), b.T.cov()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return apart + c1.trace() + c2.trace() - 2 * cross(c1, c2)


def _cross(c1: Tensor, c2: Tensor) -> Tensor:
    zero = torch.zeros(len(c1))
    return (c1.trace() + c2.trace() - metrics.frechet_gaussian(zero, c1, zero, c2)) / 2


frechet_distance = Check(
    signature="frechet_distance(a, b)",
    task="The squared Fréchet distance of two sets of features, (N, D) and (M, D).",
    oracle=metrics.frechet_distance,
    cases=_features,
    verified="means and covariances, of correlated features.",
    mistakes=(
        Mistake(
            "this is the distance. The Fréchet distance is stated squared, without the root.",
            lambda a, b: _distance(a, b).sqrt(),
        ),
        Mistake(
            "only the means are compared: the covariances are missing.",
            lambda a, b: (a.mean(0) - b.mean(0)).square().sum(),
        ),
        Mistake(
            "only the covariances are compared: the means are missing.",
            lambda a, b: _distance(a - a.mean(0), b - b.mean(0)),
        ),
        Mistake(
            "the distance of the means is not squared.",
            lambda a, b: _distance(a - a.mean(0), b - b.mean(0)) + (a.mean(0) - b.mean(0)).norm(),
        ),
        Mistake(
            "the factor 2 of the cross term is missing: between equal sets the distance must be 0.",
            lambda a, b: _of_covariances(a, b, lambda c1, c2: _cross(c1, c2) / 2),
        ),
        Mistake(
            "the cross term is added. It must be subtracted.",
            lambda a, b: _of_covariances(a, b, lambda c1, c2: -_cross(c1, c2)),
        ),
        Mistake(
            "you take the root of each entry. The root of a matrix is another thing: its product "
            "with itself gives the matrix back.",
            lambda a, b: _of_covariances(a, b, lambda c1, c2: (c1 @ c2).abs().sqrt().trace()),
        ),
        Mistake(
            "the root is missing: the trace of the product itself is subtracted.",
            lambda a, b: _of_covariances(a, b, lambda c1, c2: (c1 @ c2).trace()),
        ),
        Mistake(
            "the root of a product is not the product of the roots, for matrices that don't "
            "commute.",
            lambda a, b: _of_covariances(a, b, lambda c1, c2: (_root(c1) @ _root(c2)).trace()),
        ),
        Mistake(
            "only the variances are used: features are correlated, and the covariances matter.",
            lambda a, b: _of_covariances(
                a, b, lambda c1, c2: (c1.diagonal() * c2.diagonal()).sqrt().sum()
            ),
        ),
        Mistake(
            "your covariance divides by N. From samples it is N − 1.",
            lambda a, b: _distance(a, b, correction=0),
        ),
        Mistake(
            "your covariance is that of the pictures, (N, N): torch.cov wants one feature a row.",
            lambda a, b: (
                (a.mean(0) - b.mean(0)).square().sum()
                + metrics.frechet_gaussian(
                    torch.zeros(len(a)), a.cov(), torch.zeros(len(a)), b.cov()
                )
            ),
        ),
        Mistake(
            "this is the mean over the features. Their contributions add up.",
            lambda a, b: _distance(a, b) / a.shape[1],
        ),
    ),
    hints=(
        "Take each set for a normal distribution: its mean and its covariance are all you need.",
        "|m1 − m2|² + tr(C1 + C2 − 2 (C1 C2)^½). The trace of the root is the sum of the roots of "
        "the eigenvalues of C1 C2, which are real and not negative.",
        """def frechet_distance(a, b):
    c1, c2 = a.T.cov(), b.T.cov()
    cross = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return apart + c1.trace() + c2.trace() - 2 * cross""",
    ),
)
