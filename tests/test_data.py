"""Pictures: ranges, the one split, batches keyed by step, and folders of every bad kind."""

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import sys
import tarfile
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from diffusion_lib import UserError, data
from diffusion_lib.data import (
    ImageSet,
    StreamedSet,
    cifar10,
    digits,
    fashion_mnist,
    image_folder,
    mnist,
    to_float,
    to_uint8,
)

# Real data, used where a machine has it.
REAL = Path(__file__).parents[2] / "shared" / "data"
needs = lambda name: pytest.mark.skipif(  # noqa: E731
    not (REAL / name).exists(), reason=f"no {name} on this machine"
)


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


def test_palette_pictures_have_their_colours(tmp_path: Path) -> None:
    """Their pixels are numbers of colours, no shades; one of the colours may be transparent."""
    red, green = (200, 10, 30), (20, 180, 90)
    index = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
    paletted = Image.fromarray(index, "P")
    paletted.putpalette([*red, *green])

    def found(channels: int | None = None) -> np.ndarray:
        (image,) = image_folder(tmp_path, 8, channels=channels).images  # type: ignore[arg-type, union-attr]
        return image.permute(1, 2, 0).numpy()

    paletted.save(tmp_path / "a.png")
    colours = np.array([red, green], np.uint8)[index]
    assert np.array_equal(found(), colours)
    assert np.array_equal(found(1)[..., 0], np.asarray(Image.fromarray(colours).convert("L")))
    paletted.save(tmp_path / "a.png", transparency=1)  # green, hidden
    assert np.array_equal(found(), np.array([red, (255,) * 3], np.uint8)[index])
    paletted.save(tmp_path / "a.png", transparency=bytes([255, 51]))  # green, a fifth of it
    fifth = [round(0.2 * c + 0.8 * 255) for c in green]
    assert np.array_equal(found(), np.array([red, fifth], np.uint8)[index])


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


# --- folders: odd pictures, large sets --------------------------------------------------------


def test_16_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    """Pillow's own conversion cuts off at 255: all but the darkest would come out white."""
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "a.png")
    found = image_folder(tmp_path, 8)
    assert found.shape == (1, 8, 8) and isinstance(found, ImageSet)
    assert found.images.unique().tolist() == [0x80]


def test_only_the_central_square_is_kept(tmp_path: Path) -> None:
    array = np.zeros((10, 40, 3), np.uint8)
    array[:, 15:25] = 200
    Image.fromarray(array).save(tmp_path / "wide.png")
    Image.fromarray(array.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    found = image_folder(tmp_path, 10)
    assert isinstance(found, ImageSet) and found.images.unique().tolist() == [200]


def test_bad_pictures_are_left_out_by_choice_and_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / name / "good.png", "RGB", (64, 64), ord(name))
    whole = (tmp_path / "b" / "good.png").read_bytes()
    (tmp_path / "b" / "good.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c" / "page.jpg").write_text("<html>")
    with pytest.raises(UserError, match='good.png can.t be read.*on_error="skip"'):
        image_folder(tmp_path, 8, channels=3)
    for limit in (2**30, 0):  # in memory, in files
        with pytest.warns(UserWarning, match=r"Left out 2 pictures.*b/good.png.*page.jpg") as told:
            found = image_folder(tmp_path, 8, on_error="skip", memory_limit=limit)
        assert len(told) == 1 and len(found) == 2
        assert found.class_names == ("a", "c")
        x, y = found.batch(0, 2)
        assert {(int(to_uint8(p).max()), int(k)) for p, k in zip(x, y, strict=True)} == {
            (ord("a"), 0), (ord("c"), 1)
        }  # fmt: skip
    (tmp_path / "a" / "good.png").write_bytes(b"")
    (tmp_path / "c" / "good.png").write_bytes(b"")
    with pytest.raises(UserError, match="None of the pictures"):
        image_folder(tmp_path, 8, channels=3, on_error="skip")
    with pytest.raises(UserError, match="Unknown on_error"):
        image_folder(tmp_path, 8, on_error="ignore")  # type: ignore[arg-type]


def twelve_pictures(folder: Path) -> tuple[ImageSet, StreamedSet]:
    """The same folder, once in memory and once streamed by two processes."""
    for k in range(12):
        picture(folder / "xyz"[k % 3] / f"{k}.png", "RGB", (8 + k, 9), 20 * k)
    whole = image_folder(folder, 8)
    streamed = image_folder(folder, 8, memory_limit=0)
    assert isinstance(whole, ImageSet) and isinstance(streamed, StreamedSet)
    return whole, data.replace(streamed, workers=2)


