"""Trained denoisers in files: weights as safetensors, everything else as text beside them.

A file holds the averaged weights and, in its header, all that is needed to build the denoiser
around them. The shipped ones lie in `checkpoints/`, each with a model card.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .denoiser import Denoiser
from .errors import UserError
from .files import write_atomically
from .noise import make_schedule
from .train import describe
from .unet import UNet, UNetConfig


def folder() -> Path:
    """Where the shipped checkpoints lie."""
    return Path(str(resources.files("diffusion_lib"))) / "checkpoints"


def available() -> list[str]:
    """Names of the shipped models: those with a card, which is written when they are measured."""
    return sorted(p.stem for p in folder().glob("*.safetensors") if p.with_suffix(".md").is_file())


def card(name: str) -> str:
    """A shipped model's card: data, licence, recipe, figures."""
    return _shipped(name).with_suffix(".md").read_text(encoding="utf-8")


def load_pretrained(name: str, device: torch.device | str = "cpu") -> Denoiser:
    """A shipped denoiser, ready to sample from: `.schedule`, `.classes` and `.image_shape` are set.

    Raises:
        UserError: an unknown name.
    """
    return load_denoiser(_shipped(name), device)


def _shipped(name: str) -> Path:
    if name not in available():
        raise UserError(f"There is no model {name!r}. There are: {', '.join(available())}.")
    return folder() / f"{name}.safetensors"


def save_denoiser(
    denoiser: Denoiser, path: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a denoiser with a `UNet` to one safetensors file, whole or not at all.

    Args:
        dtype: of the stored weights; torch.float16 halves the file.
    """
    about: dict[str, Any] = describe(denoiser)
    about |= {"image_shape": denoiser.image_shape, "data": denoiser.data}
    weights = {
        name: value.detach().cpu().to(dtype).contiguous()
        for name, value in denoiser.net.state_dict().items()
    }
    contents = save(weights, metadata={"denoiser": json.dumps(about)})
    write_atomically(path, lambda file: file.write(contents) and None)


def load_denoiser(path: str | Path, device: torch.device | str = "cpu") -> Denoiser:
    """A denoiser that `save_denoiser` wrote, in float32 and eval mode.

    Raises:
        UserError: no such file, a damaged one, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no model file {path}. Check the path, or train one first.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["denoiser"])
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole model file of this library: it was cut short, or another "
            "program wrote it."
        ) from error
    net = UNet(UNetConfig(**about["net"]))
    net.load_state_dict(weights)
    denoiser = Denoiser(
        net,
        make_schedule(about["schedule"]),
        about["kind"],
        classes=about["classes"],
        image_shape=tuple(about["image_shape"]) if about["image_shape"] else None,
        data=about["data"],
    )
    denoiser = denoiser.eval().requires_grad_(False)
    return denoiser.to(torch.device(device), memory_format=torch.channels_last)
