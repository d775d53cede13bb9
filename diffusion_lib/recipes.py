"""Named recipes: the data, net and training that go together, each reproducible by its name."""

from dataclasses import dataclass, field, replace

import torch

from .data import Pictures
from .denoiser import Denoiser
from .noise import linear
from .predict import Kind
from .train import TrainConfig
from .unet import UNet, UNetConfig


@dataclass(frozen=True)
class Recipe:
    """What to train and how.

    Attributes:
        data: name of the data set, see `data.load`.
        net: the UNet's shape; classes and channels are taken from the data.
        train: how to train it.
        kind: the prediction kind. All recipes use DDPM's linear schedule, T = 1000.
        labelled: whether the net is told the labels, where the data has any.
    """

    data: str
    net: UNetConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    kind: Kind = "eps"
    labelled: bool = True

    def denoiser(self, data: Pictures) -> Denoiser:
        """A fresh denoiser for the data, its weights fixed by the training's seed."""
        classes = data.classes if self.labelled else None
        config = replace(self.net, classes=classes, image_channels=data.shape[0])
        with torch.random.fork_rng([]):
            torch.manual_seed(self.train.seed)
            net = UNet(config)
        return Denoiser(
            net,
            linear(),
            self.kind,
            classes=classes,
            image_shape=data.shape,
            data=data.name,
        )


# The CIFAR-10 net of the DDPM paper (Ho et al. 2020, appendix B): 35.7 million parameters.
DDPM_CIFAR10 = UNetConfig(
    image_channels=3,
    channels=(128, 256, 256, 256),
    blocks=2,
    attention=(1,),
    groups=32,
    time_channels=512,
    dropout=0.1,
)

RECIPES: dict[str, Recipe] = {
    # The shipped models.
    "digits8": Recipe(
        "digits8",
        UNetConfig(channels=(32, 64), time_channels=96),
        TrainConfig(steps=4000, learning_rate=2e-3, ema_decay=0.998),
    ),
    "digits16": Recipe(
        "digits16",
        UNetConfig(channels=(24, 48, 64)),
        TrainConfig(steps=4000, learning_rate=2e-3, ema_decay=0.998),
    ),
    # Sized for one CPU core and about two hours.
    "mnist": Recipe(
        "mnist",
        UNetConfig(channels=(16, 32, 64)),
        TrainConfig(steps=50_000, batch_size=32, learning_rate=2e-3, ema_decay=0.999),
    ),
    # For one GPU: 6.5 and 11.5 million parameters, 200 thousand steps each.
    "cifar10": Recipe(
        "cifar10",
        UNetConfig(
            channels=(64, 128, 128),
            blocks=2,
            attention=(1,),
            heads=4,
            time_channels=256,
            dropout=0.1,
        ),
        TrainConfig(steps=200_000, learning_rate=5e-4, warmup=1000, flip=True),
    ),
    "faces64": Recipe(
        "celeba",
        UNetConfig(
            channels=(64, 96, 128, 192), blocks=2, attention=(2,), heads=4, time_channels=256
        ),
        TrainConfig(steps=200_000, learning_rate=3e-4, warmup=1000, flip=True),
    ),
    # DDPM on CIFAR-10 as in the paper (appendix B), without labels. (Its Adam has no weight decay
    # and decays its second moment by 0.999 a step, ours by 0.99.)
    "ddpm_cifar10": Recipe(
        "cifar10",
        DDPM_CIFAR10,
        TrainConfig(
            steps=800_000,
            learning_rate=2e-4,
            warmup=5000,
            decay="none",
            weight_decay=0.0,
            flip=True,
        ),
        labelled=False,
    ),
    # From nothing to digits in about a minute on two CPU cores.
    "demo": Recipe(
        "digits8",
        UNetConfig(channels=(32, 64), time_channels=96),
        TrainConfig(steps=800, learning_rate=2e-3, ema_decay=0.99),
    ),
}
