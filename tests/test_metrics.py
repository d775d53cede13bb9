"""Measures against closed forms, a peer's implementation, and the shipped judge."""

import json
import sys
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from torch import nn

from diffusion_lib import UserError, data, metrics
from diffusion_lib.metrics import (
    accuracy,
    evaluate,
    frechet_distance,
    frechet_gaussian,
    inception_report,
    inception_score,
    kernel_distance,
    load_judge,
    nearest_distances,
    precision_recall,
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


def test_a_judge_of_any_size_and_colour() -> None:
    for channels, side in ((1, 8), (3, 16), (3, 32), (1, 64)):
        judge = metrics.Judge(4, channels, side)
        for times in (1, 2):  # larger pictures are averaged down
            x = torch.zeros(2, channels, times * side, times * side)
            assert judge.features(x).shape == (2, 32) and judge(x).shape == (2, 4)
        with pytest.raises(UserError, match=f"side is a multiple of {side}, not at"):
            judge(torch.zeros(1, channels, side // 2, side // 2))
    with pytest.raises(UserError, match="of side 8, 16, 32 or 64, not 28"):
        metrics.Judge(10, 1, 28)


def test_a_judge_learns_colour_pictures() -> None:
    """Red and blue squares: what it could not tell apart in grey."""
    images = torch.zeros(128, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(128) % 2
    images[labels == 0, 0] = 200
    images[labels == 1, 2] = 200
    set_ = data.ImageSet("squares", images, labels, ("red", "blue"))
    judge = metrics.train_judge(set_, epochs=8)
    assert (judge.channels, judge.side, judge.classes) == (3, 16, 2)
    assert accuracy(judge, set_.floats(), labels) == 1


def test_the_judge_of_mnist_is_shipped_for_its_size() -> None:
    """Its accuracy was measured on real held-out pictures by benchmarks/checkpoints.py."""
    judge = load_judge("mnist")
    assert (judge.classes, judge.channels, judge.side) == (10, 1, 32)
    file = Path(__file__).parents[1] / "benchmarks" / "results" / "judge_mnist.json"
    assert json.loads(file.read_text())["accuracy_mnist"] >= 0.99
    for side in (8, 16):  # the other one is as it was
        assert load_judge(metrics.JUDGES[f"digits{side}"]).side == 8


def test_fewer_held_out_pictures_keep_the_classes_shares() -> None:
    report = evaluate(_LearntByHeart(), data="digits8", steps=1, draws=1, extra=0, held_out=100)
    assert 98 <= report.n <= 102 and report.accuracy > 0.99
    whole = data.digits(8, "test")
    part = metrics._fewer(whole, 100)
    assert torch.equal(part.images, metrics._fewer(whole, 100).images)
    assert part.labels.bincount().tolist() == [  # type: ignore[union-attr]
        round(c * 100 / 450)
        for c in whole.labels.bincount().tolist()  # type: ignore[union-attr]
    ]


def test_data_without_a_judge() -> None:
    with pytest.raises(UserError, match="There is no judge for 'cifar10'; there is one for digits"):
        evaluate(_LearntByHeart(), data="cifar10")


def test_evaluate_refuses_too_few_held_out_pictures() -> None:
    with pytest.raises(UserError, match="at least two held-out pictures of each class"):
        evaluate(_LearntByHeart(), data="digits8", steps=1, draws=1, extra=0, held_out=10)


def test_evaluate_on_sets_that_are_handed_over() -> None:
    """Held-out pictures in place of training pictures: the floor is then theirs with themselves."""
    test = data.digits(8, "test")
    report = evaluate(
        _LearntByHeart(), data="mine", judge=load_judge(), sets=(test, test), steps=1, draws=1,
        extra=0,
    )  # fmt: skip
    assert abs(report.floor) < 1e-4 and report.n == 450
    assert (report.real_precision, report.real_recall) == (1, 1)
    # Samples are training pictures, which here stand nowhere.
    assert report.frechet > 1 and report.nearest_ratio == float("inf")


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
    # Its samples are real pictures: they lie as near to the held-out ones as others do. A kernel
    # distance over all classes at once would have a floor of about -1500 here, not near 0.
    assert abs(report.kernel_floor) < 2 * report.kernel_floor_std
    assert abs(report.kernel - report.kernel_floor) < 5 * report.kernel_floor_std
    assert abs(report.precision - report.real_precision) < 0.1
    for words in ("nearest training picture", "kernel distance", "precision, recall"):
        assert words in str(report)


class _Noise(_LearntByHeart):
    def __call__(self, x, level, cond=None):  # type: ignore[no-untyped-def]
        return x


def test_noise_is_far_by_every_measure() -> None:
    report = evaluate(_Noise(), data="digits8", steps=1, draws=1, extra=0)
    assert report.accuracy < 0.3 and report.frechet > 10 * report.floor
    assert report.kernel > report.kernel_floor + 10 * report.kernel_floor_std
    assert report.precision < 0.3 < report.real_precision


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="square grey pictures"):
        load_judge().features(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="There are: digits"):
        load_judge("faces")
    with pytest.raises(UserError, match="at least two pictures"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    assert metrics.FEATURES == 32


# further measures


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    """[36] On the same features, through their own public class, with one subset of everything."""
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = torch.randn(60, 2, 2, 2).double(), 1.3 * torch.randn(60, 2, 2, 2).double() + 0.4
    with pytest.warns(UserWarning, match="save all extracted features"):
        theirs = KernelInceptionDistance(feature=_Identity(), subsets=1, subset_size=60)
    theirs.set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = kernel_distance(a.flatten(1), b.flatten(1))
    assert ours == pytest.approx(theirs.compute()[0].item(), rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    """[36] 0 on average for sets of one law, however small and of whatever two sizes; far from 0
    for others. (Pairing features with themselves would give about 3.7 here.)"""
    z = torch.randn(2000, 12, 4)
    found = torch.tensor([kernel_distance(x[:8], x[8:]) for x in z])
    assert abs(found.mean()) < 4 * found.std() / len(z) ** 0.5
    assert found.std() / len(z) ** 0.5 < 0.1
    assert kernel_distance(torch.randn(200, 4), torch.randn(200, 4) + 1) > 1


def test_inception_score_of_one_hots() -> None:
    """[36] K for every class equally often, 1 where all pictures look alike."""
    assert inception_score(torch.eye(7).repeat(5, 1)) == pytest.approx(7, rel=1e-12)
    assert inception_score(torch.full((30, 7), 1 / 7)) == pytest.approx(1, rel=1e-12)
    assert inception_score(torch.eye(7)[[2] * 30]) == pytest.approx(1, rel=1e-12)


def test_inception_score_agrees_with_torchmetrics() -> None:
    """[36] On the same class scores, in one split."""
    from torchmetrics.image.inception import InceptionScore

    scores = 3 * torch.randn(200, 8, 1, 1).double()
    with pytest.warns(UserWarning, match="save all extracted features"):
        theirs = InceptionScore(feature=_Identity(), splits=1).set_dtype(torch.float64)
    theirs.update(scores)
    with pytest.warns(UserWarning, match="degrees of freedom"):  # theirs: std of one split
        expected = theirs.compute()[0].item()
    assert inception_score(scores.flatten(1).softmax(1)) == pytest.approx(expected, rel=1e-9)


def test_precision_recall_by_hand() -> None:
    """On a line: real pictures at 0, 1, 2, 3, samples at 0.5, 1.5, 9, 9.5.

    With k = 1 the real points reach 1 far, the samples 1, 1, 0.5, 0.5. So 2 of 4 samples lie in a
    real ball; and the reals at 0 to 2 lie in a sample's ball, the one at 3 does not.
    """
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    samples = torch.tensor([[0.5], [1.5], [9.0], [9.5]])
    assert precision_recall(real, samples, k=1) == (0.5, 0.75)
    assert precision_recall(samples, real, k=1) == (0.75, 0.5)


def test_precision_recall_point_by_point() -> None:
    """Against its definition, written as loops over points (Kynkäänniemi et al. 2019, eq. 1)."""
    real, samples = torch.randn(30, 3).double(), 0.7 * torch.randn(25, 3).double() + 0.5

    def share(points: torch.Tensor, centres: torch.Tensor, k: int) -> float:
        inside = 0
        for point in points:
            for i, centre in enumerate(centres):
                others = [float((centre - c).norm()) for j, c in enumerate(centres) if j != i]
                if float((point - centre).norm()) <= sorted(others)[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    for k in (1, 3):
        precision, recall = precision_recall(real, samples, k=k)
        assert precision == pytest.approx(share(samples, real, k))
        assert recall == pytest.approx(share(real, samples, k))


def test_precision_and_recall_tell_two_faults_apart() -> None:
    """Samples from one of two modes are precise and miss half; too wide ones the reverse."""
    real = torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 20])
    precision, recall = precision_recall(real, torch.randn(400, 2))
    assert precision > 0.9 and 0.4 < recall < 0.55
    precision, recall = precision_recall(real, 10 + 15 * torch.randn(400, 2))
    assert precision < 0.2 and recall > 0.9


class _Halves:
    """An extractor for tests: features are means of parts of the picture, scores are others."""

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        x = images.float() / 255
        return nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1), 9 * x[:, 0, :4, 0]


def test_inception_report_agrees_with_our_own_formulas() -> None:
    """FID, KID and IS by torchmetrics with an injected extractor: no download."""
    real = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    samples = torch.randint(0, 200, (30, 1, 4, 4), dtype=torch.uint8)
    report = inception_report(real, samples, reference="noise", extractor=_Halves(), batch=7)
    (f_real, _), (f_samples, scores) = (_Halves()(x.expand(-1, 3, -1, -1)) for x in (real, samples))
    assert report.fid == pytest.approx(frechet_distance(f_real, f_samples), rel=1e-5)
    assert abs(report.kid - kernel_distance(f_real, f_samples)) < 0.5 * report.kid_std
    assert 1 < report.score < 4 and scores.shape == (30, 4)
    assert str(report).endswith("30 samples against 40 of noise, by _Halves")
    assert report == inception_report(real, samples, reference="noise", extractor=_Halves())

    def sure_of_nothing(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _Halves()(images)[0], torch.zeros(len(images), 4)

    flat = inception_report(real, samples, reference="noise", extractor=sure_of_nothing)
    assert flat.score == pytest.approx(1) and flat.fid == pytest.approx(report.fid)


def test_inception_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(UserError, match="at least ten uint8"):
        inception_report(images.float(), images, reference="zeros")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        inception_report(images, images, reference="zeros")

    def unreachable(*_: object) -> None:
        raise URLError("no route to host")

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = unreachable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(UserError, match="could not be fetched .*no route to host"):
        inception_report(images, images, reference="zeros")

    class Network(nn.Module):
        """Stands for Inception, found and loaded."""

        def __init__(self, name: str, features: list[str]) -> None:
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048", "logits_unbiased"])

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return _Halves()(images)

    module.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined]
    said = inception_report(images, images, reference="zeros").extractor
    assert said == "Inception v3 of torch-fidelity"
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(UserError, match="pip install torchmetrics"):
        inception_report(images, images, reference="zeros")


def test_measures_refuse_sets_that_are_too_small() -> None:
    with pytest.raises(UserError, match="at least two pictures"):
        kernel_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    with pytest.raises(UserError, match="more than 3 pictures"):
        precision_recall(torch.zeros(3, 2), torch.zeros(5, 2))
