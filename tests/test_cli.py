"""The command line, as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lib import metrics, pretrained
from diffusion_lib.__main__ import main


def test_train_sample_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    short = ["train", "--data", "digits", "--size", "8", "--batch-size", "16", "--out", str(run)]
    assert main([*short, "--steps", "3", "--device", "cpu"]) == 0
    assert "1347 pictures of digits8" in capsys.readouterr().out
    assert {p.name for p in run.iterdir()} == {"checkpoint.pt", "model.safetensors"}
    assert main([*short, "--steps", "5", "--device", "cpu"]) == 0
    assert "going on from step 3" in capsys.readouterr().out

    png = tmp_path / "s.png"
    draw = ["sample", "--model", str(run), "--n", "20", "--steps", "2", "--out", str(png)]
    assert main(draw) == 0
    assert "20 samples" in capsys.readouterr().out
    with Image.open(png) as picture:
        assert picture.size == ((10 * 9 - 1) * 4, (2 * 9 - 1) * 4)

    assert main(["evaluate", "--model", str(run), "--steps", "1"]) == 0
    out = capsys.readouterr().out
    for words in ("class accuracy", "floor", "95%", "kernel distance", "precision, recall"):
        assert words in out


def test_evaluate_by_inception(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an extractor that needs no download; data of any kind, also without a judge."""
    from test_data import picture
    from test_metrics import _Halves

    inception = ["evaluate", "--features", "inception", "--steps", "1", "--model"]
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert main([*inception, "digits8"]) == 2
    assert "pip install torch-fidelity" in capsys.readouterr().err
    monkeypatch.setattr(metrics, "load_inception", lambda device: _Halves())
    assert main([*inception, "digits8", "--n", "20"]) == 0
    out = capsys.readouterr().out
    samples, real = out.split("floor, other real pictures in place of samples:\n")
    for part in (samples, real):
        assert "20 samples against 20 of digits8, train, by _Halves" in part
    fid = [float(line.split()[1]) for line in out.splitlines() if line.startswith("FID")]
    assert len(fid) == 2 and fid[0] > fid[1] > 0

    for k in range(12):
        picture(tmp_path / "mine" / f"{k}.png", "RGB", (20, 30))
    run = str(tmp_path / "run")
    train = ["train", "--data", str(tmp_path / "mine"), "--steps", "1", "--batch-size", "2"]
    assert main([*train, "--device", "cpu", "--out", run]) == 0
    assert main([*inception, run]) == 2
    assert "trained on 'mine', which is no named data set" in capsys.readouterr().err
    assert main(["evaluate", "--model", run]) == 2
    assert "no judge for 'mine'" in (error := capsys.readouterr().err)
    assert "--features inception" in error
    assert main([*inception, run, "--data", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "12 samples against 12 of mine, by _Halves" in out and "No floor" in out


def test_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_data import idx_files, picture

    assert main(["data", "digits", "--size", "8"]) == 0
    assert capsys.readouterr().out == (
        "digits8: 1,347 pictures, 1 x 8 x 8, 10 classes; 450 held out\n"
    )
    idx_files(tmp_path / "MNIST" / "raw", n=12)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    assert main(["data", "mnist"]) == 0
    assert "mnist: 12 pictures, 1 x 32 x 32, 10 classes; 12 held out" in capsys.readouterr().out

    picture(tmp_path / "mine" / "a.png", "RGB", (20, 30))
    drawn = tmp_path / "drawn.png"
    assert main(["data", str(tmp_path / "mine"), "--size", "16", "--out", str(drawn)]) == 0
    assert "mine: 1 pictures, 3 x 16 x 16, no labels\n" in capsys.readouterr().out
    with Image.open(drawn) as picture_drawn:
        assert picture_drawn.size == ((8 * 17 - 1) * 4, (8 * 17 - 1) * 4)


def test_train_on_a_named_set_and_on_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_data import idx_files, picture

    idx_files(tmp_path / "MNIST" / "raw", n=12)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    short = ["--steps", "1", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", "mnist", *short]) == 0
    assert "12 pictures of mnist, 681,009 parameters" in capsys.readouterr().out

    for name in ("a.png", "b.png", "c.jpg"):
        picture(tmp_path / "mine" / name, "RGB", (20, 30))
    (tmp_path / "mine" / "b.png").write_bytes(b"spoilt")
    folder = ["train", "--data", str(tmp_path / "mine"), "--size", "16", *short[:-1]]
    assert main([*folder, str(tmp_path / "run2")]) == 2
    assert "b.png can't be read" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="Left out 1 pictures"):
        assert main([*folder, str(tmp_path / "run2"), "--on-error", "skip"]) == 0
    assert "2 pictures of mine" in capsys.readouterr().out
    assert pretrained.load_denoiser(tmp_path / "run2" / "model.safetensors").image_shape == (
        3, 16, 16
    )  # fmt: skip


def test_sample_of_the_shipped_model(tmp_path: Path) -> None:
    png = tmp_path / "s.png"
    common = ["--n", "4", "--steps", "3", "--label", "7", "--out", str(png)]
    assert main(["sample", *common, "--guidance", "2", "--sampler", "dpmpp_2m"]) == 0
    first = png.read_bytes()
    assert main(["sample", *common, "--guidance", "2", "--sampler", "dpmpp_2m"]) == 0
    assert png.read_bytes() == first
    assert main(["sample", *common, "--eta", "1", "--seed", "2"]) == 0
    assert png.read_bytes() != first


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "digits16: 1 x 16 x 16, 10 classes" in capsys.readouterr().out
    assert main(["models", "digits16"]) == 0
    assert "## Recipe" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sample", "--model", "nothing"], "There is no model 'nothing'"),
        (["sample", "--label", "10"], "Label 10 is out of range"),
        (["sample", "--steps", "1001"], "at most 1000 steps"),
        (["sample", "--sampler", "heun", "--eta", "1"], "belongs to the sampler ddim"),
        (["train", "--data", "no/such/folder"], "no folder 'no/such/folder'"),
        (["train", "--data", "digits", "--size", "12"], "use one of digits8"),
        (["train", "--data", "celeba"], "CelebA is not whole in"),
        (["train", "--device", "cuda"], "no NVIDIA GPU here"),
        (["models", "cifar"], "There is no model 'cifar'"),
    ],
)
def test_bad_input_gets_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """[41] Exit code 2, one line, no traceback."""
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_DATA", "/dev/null/nowhere")  # nothing is downloaded
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_as_a_module() -> None:
    """Also proves that importing the library prints nothing and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "diffusion_lib", "models"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "" and done.stdout.startswith("digits16")
