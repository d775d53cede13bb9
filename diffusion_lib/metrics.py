"""How good are the samples? A small judge, the Fréchet distance in its features, and accuracy.

No figure stands alone: beside each distance stands its floor, the distance between two sets of
real pictures of the same size.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .data import ImageSet, keyed_generator, load, to_float, to_uint8
from .denoiser import Denoise
from .errors import UserError
from .samplers import Sampler, ddim, sample

FEATURES = 32


class Judge(nn.Module):
    """A small classifier of 8 x 8 grey pictures; larger ones are averaged down to that size.

    Its 32 features, taken before the last layer, are what distances are measured in.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
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
        """Features (N, 32) of pictures in [-1, 1], (N, 1, H, W) with H = W a multiple of 8.

        Raises:
            UserError: pictures of another shape.
        """
        _, c, h, w = images.shape
        if c != 1 or h != w or h % 8:
            raise UserError(
                f"The judge looks at square grey pictures whose side is a multiple of 8, not at "
                f"{c} x {h} x {w}."
            )
        return self.body(F.avg_pool2d(images, h // 8))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes); pictures as for `features`."""
        return self.head(self.features(images))


def train_judge(data: ImageSet, *, epochs: int = 40, seed: int = 0) -> Judge:
    """Train a judge on labelled pictures, with a little noise so that it looks at shapes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        judge = Judge(data.classes or 1)
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
    return judge.eval()


def load_judge(name: str = "digits") -> Judge:
    """The frozen judge that all figures of this book are measured with, shipped with the library.

    Raises:
        UserError: an unknown name.
    """
    file = Path(str(resources.files("diffusion_lib"))) / "checkpoints" / f"judge_{name}.safetensors"
    if not file.is_file():
        raise UserError(f"There is no judge for {name!r}; there is one for 'digits'.")
    judge = Judge()
    judge.load_state_dict(load_file(file))
    return judge.eval()


@torch.inference_mode()
def accuracy(judge: Judge, images: Tensor, labels: Tensor) -> float:
    """Share of the pictures (N, 1, H, W) that the judge takes for what their labels (N,) say."""
    return float((judge(images).argmax(1) == labels).float().mean())


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


def nearest_distances(images: Tensor, references: Tensor) -> Tensor:
    """Euclidean distance from each picture to the nearest reference, pixel by pixel. Shape (N,)."""
    return torch.cdist(images.flatten(1), references.flatten(1)).min(1).values


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


def evaluate(
    denoiser: Denoise,
    *,
    data: str,
    judge: Judge | None = None,
    steps: int = 50,
    sampler: Sampler = ddim,
    draws: int = 4,
    extra: int = 200,
    seed: int = 0,
) -> Report:
    """Judge a class-conditional denoiser of the digits.

    Args:
        denoiser: a `Denoiser`, also a guided one.
        data: the data set it was trained on, such as "digits16".
        judge: None for the shipped one.
        steps: sampler steps.
        sampler: the sampler.
        draws: how many sets of samples, each with the labels of the held-out pictures.
        extra: further samples, for the accuracy alone.
        seed: of the first draw; the next ones count on.

    Raises:
        UserError: data without labels or without a judge.
    """
    train, test = load(data, "train"), load(data, "test")
    if test.labels is None or not data.startswith("digits"):
        raise UserError(f"There is no judge for {data!r}; there is one for the digits.")
    judge = judge or load_judge("digits")
    levels = denoiser.schedule.levels(steps)  # type: ignore[attr-defined]

    pictures, labels = [], []
    for draw in range(draws + 1):
        wanted = test.labels if draw < draws else torch.arange(extra) % 10
        if len(wanted):
            x = sample(denoiser, (len(wanted), *test.shape), levels, sampler=sampler,
                       cond=wanted, seed=seed + draw)  # fmt: skip
            pictures.append(to_float(to_uint8(x.cpu())))  # judged as they would be saved
            labels.append(wanted)
    everything, every_label = torch.cat(pictures), torch.cat(labels)
    n, n_test = len(everything), len(test)

    with torch.inference_mode():
        f_test = judge.features(test.floats())
        f_train = judge.features(train.floats())
        f_samples = judge.features(everything)
    drawn, drawn_labels = f_samples[: draws * n_test], every_label[: draws * n_test]
    distances = [frechet_distance(part, f_test) for part in drawn.split(n_test)]

    # Every set has the held-out set's number of each class: the distance is about the pictures,
    # not about which digits happened to be drawn.
    generator = keyed_generator(seed)
    assert train.labels is not None
    floors = torch.tensor(
        [
            frechet_distance(f_train[_like(test.labels, train.labels, generator)], f_test)
            for _ in range(200)
        ]
    )
    resampled = []
    for _ in range(200):
        again = [_like(test.labels, drawn_labels, generator, repeat=True) for _ in range(draws)]
        resampled.append(sum(frechet_distance(drawn[i], f_test) for i in again) / draws)
    quantiles = torch.tensor(resampled).quantile(torch.tensor([0.025, 0.975]))
    share = accuracy(judge, everything, every_label)
    reference = train.floats()
    return Report(
        n=n,
        accuracy=share,
        accuracy_interval=wilson_interval(share, n),
        judge_accuracy=accuracy(judge, test.floats(), test.labels),
        frechet=sum(distances) / draws,
        frechet_interval=(float(quantiles[0]), float(quantiles[1])),
        floor=float(floors.mean()),
        floor_std=float(floors.std()),
        nearest_ratio=float(
            nearest_distances(everything, reference).median()
            / nearest_distances(test.floats(), reference).median()
        ),
    )
