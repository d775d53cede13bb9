"""Pictures to train on: one small face, `Pictures`, for every source.

A small set, `ImageSet`, is one uint8 tensor, moved once to the device. A set too large for memory,
`StreamedSet`, stays in its files; worker processes read ahead of the training. For both a batch
is a function of (seed, step) alone, so a resumed run sees what an undisturbed one would have seen.
"""

import gzip
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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


Batch = tuple[Tensor, Tensor | None]  # pictures in [-1, 1], (B, C, H, W), and labels (B,)


class Pictures(ABC):
    """A set of pictures, with or without labels: an `ImageSet` or a `StreamedSet`.

    Attributes:
        name: such as "digits16"; shown and stored with checkpoints.
        labels: int64 (N,) from 0 to classes - 1, or None.
        class_names: one name per class; empty without labels.
    """

    name: str
    labels: Tensor | None
    class_names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one picture."""

    @property
    def classes(self) -> int | None:
        """Number of classes, None without labels."""
        return len(self.class_names) or None

    @abstractmethod
    def to(self, device: torch.device | str) -> "Pictures":
        """The same set, its batches on another device."""

    @abstractmethod
    def batch(self, step: int, size: int, seed: int = 0) -> Batch:
        """The batch of training step `step`, counted from 0.

        The set is run through again and again, each time in a new order; a batch may reach over
        the end of one round. Depends on nothing but the arguments.

        Returns:
            Pictures in [-1, 1], (size, C, H, W), and their labels (size,) or None.
        """

    def batches(
        self, steps: range, size: int, seed: int = 0, part: slice = slice(None)
    ) -> Iterator[Batch]:
        """The batches of several steps, one after the other.

        Args:
            part: the part of each batch that is wanted, where several processes share them.
        """
        for step in steps:
            images, labels = self.batch(step, size, seed)
            yield images[part], None if labels is None else labels[part]

    def _check_labels(self) -> None:
        """
        Raises:
            UserError: labels of the wrong number or out of range.
        """
        if self.labels is None:
            return
        if self.labels.shape != (len(self),):
            raise UserError(f"{self.name}: {len(self)} pictures need as many labels.")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise UserError(
                f"{self.name}: label {low if low < 0 else high} is out of range; there are "
                f"{len(self.class_names)} classes, numbered from 0."
            )


def batch_index(n: int, step: int, size: int, seed: int = 0) -> Tensor:
    """Which of n pictures are in the batch of a step, see `Pictures.batch`. int64 (size,)."""
    positions = torch.arange(step * size, (step + 1) * size)
    rounds = positions // n
    return torch.cat([_order(n, seed, int(r))[positions[rounds == r] % n] for r in rounds.unique()])


@lru_cache(maxsize=4)  # neighbouring steps share a round
def _order(n: int, seed: int, round_: int) -> Tensor:
    return torch.randperm(n, generator=keyed_generator(seed, round_))


@dataclass(frozen=True)
class ImageSet(Pictures):
    """A set of pictures in memory.

    Attributes:
        name, labels, class_names: see `Pictures`.
        images: uint8, (N, C, H, W).
        levels: number of grey levels the pictures really use (17 for the digits).
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    levels: int = 256

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise UserError(
                f"{self.name}: pictures must be a uint8 tensor (N, C, H, W) with N > 0; got "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        self._check_labels()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.images.shape[1:]
        return c, h, w

    def to(self, device: torch.device | str) -> "ImageSet":
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def floats(self) -> Tensor:
        """All pictures as float32 in [-1, 1]. Shape (N, C, H, W)."""
        return to_float(self.images)

    def batch(self, step: int, size: int, seed: int = 0) -> Batch:
        index = batch_index(len(self), step, size, seed)
        index = index.to(self.images.device, non_blocking=True)
        labels = None if self.labels is None else self.labels[index]
        return to_float(self.images[index]), labels


def usable_cores() -> int:
    """How many CPU cores this process may use: in a container, fewer than the machine has."""
    allowed = getattr(os, "sched_getaffinity", None)  # not there on macOS and Windows
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@dataclass(frozen=True)
class StreamedSet(Pictures):
    """A set of pictures in files, read when they are needed.

    Attributes:
        name, class_names: see `Pictures`.
        labels: see `Pictures`; they stay on the CPU.
        files: one a picture.
        read: turns a file into a uint8 picture (C, size, size).
        workers: processes that read ahead in `batches`; 0 reads in this one.
        device: where batches go.
    """

    name: str
    files: tuple[Path, ...]
    read: "ReadPicture"
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    workers: int = field(default_factory=lambda: min(8, usable_cores()))
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError(f"{self.name}: a set needs at least one picture.")
        self._check_labels()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.read.channels, self.read.size, self.read.size

    def to(self, device: torch.device | str) -> "StreamedSet":
        return replace(self, device=torch.device(device))

    def batch(self, step: int, size: int, seed: int = 0) -> Batch:
        return next(replace(self, workers=0).batches(range(step, step + 1), size, seed))

    def batches(
        self, steps: range, size: int, seed: int = 0, part: slice = slice(None)
    ) -> Iterator[Batch]:
        loader = DataLoader(
            _StepBatches(self, steps, size, seed, part),
            batch_size=None,  # an item is a whole batch already, that of one step
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # Its own, so that torch's global random numbers are left alone.
            generator=torch.Generator(),
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            images, labels = (part.to(self.device, non_blocking=True) for part in item)
            yield to_float(images), None if self.labels is None else labels


@dataclass(frozen=True)
class _StepBatches(Dataset[tuple[Tensor, Tensor] | UserError]):
    """Item k is the batch of the k-th step, as uint8: what a worker process is asked for.

    Or it is the error. One raised here would come out with the worker's traceback in its message.
    """

    source: StreamedSet
    steps: range
    size: int
    seed: int
    part: slice

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor] | UserError:
        source = self.source
        index = batch_index(len(source), self.steps[k], self.size, self.seed)[self.part]
        try:
            images = torch.stack([source.read(source.files[i]) for i in index.tolist()])
        except UserError as error:
            return error
        return images, index if source.labels is None else source.labels[index]


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


def data_root() -> Path:
    """Where downloaded data sets lie: $DIFFUSION_DATA, or ~/.cache/diffusion_lib."""
    return Path(os.environ.get("DIFFUSION_DATA") or Path.home() / ".cache" / "diffusion_lib")


def mnist(split: Split = "train", root: str | Path | None = None) -> ImageSet:
    """MNIST: 60,000 handwritten digits to train on, 10,000 held out (LeCun et al. 1998).

    The 28 x 28 pictures get a black border of 2 pixels. 32 can be halved five times, where 28 ends
    at an odd 7, and the sampler in the book's pages works on widths that are multiples of 4.

    The checksums are those of the packed files as they are published. So where these lie beside
    the unpacked ones, as after a download, every byte is checked; unpacked files alone are only
    checked for their sizes.

    Args:
        split: "train" or "test".
        root: folder to read from, and to download to where it holds no MNIST; None: `data_root()`.

    Raises:
        UserError: another split, a damaged copy there, or no copy and no connection.
    """
    return _idx_set("mnist", "MNIST", split, root, tuple(str(d) for d in range(10)))


def fashion_mnist(split: Split = "train", root: str | Path | None = None) -> ImageSet:
    """Fashion-MNIST: ten kinds of clothes in MNIST's format (Xiao et al. 2017); see `mnist`."""
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
             "bag", "ankle boot")  # fmt: skip
    return _idx_set("fashion_mnist", "FashionMNIST", split, root, names)


