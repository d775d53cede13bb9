"""Measures against closed forms, a peer's implementation, and the shipped judge."""

import pytest
import torch
from torch import nn

from diffusion_lib import UserError, data, metrics
from diffusion_lib.metrics import (
    accuracy,
    evaluate,
    frechet_distance,
    frechet_gaussian,
    load_judge,
    nearest_distances,
    wilson_interval,
)
from diffusion_lib.noise import linear


def test_frechet_of_diagonal_gaussians() -> None:
    """[36] |mean difference|^2 + sum of (sd difference)^2."""
    m1, m2 = torch.randn(2, 6, dtype=torch.float64)
    s1, s2 = torch.rand(2, 6, dtype=torch.float64) + 0.1
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    got = frechet_gaussian(m1, (s1**2).diag(), m2, (s2**2).diag())
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_of_rotated_gaussians_is_symmetric_and_invariant() -> None:
    a, b = torch.randn(300, 5).double(), torch.randn(200, 5).double() @ torch.randn(5, 5).double()
    q, _ = torch.linalg.qr(torch.randn(5, 5).double())
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a @ q, b @ q) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero() -> None:
    """[36] Features that are constant (a singular covariance) included."""
    x = torch.randn(100, 8)
    x[:, 3] = 2.0
    assert abs(frechet_distance(x, x)) < 1e-6


class _Identity(nn.Module):
    num_features = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_frechet_agrees_with_torchmetrics() -> None:
    """[36] On the same features, through their own public class."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = torch.randn(400, 2, 2, 2), 1.3 * torch.randn(300, 2, 2, 2) + 0.4
    theirs = FrechetInceptionDistance(
        feature=_Identity(), normalize=True, input_img_size=(2, 2, 2)
    ).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = frechet_distance(a.flatten(1), b.flatten(1))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_nearest_distances() -> None:
    references = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    images = torch.tensor([[0.0, 1.0], [3.0, 3.0], [3.0, 4.0]])
    assert nearest_distances(images, references).tolist() == pytest.approx([1, 1, 0], abs=1e-4)


def test_wilson_interval() -> None:
    """Against the formula's own defining equation: |p - share| = z sqrt(p (1 - p) / n)."""
    for share, n in ((0.97, 2000), (1.0, 50), (0.5, 10)):
        for p in wilson_interval(share, n):
            assert (p - share) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)


@pytest.mark.parametrize("size", [8, 16])
def test_the_judge_knows_held_out_digits(size: int) -> None:
    test = data.digits(size, "test")  # type: ignore[arg-type]
    assert test.labels is not None
    judge = load_judge()
    assert accuracy(judge, test.floats(), test.labels) > 0.98
    assert accuracy(judge, test.floats(), (test.labels + 1) % 10) < 0.02


def test_judges_features_see_what_is_wrong() -> None:
    """Distance grows from real to blurred to noisy pictures."""
    judge = load_judge()
    train, test = data.digits(8).floats(), data.digits(8, "test").floats()
    with torch.inference_mode():
        f = judge.features
        real = frechet_distance(f(train[:450]), f(test))
        blurred = frechet_distance(f(nn.functional.avg_pool2d(test, 3, 1, 1)), f(test))
        noise = frechet_distance(f(torch.randn_like(test).clamp(-1, 1)), f(test))
    assert real < blurred < noise


class _LearntByHeart:
    """A "denoiser" that puts out training pictures of the class asked for."""

    schedule = linear()
    classes = 10

    def __init__(self) -> None:
        self.train = data.digits(8)

    def __call__(self, x, level, cond=None):  # type: ignore[no-untyped-def]
        assert self.train.labels is not None
        picked = [int((self.train.labels == c).nonzero()[i % 100]) for i, c in enumerate(cond)]
        return self.train.floats()[picked]


def test_a_model_that_learnt_by_heart_is_found_out() -> None:
    report = evaluate(_LearntByHeart(), data="digits8", steps=1, draws=1, extra=0)
    assert report.accuracy > 0.99 and report.n == 450
    assert report.nearest_ratio < 0.05
    assert "nearest training picture" in str(report)


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="square grey pictures"):
        load_judge().features(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="there is one for 'digits'"):
        load_judge("faces")
    with pytest.raises(UserError, match="at least two pictures"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    assert metrics.FEATURES == 32
