"""Programs that run in the reader's browser: the sampler, the explorer and the mixture lab.

The sampler runs a model of the library. `python -m diffusion_lib.web digits16 --out digits16.js`
packs one into a script that it reads. Put a `{diffusion-sampler}` with `:model: digits16` on a page
and the book's build does it by itself (see book/_ext/apps.py).

`kernel.c` holds the heavy loops, built by `build.py` into `kernel.wasm`; `runtime.js` the network,
the samplers and torch's random numbers; `sampler.js` the controls. `explorer.js` and `lab.js` share
`kit.js`.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..denoiser import Denoiser
from ..errors import UserError
from ..files import write_atomically
from ..noise import DiscreteSchedule
from ..pretrained import load_pretrained
from ..train import describe
from ..unet import UNet
from .build import script

__all__ = ["contents", "export", "pack", "script"]


def contents(denoiser: Denoiser, dtype: torch.dtype = torch.float16) -> bytes:
    """All that the page needs to know about a denoiser, as one safetensors file.

    Args:
        denoiser: with a `UNet` and a known `image_shape`, on any schedule.
        dtype: of the weights. float32 draws what PyTorch draws to about 1e-5; float16 is half the
            size.

    Raises:
        UserError: a model that the page's runtime can't run.
    """
    net = denoiser.net
    if not isinstance(net, UNet):
        raise UserError(f"The page runs the library's UNet only, not a {type(net).__name__}.")
    if denoiser.image_shape is None:
        raise UserError("Say how large the pictures are: Denoiser(..., image_shape=(C, H, W)).")
    if any(width % 8 for width in net.config.channels):
        raise UserError(
            f"The page needs widths in multiples of 8, and this UNet has {net.config.channels}."
        )
    about: dict[str, Any] = describe(denoiser)
    about |= {"image_shape": denoiser.image_shape, "data": denoiser.data}
    tensors = {
        name: value.detach().cpu().to(dtype).contiguous()
        for name, value in net.state_dict().items()
    }
    if isinstance(denoiser.schedule, DiscreteSchedule):
        tensors["alpha_bars"] = denoiser.schedule.alpha_bars  # so that every schedule is known
    return save(tensors, metadata={"denoiser": json.dumps(about)})


def pack(name: str, file: bytes) -> str:
    """A safetensors file as a classic script, which a page can load from a disk as well.

    The high bytes of the weights are alike, the low ones are not: put apart, they deflate to
    about 85%. Base64 then takes a third more.
    """
    planes = file[::2] + file[1::2]
    data = base64.b64encode(zlib.compress(planes, 9)).decode()
    return f"(globalThis.DiffusionModels ??= {{}})[{json.dumps(name)}] =\n{json.dumps(data)};\n"


def export(name: str, path: str | Path) -> int:
    """Write a shipped model for the page; its size in bytes.

    Raises:
        UserError: an unknown name, or a model that the page's runtime can't run.
    """
    text = pack(name, contents(load_pretrained(name))).encode()
    write_atomically(path, lambda file: file.write(text) and None)
    return len(text)