def _idx_set(
    name: str, theirs: str, split: Split, root: str | Path | None, class_names: tuple[str, ...]
) -> ImageSet:
    source = _from_torchvision(theirs, root, train=_is_train(split))
    images = torch.nn.functional.pad(source.data[:, None], (2, 2, 2, 2))
    return ImageSet(name, images, source.targets.long(), class_names)


def cifar10(split: Split = "train", root: str | Path | None = None) -> ImageSet:
    """CIFAR-10: 50,000 colour pictures of 32 x 32 to train on, 10,000 held out, in ten classes
    (Krizhevsky 2009). Arguments and errors as for `mnist`."""
    source = _from_torchvision("CIFAR10", root, train=_is_train(split))
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet("cifar10", images, torch.tensor(source.targets), tuple(source.classes))


def celeba(split: Split = "train", root: str | Path | None = None) -> StreamedSet:
    """CelebA: 162,770 photos of faces to train on, 19,962 held out (Liu et al. 2015), no labels.

    The aligned pictures of 178 x 218, their central square of 140 pixels resized to 64 x 64, as in
    Song et al. 2021 (Score SDE, appendix I). They stay in their files. Arguments and errors as for
    `mnist`; to download them the package gdown must be installed. Of the unpacked pictures nothing
    is checked before they are read.
    """
    _is_train(split)
    source = _from_torchvision("CelebA", root, split=split)
    folder = Path(source.root) / source.base_folder / "img_align_celeba"
    files = tuple(folder / name for name in source.filename)
    return StreamedSet("celeba", files, ReadPicture(64, 3, crop=140))


