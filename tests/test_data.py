"""Pictures: ranges, the one split, batches keyed by step, and folders of every bad kind."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import UserError, data
from diffusion_lib.data import ImageSet, digits, image_folder, to_float, to_uint8


def test_all_256_values_survive_the_round_trip() -> None:
    """[37]"""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).min() == -1 and to_float(every).max() == 1
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("size", [8, 16])
def test_digits(size: int) -> None:
    train, test = digits(size, "train"), digits(size, "test")  # type: ignore[arg-type]
    assert train.images.shape == (1347, 1, size, size) and len(test) == 450
    assert train.classes == 10 and train.floats().min() == -1
    counts = test.labels.bincount()  # type: ignore[union-attr]
    assert counts.min() >= 43 and counts.max() <= 46  # stratified
    together = torch.cat([train.images, test.images]).flatten(1)
    assert len(together) == 1797


def test_original_digits_keep_their_17_grey_levels() -> None:
    assert len(digits(8).images.unique()) == digits(8).levels == 17


def test_the_split_never_moves() -> None:
    """Shipped models and figures rest on it; a new scikit-learn must not change it silently."""
    labels = digits(8, "test").labels.numpy().astype(np.uint8).tobytes()  # type: ignore[union-attr]
    pictures = digits(8, "test").images.numpy().tobytes()
    assert hashlib.sha256(labels + pictures).hexdigest()[:16] == "cd8bb7fc03283ea8"


def test_batches_depend_on_the_step_alone() -> None:
    pictures = ImageSet("t", torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1))
    first = [to_uint8(pictures.batch(k, 4, seed=3)[0]).flatten().tolist() for k in range(5)]
    again = [to_uint8(pictures.batch(k, 4, seed=3)[0]).flatten().tolist() for k in (4, 0, 2)]
    assert again == [first[4], first[0], first[2]]
    rounds = sum(first, [])
    assert sorted(rounds[:10]) == sorted(rounds[10:]) == list(range(10))  # each once a round
    assert rounds[:10] != rounds[10:]
    assert to_uint8(pictures.batch(0, 4, seed=4)[0]).flatten().tolist() != first[0]
    assert len(pictures.batch(0, 25)[0]) == 25  # more than there are


def test_labels_stay_with_their_pictures() -> None:
    pictures = ImageSet(
        "t",
        torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1),
        torch.arange(6),
        tuple("abcdef"),
    )
    x, y = pictures.batch(7, 5)
    assert torch.equal(to_uint8(x).flatten().long(), y)


@pytest.mark.parametrize(
    "images, labels, names, message",
    [
        (torch.zeros(2, 1, 4, 4), None, (), "uint8"),
        (torch.zeros(0, 1, 4, 4).byte(), None, (), "N > 0"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.tensor([0]), ("a",), "as many labels"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.tensor([0, 2]), ("a", "b"), "label 2 is out of"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.tensor([0, -1]), ("a", "b"), "label -1 is out of"),
    ],
)
def test_bad_sets(images, labels, names, message) -> None:  # type: ignore[no-untyped-def]
    """[41]"""
    with pytest.raises(UserError, match=message):
        ImageSet("t", images, labels, names)


def picture(path: Path, mode: str, size: tuple[int, int] = (9, 7), value: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fill = value if len(mode) == 1 else (value,) * (4 if mode == "RGBA" else 3)
    Image.new(mode, size, fill).save(path)


def test_folder_with_classes(tmp_path: Path) -> None:
    picture(tmp_path / "cats" / "1.png", "RGB")
    picture(tmp_path / "cats" / "2.jpg", "RGB", (20, 30))
    picture(tmp_path / "dogs" / "a.webp", "RGB")
    (tmp_path / "dogs" / "notes.txt").write_text("not a picture")
    found = image_folder(tmp_path, 8)
    assert found.images.shape == (3, 3, 8, 8) and found.class_names == ("cats", "dogs")
    assert found.labels.tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_folder_of_every_mode(tmp_path: Path) -> None:
    picture(tmp_path / "grey.png", "L")
    picture(tmp_path / "alpha.png", "RGBA")
    Image.new("P", (8, 8)).save(tmp_path / "palette.png")
    assert image_folder(tmp_path, 8, channels=3).shape == (3, 8, 8)
    assert image_folder(tmp_path, 8, channels=1).shape == (1, 8, 8)
    with pytest.raises(UserError, match="mixes grey and colour"):
        image_folder(tmp_path, 8)


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert image_folder(tmp_path, 8).images.unique().tolist() == [255]


def test_rotated_photos_stand_upright(tmp_path: Path) -> None:
    array = np.zeros((16, 16, 3), np.uint8)
    array[:8] = 255  # bright top
    photo = Image.fromarray(array)
    exif = photo.getexif()
    exif[0x0112] = 3  # the camera was held upside down
    photo.save(tmp_path / "a.png", exif=exif)
    top = image_folder(tmp_path, 16).images[0, 0, 0].float().mean()
    assert top < 10


@pytest.mark.parametrize("contents", [None, b"", b"\x89PNG broken", b"<html>"])
def test_bad_folders(tmp_path: Path, contents: bytes | None) -> None:
    """[41] Missing, empty, and with a picture that can't be read, which is named."""
    with pytest.raises(UserError, match="There is no folder"):
        image_folder(tmp_path / "nowhere", 8)
    with pytest.raises(UserError, match="No pictures in"):
        image_folder(tmp_path, 8)
    picture(tmp_path / "good.png", "RGB")
    if contents is None:  # cut short in the middle
        picture(tmp_path / "bad.png", "RGB", (64, 64))
        whole = (tmp_path / "bad.png").read_bytes()
        contents = whole[: len(whole) // 2]
    (tmp_path / "bad.png").write_bytes(contents)
    with pytest.raises(UserError, match="bad.png can't be read"):
        image_folder(tmp_path, 8)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="use one of digits8"):
        data.load("faces")
    with pytest.raises(UserError, match="sizes 8 and 16"):
        digits(12)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'train' or 'test'"):
        digits(8, "dev")  # type: ignore[arg-type]