def two_workers(test):
    """Marks a test that starts two, whatever the machine: newer Pythons warn of the fork by which
    DataLoader starts them, and DataLoader itself where only one core may be used."""
    for message in (
        ".*use of fork.*:DeprecationWarning",
        "This DataLoader will create:UserWarning",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@two_workers
def test_a_streamed_set_gives_the_batches_of_one_in_memory(tmp_path: Path) -> None:
    whole, streamed = twelve_pictures(tmp_path)
    assert (len(streamed), streamed.shape, streamed.classes) == (12, whole.shape, 3)
    expected = [whole.batch(k, 5, seed=2) for k in range(6)]
    torch.manual_seed(4)
    before = torch.get_rng_state()
    for first in (0, 4):  # 4: a run that is resumed
        got = list(streamed.batches(range(first, 6), 5, seed=2))
        for (x, y), (x_, y_) in zip(got, expected[first:], strict=True):
            assert torch.equal(x, x_) and torch.equal(y, y_)
    assert torch.equal(torch.get_rng_state(), before)  # global random numbers are left alone
    part = list(streamed.batches(range(2), 4, part=slice(2, 4)))
    assert torch.equal(part[1][0], whole.batch(1, 4)[0][2:])
    assert torch.equal(part[1][0], list(whole.batches(range(2), 4, part=slice(2, 4)))[1][0])
    x, y = streamed.batch(3, 5, seed=2)
    assert torch.equal(x, expected[3][0]) and torch.equal(y, expected[3][1])


class WhoReads(data.ReadPicture):
    """Instead of a picture, the number of the process that reads it: 0 is this one."""

    def __call__(self, path: Path) -> torch.Tensor:
        worker = get_worker_info()
        number = 0 if worker is None else 1 + worker.id
        return torch.full((self.channels, self.size, self.size), number, dtype=torch.uint8)


@two_workers
def test_as_many_processes_read_as_are_asked_for(tmp_path: Path) -> None:
    _, streamed = twelve_pictures(tmp_path)
    for workers, readers in ((0, {0}), (1, {1}), (2, {1, 2})):
        spied = data.replace(streamed, workers=workers, read=WhoReads(8, 3))
        batches = list(spied.batches(range(6), 4))
        assert {int(n) for x, _ in batches for n in to_uint8(x).unique()} == readers


def test_batches_for_a_gpu_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = twelve_pictures(tmp_path)
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(data, "DataLoader", lambda source, **options: asked.append(options) or [])
    for device in ("cpu", "cuda"):  # no GPU is needed, since no batch is ever fetched
        assert list(streamed.to(device).batches(range(3), 4)) == []
    assert [options["pin_memory"] for options in asked] == [False, True]
    assert [options["num_workers"] for options in asked] == [2, 2]


@pytest.mark.parametrize("cores, workers", [(1, 1), (3, 3), (20, 8)])
def test_as_many_workers_as_cores_that_may_be_used(
    cores: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = partial(StreamedSet, "t", (tmp_path / "a.png",), data.ReadPicture(8, 3))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert make().workers == workers
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    assert make().workers == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # not known
    assert make().workers == 1


@two_workers
def test_a_picture_spoilt_during_training_is_named(tmp_path: Path) -> None:
    _, streamed = twelve_pictures(tmp_path)
    (tmp_path / "x" / "3.png").write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"The picture .*3.png can.t be read") as error:
        list(streamed.batches(range(3), 4))
    assert "Traceback" not in str(error.value)


def test_empty_streamed_set_and_bad_labels(tmp_path: Path) -> None:
    read = data.ReadPicture(8, 3)
    with pytest.raises(UserError, match="at least one picture"):
        StreamedSet("none", (), read)
    with pytest.raises(UserError, match="label 3 is out of"):
        StreamedSet("bad", (tmp_path / "a.png",), read, torch.tensor([3]), ("a", "b"))


# --- well-known sets, on small files in each one's own format ---------------------------------


def idx_files(folder: Path, n: int = 6) -> np.ndarray:
    """Files as of MNIST: a magic number, the sizes, the bytes. Gives the training pictures."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
    for split in ("train", "t10k"):
        head = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = bytes(k % 10 for k in range(n))
        head = struct.pack(">4BI", 0, 0, 8, 1, n)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(head + labels)
    return images


@pytest.mark.parametrize("make, theirs", [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_idx_files(make, theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    images = idx_files(tmp_path / theirs / "raw")
    found = make("train", tmp_path)
    assert found.shape == (1, 32, 32) and found.classes == 10
    assert np.array_equal(found.images[:, 0, 2:-2, 2:-2].numpy(), images)
    border = found.images.clone()
    border[:, :, 2:-2, 2:-2] = 0
    assert border.max() == 0 and found.labels.tolist() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    assert torch.equal(data.load(found.name, "test").images, found.images)  # type: ignore[attr-defined]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[np.ndarray, list]]:
    """A server on this machine, where MNIST is now looked for, with six pictures a split.

    Gives the pictures, and the list of what has been asked for so far.
    """
    from torchvision.datasets import MNIST, FashionMNIST

    images, asked = idx_files(tmp_path / "served"), []
    sums = []
    for file in sorted((tmp_path / "served").iterdir()):
        packed = gzip.compress(file.read_bytes(), mtime=0)
        file.with_name(f"{file.name}.gz").write_bytes(packed)
        sums.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
        file.unlink()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            if self.command == "GET":
                asked.append(self.path)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served"))
    ) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for kind in (MNIST, FashionMNIST):
            monkeypatch.setattr(kind, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
            monkeypatch.setattr(kind, "resources", sums)
        yield images, asked
        server.shutdown()


@pytest.mark.parametrize("make", [mnist, fashion_mnist])
def test_what_is_not_there_is_downloaded_once(make, served, tmp_path: Path) -> None:
    images, asked = served
    found = make("train", tmp_path / "new" / "place")
    assert np.array_equal(found.images[:, 0, 2:-2, 2:-2].numpy(), images)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5]
    files = {path.rpartition("/")[2] for path in asked}
    assert len(files) == 4 and "t10k-labels-idx1-ubyte.gz" in files
    before = len(asked)
    assert len(make("test", tmp_path / "new" / "place")) == 6
    assert len(asked) == before


def test_a_download_with_a_wrong_checksum(
    served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[41] It is not used, and a second try gets the right file."""
    from torchvision.datasets import MNIST

    file = tmp_path / "served" / "train-labels-idx1-ubyte.gz"
    right, wrong = file.read_bytes(), gzip.compress(bytes(14))
    file.write_bytes(wrong)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"MNIST is not whole in .*train-labels-idx1-ubyte.gz: .*corrupted"
        ):
            mnist("train", tmp_path)
    file.write_bytes(right)
    assert mnist("train", tmp_path).labels.tolist() == [0, 1, 2, 3, 4, 5]  # type: ignore[union-attr]
    monkeypatch.setattr(MNIST, "mirrors", [])  # what is there is enough
    assert len(mnist("train", tmp_path)) == 6


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"])
def test_one_changed_byte_is_noticed(name: str, served, tmp_path: Path) -> None:
    """[41] In a file that is there already, where what was downloaded has been kept."""
    mnist("train", tmp_path)
    path = tmp_path / "MNIST" / "raw" / name
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(UserError, match=f"{name.removesuffix('.gz')} is damaged.*delete what is"):
        mnist("train", tmp_path)
    shutil.rmtree(tmp_path / "MNIST")  # what the message says
    assert np.array_equal(mnist("train", tmp_path).images[:, 0, 2:-2, 2:-2].numpy(), served[0])