def _is_train(split: Split) -> bool:
    if split not in ("train", "test"):
        raise UserError(f"Unknown split {split!r}: use 'train' or 'test'.")
    return split == "train"


def _from_torchvision(name: str, root: str | Path | None, **options: Any) -> Any:
    """A data set of torchvision's, downloaded where need be; checksums are compared.

    Raises:
        UserError: it can't be had, or what lies there is damaged.
    """
    from torchvision import datasets

    root = Path(root) if root is not None else data_root()
    make = getattr(datasets, name)
    try:
        source = make(root, download=True, **options)
        _check_unpacked(source)
        return source
    # No connection, a folder that can't be written, a wrong checksum; gdown's own errors, which
    # share no class with others; and whatever a damaged file ends in.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = ": ".join(dict.fromkeys(line.rstrip(".:") for line in (lines[0], lines[-1])))
        if "'gdown' is required" in reason:
            lists = ", ".join(file for *_, file in make.file_list if file.endswith(".txt"))
            raise UserError(
                f"{name} is not whole in {root}, and its download needs the package gdown, which "
                "is not installed. Run `pip install gdown` and try again, or put the files there "
                f"by hand: into {root / make.base_folder} the unpacked folder img_align_celeba, "
                f"and beside it {lists}. They are linked from "
                "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
            ) from error
        raise UserError(
            f"{name} is not whole in {root} ({reason}). With a connection, delete what is there "
            "and try again; without one, copy it there, or set DIFFUSION_DATA to a folder that "
            "holds it."
        ) from error


def _check_unpacked(source: Any) -> None:
    """Compare files of MNIST's format with the packed ones they came from, where those are kept.

    torchvision only looks whether the unpacked files are there.

    Raises:
        RuntimeError: they differ, or a packed file is not the published one.
    """
    from torchvision.datasets.utils import check_integrity

    for file, md5 in getattr(source, "resources", ()):
        packed = Path(source.raw_folder) / file
        if packed.exists() and not (
            check_integrity(packed, md5)
            and gzip.decompress(packed.read_bytes()) == packed.with_suffix("").read_bytes()
        ):
            raise RuntimeError(f"{packed.with_suffix('').name} is damaged")


_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "F")  # Pillow's modes without colour

# What Pillow raises for a file that is no whole picture, or one too large to be one.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ReadPicture:
    """Reads a picture file: upright, on white, cut to its central square, resized.

    Attributes:
        size: height and width of the result.
        channels: 1 for grey, 3 for colour.
        crop: side of the central square to cut out, in pixels; None: the largest there is.
    """

    size: int
    channels: Literal[1, 3]
    crop: int | None = None

    def __call__(self, path: Path) -> Tensor:
        """The picture, uint8 (channels, size, size).

        Raises:
            UserError: it can't be read; the message names it.
        """
        try:
            with Image.open(path) as file:
                picture = _on_white(_eight_bits(ImageOps.exif_transpose(file)))
                picture = picture.convert("L" if self.channels == 1 else "RGB")
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        if self.crop is not None:
            left, top = ((side - self.crop) // 2 for side in picture.size)
            picture = picture.crop((left, top, left + self.crop, top + self.crop))
        square = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square).reshape(self.size, self.size, -1)).permute(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The picture {path} can't be read ({error}). Remove or replace it, or leave out all such "
        'pictures with on_error="skip".'
    )


