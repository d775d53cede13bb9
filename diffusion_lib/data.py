"""Pictures to train on: one small face, `ImageSet`, for every source.

Pictures are uint8 tensors, kept whole in memory and moved once to the device. A batch is a
function of (seed, step) alone, so a resumed run sees what an undisturbed one would have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import UserError
from .progress import progress

Split = Literal["train", "test"]


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]: the range a diffusion model works in."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 0..255; what lies outside is clipped. Undoes `to_float` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def keyed_generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by several integers, such as (seed, step): equal keys, equal numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class ImageSet:
    """A set of pictures, with or without labels.

    Attributes:
        name: such as "digits16"; shown and stored with checkpoints.
        images: uint8, (N, C, H, W).
        labels: int64 (N,) from 0 to classes - 1, or None.
        class_names: one name per class; empty without labels.
        levels: number of grey levels the pictures really use (17 for the digits).
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    levels: int = 256

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise UserError(
                f"{self.name}: pictures must be a uint8 tensor (N, C, H, W) with N > 0; got "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        if labels is not None:
            if labels.shape != (len(images),):
                raise UserError(f"{self.name}: {len(images)} pictures need as many labels.")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.class_names):
                raise UserError(
                    f"{self.name}: label {low if low < 0 else high} is out of range; there are "
                    f"{len(self.class_names)} classes, numbered from 0."
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int | None:
        """Number of classes, None without labels."""
        return len(self.class_names) or None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one picture."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def floats(self) -> Tensor:
        """All pictures as float32 in [-1, 1]. Shape (N, C, H, W)."""
        return to_float(self.images)

    def batch(self, step: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """The batch of training step `step`, counted from 0.

        The set is run through again and again, each time in a new order; a batch may reach over
        the end of one round. Depends on nothing but the arguments.

        Returns:
            Pictures in [-1, 1], (size, C, H, W), and their labels (size,) or None.
        """
        first = step * size
        positions = torch.arange(first, first + size)
        rounds = positions // len(self)
        index = torch.cat(
            [
                _order(len(self), seed, int(r))[positions[rounds == r] % len(self)]
                for r in rounds.unique()
            ]
        ).to(self.images.device, non_blocking=True)
        labels = None if self.labels is None else self.labels[index]
        return to_float(self.images[index]), labels


@lru_cache(maxsize=4)  # neighbouring steps share a round
def _order(n: int, seed: int, round_: int) -> Tensor:
    return torch.randperm(n, generator=keyed_generator(seed, round_))


def digits(size: Literal[8, 16] = 16, split: Split = "train") -> ImageSet:
    """Handwritten digits 0 to 9, bundled with scikit-learn: 1,797 grey pictures of 8 x 8.

    One stratified split serves the whole book: 1,347 to train on, 450 held out.

    Args:
        size: 8 for the original pictures, with their 17 grey levels; 16 for a smooth enlargement
            (bicubic).
        split: "train" or "test".

    Raises:
        UserError: another size or split.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if size not in (8, 16):
        raise UserError(f"The digits come in sizes 8 and 16, not {size}.")
    if split not in ("train", "test"):
        raise UserError(f"Unknown split {split!r}: use 'train' or 'test'.")
    source = load_digits()
    train, test = train_test_split(
        np.arange(len(source.target)), test_size=450, stratify=source.target, random_state=0
    )
    index = np.sort(train if split == "train" else test)
    images = torch.from_numpy(source.images[index]).float()[:, None] / 16  # 17 levels, 0 to 1
    if size == 16:
        images = torch.nn.functional.interpolate(
            images, scale_factor=2.0, mode="bicubic", align_corners=False
        )
    return ImageSet(
        name=f"digits{size}",
        images=to_uint8(images * 2 - 1),
        labels=torch.from_numpy(source.target[index]).long(),
        class_names=tuple(str(d) for d in range(10)),
        levels=17 if size == 8 else 256,
    )


_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def image_folder(
    folder: str | Path, size: int, *, channels: Literal[1, 3] | None = None
) -> ImageSet:
    """All pictures below a folder, cut to their central square and resized to size x size.

    Where the pictures lie in sub-folders, the first sub-folder's name is the class.

    Args:
        folder: where to look.
        size: height and width of the result.
        channels: 1 for grey, 3 for colour; None takes what the pictures have.

    Raises:
        UserError: the folder is missing or holds no picture, a picture can't be read (it is
            named), or grey and colour are mixed and `channels` is not given.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Check the path.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURE_ENDINGS)
    if not paths:
        raise UserError(
            f"No pictures in {folder}. They must end in one of {', '.join(_PICTURE_ENDINGS)}."
        )
    pictures = []
    for path in progress(paths, "reading pictures"):
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                grey = picture.mode in ("1", "L", "LA", "I", "I;16", "F")
                picture = _on_white(picture).convert("L" if grey else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"The picture {path} can't be read ({error}). Remove or replace it."
            ) from error
        if channels is not None:
            picture = picture.convert("L" if channels == 1 else "RGB")
        array = np.array(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))
        pictures.append(torch.from_numpy(array.reshape(size, size, -1)).permute(2, 0, 1))
    if len({len(p) for p in pictures}) > 1:
        raise UserError(
            f"{folder} mixes grey and colour pictures. Say which is wanted: channels=1 or "
            "channels=3."
        )
    parts = [p.relative_to(folder).parts for p in paths]
    names = sorted({part[0] for part in parts if len(part) > 1})
    labelled = all(len(part) > 1 for part in parts)
    labels = torch.tensor([names.index(part[0]) for part in parts]) if labelled else None
    return ImageSet(
        name=folder.name,
        images=torch.stack(pictures).contiguous(),
        labels=labels,
        class_names=tuple(names) if labelled else (),
    )


def _on_white(picture: Image.Image) -> Image.Image:
    """Transparent pictures on white, so that what lies hidden under the transparency stays so."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


# Every source by name: `DATASETS[name](split)` gives an `ImageSet`.
DATASETS: dict[str, Callable[[Split], ImageSet]] = {
    "digits8": lambda split: digits(8, split),
    "digits16": lambda split: digits(16, split),
}


def load(name: str, split: Split = "train") -> ImageSet:
    """A data set by its name.

    Raises:
        UserError: an unknown name.
    """
    if name not in DATASETS:
        raise UserError(f"Unknown data set {name!r}: use one of {', '.join(DATASETS)}.")
    return DATASETS[name](split)