def test_cifar_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)

    def write(name: str, contents: dict[str, object]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(contents))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    names = [f"class {k}" for k in range(10)]
    parts = [write(f"data_batch_{k}", {"data": rows + k, "labels": [k, 9, 0, 3]}) for k in range(2)]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", parts)
    monkeypatch.setattr(
        CIFAR10, "test_list", [write("test_batch", {"data": rows, "labels": [1, 1, 2, 2]})]
    )
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    monkeypatch.setattr(CIFAR10, "url", "file:///nowhere/cifar.tar.gz")
    train, test = cifar10("train", tmp_path), cifar10("test", tmp_path)
    assert train.shape == (3, 32, 32) and train.class_names == tuple(names)
    assert train.labels.tolist() == [0, 9, 0, 3, 1, 9, 0, 3]  # type: ignore[union-attr]
    assert np.array_equal(test.images.flatten(1).numpy(), rows)  # red, green, blue; row by row
    (folder / "data_batch_1").write_bytes(b"changed")  # the checksum is wrong now
    with pytest.raises(UserError, match="CIFAR10 is not whole in"):
        cifar10("train", tmp_path)


def test_celeba_is_cut_to_the_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CelebA

    folder = tmp_path / "celeba"
    array = np.full((218, 178, 3), 250, np.uint8)
    array[39:179, 19:159] = 80  # the central square of 140 pixels
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{k:06}.png" for k in range(4)]
    for name in names:
        Image.fromarray(array).save(folder / "img_align_celeba" / name)

    def rows(head: str, values: str) -> str:
        return head + "".join(f"{name} {values}\n" for name in names)

    texts = {
        "list_eval_partition.txt": "".join(f"{n} {k // 2 * 2}\n" for k, n in enumerate(names)),
        "identity_CelebA.txt": rows("", "1"),
        "list_bbox_celeba.txt": rows("4\nid x y w h\n", "1 1 1 1"),
        "list_landmarks_align_celeba.txt": rows("4\n" + "x " * 10 + "\n", "1 " * 9 + "1"),
        "list_attr_celeba.txt": rows("4\nsmiling\n", "-1"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    sums = [("", hashlib.md5(text.encode()).hexdigest(), n) for n, text in texts.items()]
    monkeypatch.setattr(CelebA, "file_list", sums)
    train = data.celeba("train", tmp_path)
    assert (len(train), len(data.celeba("test", tmp_path))) == (2, 2)
    assert train.shape == (3, 64, 64) and train.labels is None
    x, labels = train.batch(0, 2)
    assert labels is None and to_uint8(x).unique().tolist() == [80]


def test_celeba_without_gdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[41] torchvision's download needs a package that is in no list of this project."""
    monkeypatch.setitem(sys.modules, "gdown", None)  # as if it were not installed
    with pytest.raises(UserError, match="CelebA is not whole in .*needs the package gdown") as told:
        data.celeba("train", tmp_path)
    words = str(told.value)
    for needed in ("`pip install gdown`", str(tmp_path / "celeba"), "img_align_celeba",
                   "identity_CelebA.txt", "list_eval_partition.txt"):  # fmt: skip
        assert needed in words
    assert ".zip" not in words


def test_celeba_that_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[41] The error that gdown raises when too many have asked is of no usual class."""

    class FileURLRetrievalError(Exception):
        pass

    def download(**_):
        raise FileURLRetrievalError(
            "Failed to retrieve file url:\n\nToo many users have viewed it."
        )

    gdown = ModuleType("gdown")
    gdown.download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    with pytest.raises(UserError, match=r"CelebA is not whole in .*file url: Too many users have"):
        data.celeba("train", tmp_path)


def test_no_connection_and_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[41] One message that says what to do, and no address is really asked."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["file:///nowhere/"])
    with pytest.raises(UserError, match="MNIST is not whole in .*set\nDIFFUSION_DATA|DIFFUSION_D"):
        mnist("train", tmp_path)
    idx_files(tmp_path / "half" / "MNIST" / "raw")
    spoilt = tmp_path / "half" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    spoilt.write_bytes(spoilt.read_bytes()[:1000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="MNIST is not whole in"):
            mnist("train", tmp_path / "half")
    with pytest.raises(UserError, match="'train' or 'test'"):
        mnist("dev", tmp_path)  # type: ignore[arg-type]


def test_where_downloads_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFUSION_DATA", raising=False)
    assert data.data_root() == Path.home() / ".cache" / "diffusion_lib"
    monkeypatch.setenv("DIFFUSION_DATA", "/elsewhere")
    assert data.data_root() == Path("/elsewhere")


@needs("MNIST")
def test_real_mnist() -> None:
    train, test = mnist("train", REAL), mnist("test", REAL)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels.bincount().tolist()[:3] == [5923, 6742, 5958]  # type: ignore[union-attr]
    # The published mean of the pixels, 0.1307 of 255, is that of the pictures without the border.
    assert train.images[:, :, 2:-2, 2:-2].float().mean() / 255 == pytest.approx(0.1307, abs=1e-4)


@needs("cifar10-jpeg.tar.xz")
def test_real_cifar_pictures(tmp_path: Path) -> None:
    """The first 60 of them: reading all would take too long for a test."""
    with tarfile.open(REAL / "cifar10-jpeg.tar.xz") as archive:
        found = 0
        while found < 60 and (member := archive.next()) is not None:
            if member.isfile():
                archive.extract(member, tmp_path, filter="data")
                found += 1
    (split,) = (p for p in tmp_path.rglob("*") if p.name in ("train", "test"))
    whole, streamed = image_folder(split, 32), image_folder(split, 32, memory_limit=0)
    assert whole.shape == streamed.shape == (3, 32, 32) and len(whole) == 60
    a, b = whole.batch(1, 40)[0], data.replace(streamed, workers=0).batch(1, 40)[0]  # type: ignore[type-var]
    assert torch.equal(a, b)