def _is_grey(path: Path) -> bool:
    """Whether a picture has no colours, from its head alone."""
    try:
        with Image.open(path) as file:
            return file.mode in _GREY
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def image_folder(
    folder: str | Path,
    size: int,
    *,
    channels: Literal[1, 3] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    memory_limit: int = 2**30,
) -> ImageSet | StreamedSet:
    """All pictures below a folder, cut to their central square and resized to size x size.

    Where the pictures lie in sub-folders, the first sub-folder's name is the class. Photos are
    turned upright as their EXIF tag says; transparent pictures lie on white.

    Args:
        folder: where to look.
        size: height and width of the result.
        channels: 1 for grey, 3 for colour; None takes what the pictures have.
        on_error: what to do about pictures that can't be read: stop and name the first, or leave
            them out with a warning that names them.
        memory_limit: bytes; a set that would take more stays in its files.

    Returns:
        An `ImageSet`, or a `StreamedSet` above the memory limit.

    Raises:
        UserError: the folder is missing or holds no picture, a picture can't be read (it is
            named), or grey and colour are mixed and `channels` is not given.
    """
    folder = Path(folder)
    if on_error not in ("raise", "skip"):
        raise UserError(f"Unknown on_error {on_error!r}: use 'raise' or 'skip'.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Check the path.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURE_ENDINGS)
    if not paths:
        raise UserError(
            f"No pictures in {folder}. They must end in one of {', '.join(_PICTURE_ENDINGS)}."
        )
    bad: list[Path] = []

    def each(function: Callable[[Path], Any], label: str) -> list[Any]:
        """function(path) of every good path; the others are taken out of `paths`."""
        results = []
        for path in progress(list(paths), label):
            try:
                results.append(function(path))
            except UserError:
                if on_error == "raise":
                    raise
                bad.append(path)
                paths.remove(path)
        return results

    if channels is None:
        grey = set(each(_is_grey, "looking at pictures"))
        if len(grey) > 1:
            raise UserError(
                f"{folder} mixes grey and colour pictures. Say which is wanted: channels=1 or "
                "channels=3."
            )
        channels = 1 if grey == {True} else 3
    read = ReadPicture(size, channels)
    streamed = len(paths) * channels * size**2 > memory_limit
    if not streamed:
        pictures = each(read, "reading pictures")
    elif on_error == "skip":  # which ones to leave out must be known before the first batch
        each(lambda path: bool(len(read(path))), "checking pictures")
    if not paths:
        raise UserError(f"None of the pictures in {folder} can be read.")
    if bad:
        named = ", ".join(str(path) for path in sorted(bad)[:10]) + ", ..." * (len(bad) > 10)
        warnings.warn(f"Left out {len(bad)} pictures that can't be read: {named}.", stacklevel=2)
    parts = [p.relative_to(folder).parts for p in paths]
    names = sorted({part[0] for part in parts if len(part) > 1})
    labelled = all(len(part) > 1 for part in parts)
    labels = torch.tensor([names.index(part[0]) for part in parts]) if labelled else None
    class_names = tuple(names) if labelled else ()
    if streamed:
        return StreamedSet(folder.name, tuple(paths), read, labels, class_names)
    return ImageSet(folder.name, torch.stack(pictures).contiguous(), labels, class_names)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits: Pillow would cut off what is above 255, which leaves white."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture) / 257).round().clip(0, 255).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    """Transparent pictures on white, so that what lies hidden under the transparency stays so."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


# Every source by name: `DATASETS[name](split)` gives it.
DATASETS: dict[str, Callable[[Split], Pictures]] = {
    "digits8": lambda split: digits(8, split),
    "digits16": lambda split: digits(16, split),
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "celeba": celeba,
}


def load(name: str, split: Split = "train") -> Pictures:
    """A data set by its name.

    Raises:
        UserError: an unknown name.
    """
    if name not in DATASETS:
        raise UserError(f"Unknown data set {name!r}: use one of {', '.join(DATASETS)}.")
    return DATASETS[name](split)
