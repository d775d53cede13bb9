"""diffusion_lib: diffusion models in a few small pieces, each of which can be read on its own.

Data flows one way: data -> noise -> denoiser(net) -> train -> checkpoint -> samplers(guidance)
-> metrics, viz.
"""

from . import (
    checks,
    data,
    guidance,
    likelihood,
    metrics,
    noise,
    predict,
    pretrained,
    results,
    samplers,
    toy,
    train,
    viz,
    widgets,
)
from .data import ImageSet, digits, image_folder
from .denoiser import NO_CLASS, Denoiser, training_loss
from .ema import EMA
from .errors import UserError
from .guidance import cfg, clip
from .likelihood import Ledger, vlb
from .metrics import evaluate, frechet_distance, load_judge
from .noise import Level, cosine, edm, flow, linear, quadratic, rescale_zero_terminal_snr, sigmoid
from .pretrained import load_denoiser, load_pretrained, save_denoiser
from .samplers import Step, ddim, ddpm, dpmpp_2m, heun, invert, sample, step
from .toy import GaussianMixture
from .train import TrainConfig, Trainer
from .unet import UNet, UNetConfig

__version__ = "0.1.0"

__all__ = [
    "EMA", "NO_CLASS", "Denoiser", "GaussianMixture", "ImageSet", "Ledger", "Level", "Step",
    "TrainConfig", "Trainer", "UNet", "UNetConfig", "UserError", "cfg", "checks", "clip", "cosine",
    "data", "ddim", "ddpm", "digits", "dpmpp_2m", "edm", "evaluate", "flow", "frechet_distance",
    "guidance", "heun", "image_folder", "invert", "likelihood", "linear", "load_denoiser",
    "load_judge", "load_pretrained", "metrics", "noise", "predict", "pretrained", "quadratic",
    "rescale_zero_terminal_snr", "results", "sample", "samplers", "save_denoiser", "sigmoid",
    "step", "toy", "train", "training_loss", "viz", "vlb", "widgets",
]  # fmt: skip
