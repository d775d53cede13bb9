"""Named recipes: the data, net and training that go together, each reproducible by its name."""

from dataclasses import dataclass, field, replace

import torch

from .data import ImageSet
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
    """

    data: str
    net: UNetConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    kind: Kind = "eps"

    def denoiser(self, data: ImageSet) -> Denoiser:
        """A fresh denoiser for the data, its weights fixed by the training's seed."""
        config = replace(self.net, classes=data.classes, image_channels=data.shape[0])
        with torch.random.fork_rng([]):
            torch.manual_seed(self.train.seed)
            net = UNet(config)
        return Denoiser(
            net,
            linear(),
            self.kind,
            classes=data.classes,
            image_shape=data.shape,
            data=data.name,
        )


RECIPES: dict[str, Recipe] = {
    # The two shipped models.
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
    # From nothing to digits in about a minute on two CPU cores.
    "demo": Recipe(
        "digits8",
        UNetConfig(channels=(32, 64), time_channels=96),
        TrainConfig(steps=800, learning_rate=2e-3, ema_decay=0.99),
    ),
}

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
