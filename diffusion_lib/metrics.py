"""How good are the samples? A small judge, the Fréchet distance in its features, and accuracy.

No figure stands alone: beside each distance stands its floor, the distance between two sets of
real pictures of the same size.
"""

import warnings
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .data import ImageSet, Pictures, keyed_generator, load, to_float, to_uint8
from .denoiser import Denoise
from .errors import UserError
from .progress import progress
from .samplers import Sampler, ddim, sample

FEATURES = 32


class Judge(nn.Module):
    """A small classifier of square pictures; larger ones are averaged down to the size it knows.

    Its 32 features, taken before the last layer, are what distances are measured in.

    Attributes:
        classes: number of classes.
        channels: of the pictures, 1 or 3.
        side: height and width of the pictures it knows: 8, 16, 32 or 64.
    """

    def __init__(self, classes: int = 10, channels: int = 1, side: int = 8) -> None:
        super().__init__()
        if side not in (8, 16, 32, 64):
            raise UserError(f"A judge looks at pictures of side 8, 16, 32 or 64, not {side}.")
        self.classes, self.channels, self.side = classes, channels, side
        self.stem = nn.Sequential()  # halves the pictures to 8 x 8
        width = channels
        for k in range((side // 8).bit_length() - 1):
            layers = (nn.Conv2d(width, 16 << k, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.stem.extend(layers)
            width = 16 << k
        self.body = nn.Sequential(
            nn.Conv2d(width, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(256, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (N, 32) of pictures in [-1, 1], (N, channels, H, W), H = W a multiple of `side`.

        Raises:
            UserError: pictures of another shape.
        """
        _, c, h, w = images.shape
        if c != self.channels or h != w or h % self.side:
            kind = "grey" if self.channels == 1 else "colour"
            raise UserError(
                f"The judge looks at square {kind} pictures whose side is a multiple of "
                f"{self.side}, not at {c} x {h} x {w}."
            )
        return self.body(self.stem(F.avg_pool2d(images, h // self.side)))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes); pictures as for `features`."""
        return self.head(self.features(images))


def train_judge(
    data: ImageSet, *, epochs: int = 40, seed: int = 0, device: torch.device | str = "cpu"
) -> Judge:
    """Train a judge on labelled pictures, with a little noise so that it looks at shapes."""
    data = data.to(device)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        judge = Judge(data.classes or 1, *data.shape[:2]).to(device)
        steps = epochs * (len(data) // 64)
        optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            images, labels = data.batch(step, 64, seed)
            noisy = images + 0.05 * torch.randn_like(images)
            loss = F.cross_entropy(judge(noisy), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.cpu().eval()


# Which judge looks at which data set.
JUDGES = {"digits8": "digits", "digits16": "digits", "mnist": "mnist"}


def load_judge(name: str = "digits", folder: Path | None = None) -> Judge:
    """One of the frozen judges that the figures of this book are measured with.

    Args:
        name: "digits" (8 x 8; it also looks at the 16 x 16 ones) or "mnist" (32 x 32).
        folder: where its weights lie; None: among the shipped ones.

    Raises:
        UserError: an unknown name.
    """
    folder = folder or Path(str(resources.files("diffusion_lib"))) / "checkpoints"
    file = folder / f"judge_{name}.safetensors"
    if not file.is_file():
        there = sorted(f.stem.removeprefix("judge_") for f in folder.glob("judge_*.safetensors"))
        raise UserError(f"There is no judge {name!r}. There are: {', '.join(there) or 'none'}.")
    weights = load_file(file)
    first = weights.get("stem.0.weight", weights["body.0.weight"])
    stages = sum(key.startswith("stem.") for key in weights) // 2
    judge = Judge(len(weights["head.weight"]), first.shape[1], 8 << stages)
    judge.load_state_dict(weights)
    return judge.eval()


@torch.inference_mode()
def judge_features(judge: Judge, images: Tensor) -> Tensor:
    """The judge's features (N, 32) of pictures (N, C, H, W), a thousand at a time."""
    return torch.cat([judge.features(part) for part in images.split(1000)])


@torch.inference_mode()
def accuracy(judge: Judge, images: Tensor, labels: Tensor) -> float:
    """Share of the pictures (N, 1, H, W) that the judge takes for what their labels (N,) say."""
    guesses = judge.head(judge_features(judge, images)).argmax(1)
    return float((guesses == labels).float().mean())


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% confidence interval of a share seen in n trials (Wilson 1927); sound near 0 and 1."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return middle - half, middle + half


def frechet_gaussian(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Squared Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6), float64, ().

        |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2))

    The last trace is taken from the eigenvalues of the symmetric sqrt(cov1) cov2 sqrt(cov1),
    which are those of cov1 cov2 but real and not negative.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), symmetric, positive semi-definite.
    """
    mean1, cov1, mean2, cov2 = (v.double() for v in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root1 = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root1 @ cov2 @ root1).clamp(min=0).sqrt().sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between two sets of features, (N, D) and (M, D).

    Each set is taken for a Gaussian with its mean and covariance. It grows as sets get smaller:
    compare only figures of equal N, and put the floor beside them.

    Raises:
        UserError: fewer than two rows, where there is no covariance.
    """
    if len(a) < 2 or len(b) < 2:
        raise UserError("A Fréchet distance needs at least two pictures on each side.")
    a, b = a.double(), b.double()
    return float(frechet_gaussian(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared kernel distance (MMD) between two sets of features, (N, D) and (M, D).

    With Inception's features it is called KID (Bińkowski et al. 2018, section 4): the kernel is
    (x y / D + 1)^3, and no feature is paired with itself. So its mean does not depend on N and M,
    it may come out negative, and it is 0 on average for two sets of one law.

    Raises:
        UserError: fewer than two rows.
    """
    if len(a) < 2 or len(b) < 2:
        raise UserError("A kernel distance needs at least two pictures on each side.")
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL from each picture's class probabilities to their mean.

    Salimans et al. 2016, section 4, for the class probabilities (N, K) of any classifier. From 1
    (all pictures alike to it) to K (sure of each picture, and all classes equally often).
    """
    p = probabilities.double()
    entropies = -torch.special.entr(p).sum(1)  # entr(p) = -p log p, and 0 at p = 0
    return float((entropies.mean() + torch.special.entr(p.mean(0)).sum()).exp())


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of samples that look real, and share of real pictures that the samples reach.

    Kynkäänniemi et al. 2019, eq. 1 and 2, in any features, (N, D) and (M, D): each set is covered
    by one ball around each of its points, which reaches to the point's k-th neighbour in its own
    set. Precision is the share of samples in the balls of the real set, recall the reverse. Both
    depend on N and M: compare only figures of equal sizes.

    Raises:
        UserError: a set that has not more than k rows.
    """
    if min(len(real), len(samples)) <= k:
        raise UserError(f"With k = {k} neighbours each set needs more than {k} pictures.")

    def distances(x: Tensor, y: Tensor) -> Tensor:  # exact: a point is at 0 from itself
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(x.double(), y.double(), compute_mode=exact)

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = distances(centres, centres).kthvalue(k + 1, 1).values  # the first is itself
        return float((distances(points, centres) <= radii).any(1).double().mean())

    return covered(samples, real), covered(real, samples)


class Extractor(Protocol):
    """`(uint8 pictures (B, 3, H, W)) -> (features (B, D), class scores (B, K))`."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class InceptionReport:
    """What `inception_report` found, with what a reader needs to compare it with anything.

    Attributes:
        fid: squared Fréchet distance of the features.
        kid, kid_std: mean and standard deviation of the kernel distance over subsets.
        score, score_std: mean and standard deviation of the Inception Score over ten splits.
        n_real, n_samples: how many pictures each side held.
        reference: what the real pictures are, such as "CIFAR-10, train".
        extractor: what the features are taken from.
    """

    fid: float
    kid: float
    kid_std: float
    score: float
    score_std: float
    n_real: int
    n_samples: int
    reference: str
    extractor: str

    def __str__(self) -> str:
        return (
            f"FID  {self.fid:.3f}\n"
            f"KID  {self.kid:.5f} ± {self.kid_std:.5f}\n"
            f"IS   {self.score:.3f} ± {self.score_std:.3f}\n"
            f"{self.n_samples} samples against {self.n_real} of {self.reference}, "
            f"by {self.extractor}"
        )


def inception_report(
    real: Tensor,
    samples: Tensor,
    *,
    reference: str,
    extractor: Extractor | None = None,
    batch: int = 50,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> InceptionReport:
    """FID, KID and Inception Score as papers quote them, by torchmetrics.

    The network is torch-fidelity's Inception v3 of 2015, with its weights and its way of resizing
    pictures to 299 x 299: other ports give other figures. It is downloaded once (96 MB). Published
    FIDs use 50,000 samples; with fewer the figure comes out higher.

    Args:
        real, samples: uint8, (N, C, H, W) and (M, C, H, W); grey pictures (C = 1) are repeated.
        reference: what the real pictures are; part of the report.
        extractor: None for Inception; a test or another kind of picture may bring its own.
        batch: pictures shown to the extractor at a time.
        device: where Inception runs.
        seed: of the subsets and splits.

    Raises:
        UserError: torchmetrics or torch-fidelity is missing, the weights can't be fetched, or the
            pictures are not uint8, or fewer than ten.
    """
    for images in (real, samples):
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 10:
            raise UserError(
                "Inception's measures need at least ten uint8 pictures (N, C, H, W) on each side: "
                "convert samples with `data.to_uint8`."
            )
    fid_class, kid_class, score_class = _torchmetrics()
    extractor = extractor or load_inception(device)
    name = getattr(extractor, "description", type(extractor).__name__)

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        with torch.inference_mode():
            found = [
                tuple(part.double().cpu() for part in extractor(some.to(device)))
                for some in progress(colour.split(batch), "looking at pictures")
            ]
        features, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, scores

    f_real, _ = look(real)
    f_samples, scores = look(samples)
    given = _Given(f_real.shape[1])  # the features are there already
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.filterwarnings("ignore", message="Metric .* will save all extracted features")
        torch.manual_seed(seed)
        fid = fid_class(feature=given).set_dtype(torch.float64)
        kid = kid_class(feature=given, subset_size=min(1000, len(real), len(samples))).set_dtype(
            torch.float64
        )
        for metric in (fid, kid):
            metric.update(f_real, real=True)
            metric.update(f_samples, real=False)
        inception = score_class(feature=given).set_dtype(torch.float64)
        inception.update(scores)
        kid_mean, kid_std = kid.compute()
        score, score_std = inception.compute()
        return InceptionReport(
            fid=float(fid.compute()),
            kid=float(kid_mean),
            kid_std=float(kid_std),
            score=float(score),
            score_std=float(score_std),
            n_real=len(real),
            n_samples=len(samples),
            reference=reference,
            extractor=name,
        )


class _Given(nn.Module):
    """Stands where torchmetrics expects a network, and hands on features found before."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _torchmetrics() -> tuple[Any, Any, Any]:
    """The classes of FID, KID and Inception Score."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise UserError(
            "FID, KID and Inception Score need torchmetrics: pip install torchmetrics"
        ) from error
    return FrechetInceptionDistance, KernelInceptionDistance, InceptionScore


def load_inception(device: torch.device | str = "cpu") -> Extractor:
    """The pool features and class scores of the Inception network that published FIDs use.

    To be called before a long sampling, so that what is missing is known at once.

    Raises:
        UserError: torchmetrics or torch-fidelity is missing, or the weights can't be fetched.
    """
    _torchmetrics()
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(
            "Inception's measures need torch-fidelity: pip install torch-fidelity. "
            "Without it, use the judge's measures in diffusion_lib.metrics."
        ) from error
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        raise UserError(
            f"Inception's weights could not be fetched ({error}). Check the connection, or use "
            "the judge's measures in diffusion_lib.metrics, which need no download."
        ) from error
    net.description = "Inception v3 of torch-fidelity"
    return net.to(device)


def nearest_distances(images: Tensor, references: Tensor) -> Tensor:
    """Euclidean distance from each picture to the nearest reference, pixel by pixel. Shape (N,)."""
    there = references.flatten(1)
    return torch.cat([torch.cdist(x.flatten(1), there).min(1).values for x in images.split(1000)])


@dataclass(frozen=True)
class Report:
    """What `evaluate` found. Intervals are (low, high) at 95%.

    Attributes:
        n: samples the accuracy is measured on.
        accuracy, accuracy_interval: share of samples that the judge takes for their class.
        judge_accuracy: the same on held-out real pictures.
        frechet, frechet_interval: mean over draws of the distance from as many samples as there
            are held-out pictures to those pictures; the interval is a bootstrap's.
        floor, floor_std: the same with real training pictures in place of samples.
        kernel, kernel_floor, kernel_floor_std: the kernel distance (KID's) over the same draws, its
            floor and how far that scatters. Taken class by class and averaged: as wholes, sets
            made to hold each class equally often would come out closer than two random ones.
        precision, recall: of the first draw, against the held-out pictures.
        real_precision, real_recall: the same with real training pictures in place of samples.
        nearest_ratio: median distance of samples to their nearest training picture, divided by
            that of held-out pictures. Far below 1 means learnt by heart.
    """

    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    judge_accuracy: float
    frechet: float
    frechet_interval: tuple[float, float]
    floor: float
    floor_std: float
    kernel: float
    kernel_floor: float
    kernel_floor_std: float
    precision: float
    recall: float
    real_precision: float
    real_recall: float
    nearest_ratio: float

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        f_low, f_high = self.frechet_interval
        return (
            f"class accuracy     {self.accuracy:.4f}  (95% {low:.4f} to {high:.4f}, "
            f"{self.n} samples; real held-out pictures {self.judge_accuracy:.4f})\n"
            f"Fréchet distance   {self.frechet:.2f}  (95% {f_low:.2f} to {f_high:.2f}; floor, real "
            f"against real, {self.floor:.2f} ± {self.floor_std:.2f}; ratio "
            f"{self.frechet / self.floor:.2f})\n"
            f"kernel distance    {self.kernel:.0f}  (mean over classes; floor "
            f"{self.kernel_floor:.0f} ± {self.kernel_floor_std:.0f})\n"
            f"precision, recall  {self.precision:.3f}, {self.recall:.3f}  (real against real "
            f"{self.real_precision:.3f}, {self.real_recall:.3f})\n"
            f"nearest training picture, samples / held-out   {self.nearest_ratio:.3f}"
        )


def _like(
    wanted: Tensor, labels: Tensor, generator: torch.Generator, *, repeat: bool = False
) -> Tensor:
    """Random indices into `labels` that hold each class as often as `wanted` does."""
    chosen = []
    for label, count in enumerate(wanted.bincount().tolist()):
        of_class = (labels == label).nonzero().flatten()
        if repeat:
            order = torch.randint(len(of_class), (count,), generator=generator)
        else:
            order = torch.randperm(len(of_class), generator=generator)[:count]
        chosen.append(of_class[order])
    return torch.cat(chosen)


def _fewer(images: ImageSet, n: int) -> ImageSet:
    """About n of the pictures, always the same ones, each class in its proportion."""
    assert images.labels is not None
    counts = (images.labels.bincount() * n / len(images)).round().long()
    wanted = torch.arange(len(counts)).repeat_interleave(counts)
    index = _like(wanted, images.labels, keyed_generator(0))
    return replace(images, images=images.images[index], labels=images.labels[index])


def evaluate(
    denoiser: Denoise,
    *,
    data: str,
    judge: Judge | None = None,
    sets: tuple[Pictures, Pictures] | None = None,
    steps: int = 50,
    sampler: Sampler = ddim,
    held_out: int | None = None,
    draws: int = 4,
    extra: int = 200,
    seed: int = 0,
) -> Report:
    """Judge a class-conditional denoiser of a data set that has a judge.

    Args:
        denoiser: a `Denoiser`, also a guided one.
        data: the data set it was trained on, such as "digits16".
        judge: None for the shipped one.
        sets: its training and its held-out pictures; None: loaded by the name `data`.
        steps: sampler steps.
        sampler: the sampler.
        held_out: compare with this many held-out pictures, each class in its proportion; None:
            with all of them.
        draws: how many sets of samples, each with the labels of the held-out pictures.
        extra: further samples, for the accuracy alone.
        seed: of the first draw; the next ones count on.

    Raises:
        UserError: data without labels or without a judge, or too few held-out pictures.
    """
    if judge is None and data not in JUDGES:
        raise UserError(
            f"There is no judge for {data!r}; there is one for {', '.join(JUDGES)}. Inception's "
            "measures need none: `inception_report`, or --features inception on the command line."
        )
    train, test = sets or (load(data, "train"), load(data, "test"))
    if not (isinstance(test, ImageSet) and isinstance(train, ImageSet)) or test.labels is None:
        raise UserError(f"{data} has no labels, and a judge asks whether samples look as theirs.")
    judge = judge or load_judge(JUDGES[data])
    if held_out is not None and held_out < len(test):
        test = _fewer(test, held_out)
    assert test.labels is not None and train.labels is not None
    if len(test) < 4 or int(test.labels.unique(return_counts=True)[1].min()) < 2:
        raise UserError("Compare with at least two held-out pictures of each class.")
    levels = denoiser.schedule.levels(steps)  # type: ignore[attr-defined]

    pictures, labels = [], []
    for draw in range(draws + 1):
        wanted = test.labels if draw < draws else torch.arange(extra) % len(test.class_names)
        if len(wanted):
            x = sample(denoiser, (len(wanted), *test.shape), levels, sampler=sampler,
                       cond=wanted, seed=seed + draw)  # fmt: skip
            pictures.append(to_float(to_uint8(x.cpu())))  # judged as they would be saved
            labels.append(wanted)
    everything, every_label = torch.cat(pictures), torch.cat(labels)
    n, n_test = len(everything), len(test)

    f_test = judge_features(judge, test.floats())
    f_train = judge_features(judge, train.floats())
    f_samples = judge_features(judge, everything)
    drawn, drawn_labels = f_samples[: draws * n_test], every_label[: draws * n_test]
    distances = [frechet_distance(part, f_test) for part in drawn.split(n_test)]

    # Every set has the held-out set's number of each class: the distance is about the pictures,
    # not about which digits happened to be drawn.
    generator = keyed_generator(seed)
    reals = [f_train[_like(test.labels, train.labels, generator)] for _ in range(200)]
    floors = torch.tensor([frechet_distance(real, f_test) for real in reals])
    resampled = []
    for _ in range(200):
        again = [_like(test.labels, drawn_labels, generator, repeat=True) for _ in range(draws)]
        resampled.append(sum(frechet_distance(drawn[i], f_test) for i in again) / draws)
    quantiles = torch.tensor(resampled).quantile(torch.tensor([0.025, 0.975]))
    share = accuracy(judge, everything, every_label)
    reference = train.floats()
    # `_like` sorts by class; the labels of the floor's sets follow.
    test_labels, by_class = test.labels, test.labels.sort().values

    def kernel(features: Tensor, labels: Tensor) -> float:
        classes = [(features[labels == c], f_test[test_labels == c]) for c in labels.unique()]
        return sum(kernel_distance(a, b) for a, b in classes) / len(classes)

    kernels = [kernel(part, test.labels) for part in drawn.split(n_test)]
    kernel_floors = torch.tensor([kernel(real, by_class) for real in reals])
    precision, recall = precision_recall(f_test, drawn[:n_test])
    real_precision, real_recall = precision_recall(f_test, reals[0])
    return Report(
        n=n,
        accuracy=share,
        accuracy_interval=wilson_interval(share, n),
        judge_accuracy=accuracy(judge, test.floats(), test.labels),
        frechet=sum(distances) / draws,
        frechet_interval=(float(quantiles[0]), float(quantiles[1])),
        floor=float(floors.mean()),
        floor_std=float(floors.std()),
        kernel=sum(kernels) / draws,
        kernel_floor=float(kernel_floors.mean()),
        kernel_floor_std=float(kernel_floors.std()),
        precision=precision,
        recall=recall,
        real_precision=real_precision,
        real_recall=real_recall,
        nearest_ratio=float(
            nearest_distances(everything, reference).median()
            / nearest_distances(test.floats(), reference).median()
        ),
    )
