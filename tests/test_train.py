"""Training: exact resumption, real kills, bad input, and nothing saved is ever lost."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from diffusion_lib import TrainConfig, Trainer, UserError, files, train
from diffusion_lib.data import ImageSet
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.noise import cosine, linear
from diffusion_lib.train import Speed
from diffusion_lib.unet import UNet, UNetConfig

NET = UNetConfig(channels=(8, 8), time_channels=16, classes=3, dropout=0.1)
CONFIG = TrainConfig(steps=8, batch_size=6, warmup=2, seed=5)
SHARED = TrainConfig(
    steps=6, batch_size=12, warmup=2, seed=5, accumulate=2, flip=True, drop_cond=0.3
)


def pictures() -> ImageSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 4, 4), generator=g, dtype=torch.uint8)
    return ImageSet("made", images, torch.arange(20) % 3, ("a", "b", "c"))


def trainer(config: TrainConfig = CONFIG, net: UNetConfig = NET, double: bool = False) -> Trainer:
    torch.manual_seed(1)
    unet = UNet(net)
    return Trainer(
        Denoiser(unet.double() if double else unet, linear(), classes=3), pictures(), config, "cpu"
    )


def everything(t: Trainer) -> list[torch.Tensor]:
    """Every tensor of the training state: net, average, optimiser."""
    tensors = [*t.denoiser.state_dict().values(), *t.ema.model.state_dict().values()]
    for state in t.optimizer.state_dict()["state"].values():
        tensors += [v for v in state.values() if isinstance(v, torch.Tensor)]
    return tensors


def same(a: Trainer, b: Trainer) -> bool:
    pairs = zip(everything(a), everything(b), strict=True)
    return a.step == b.step and all(torch.equal(x, y) for x, y in pairs)


def test_saved_and_loaded_equals_undisturbed(tmp_path: Path) -> None:
    """[32] N + save + load + N steps equal 2N, bit for bit; dropout and a fresh process state
    included."""
    whole = trainer()
    whole.fit()
    half = trainer()
    for now in half.steps():
        if now.step == 4:
            break
    half.save(tmp_path / "c.pt")
    torch.manual_seed(999)  # a resumed process has other random numbers behind it
    resumed = trainer()
    resumed.load(tmp_path / "c.pt")
    assert resumed.step == 4
    resumed.fit()
    assert resumed.step == 8 and same(whole, resumed)
    assert resumed.ema.updates == 8


def test_a_checkpoint_loaded_between_steps(tmp_path: Path) -> None:
    """Going back in the middle of `steps` also goes back in the data."""
    whole, back = trainer(), trainer()
    whole.fit()
    went_back = False
    for now in back.steps():
        if now.step == 2 and not went_back:
            back.save(tmp_path / "c.pt")
        if now.step == 5 and not went_back:
            back.load(tmp_path / "c.pt")
            went_back = True
    assert same(whole, back)


def test_another_seed_gives_other_weights() -> None:
    a, b = trainer(), trainer(replace(CONFIG, seed=6))
    a.fit()
    b.fit()
    assert not same(a, b)


def test_every_step_and_every_seed_draws_other_noise() -> None:
    """One picture and a net that stays at zero: only the noise can tell the losses apart."""
    one = ImageSet("one", torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    losses = []
    for seed in (1, 2):
        config = replace(CONFIG, learning_rate=0.0, seed=seed)
        unet = UNet(replace(NET, classes=None))
        losses += [s.loss.item() for s in Trainer(Denoiser(unet, linear()), one, config).steps()]
    assert len(set(losses)) == len(losses) == 16


@pytest.mark.parametrize("k", [2, 3])
def test_micro_batches_equal_one_batch(k: int) -> None:
    """[33] The gradient in float64. (No dropout: its masks depend on the order of the parts.)"""

    def gradient(accumulate: int) -> list[torch.Tensor]:
        net = replace(NET, dropout=0.0)
        config = replace(CONFIG, accumulate=accumulate, grad_clip=1e9, steps=1)
        t = trainer(config, net, double=True)
        list(t.steps())
        return [p.grad for p in t.denoiser.net.parameters()]  # type: ignore[misc]

    for one, many in zip(gradient(1), gradient(k), strict=True):
        assert torch.allclose(one, many, rtol=1e-9, atol=1e-12)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """[39] torchrun, gloo, float64: half the batch each, the weights of one process with all of it.

    With labels hidden, pictures mirrored, and each half once more split in two.
    """
    alone = trainer(SHARED, replace(NET, dropout=0.0), double=True)
    alone.fit()
    script = Path(__file__).with_name("shared_run.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shared = torch.load(tmp_path / "end.pt", weights_only=True)
    assert len(shared) == len(everything(alone))
    for a, b in zip(everything(alone), shared, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert [p.name for p in tmp_path.glob("*.pt")] == ["end.pt"]


def test_a_streamed_set_trains_the_same(tmp_path: Path) -> None:
    """The same pictures from files give the same weights, through a save and a load too."""
    from PIL import Image

    from diffusion_lib import image_folder

    for k, image in enumerate(pictures().images):
        (tmp_path / "abc"[k % 3]).mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "abc"[k % 3] / f"{k}.png")
    whole = image_folder(tmp_path, 4)
    streamed = replace(image_folder(tmp_path, 4, memory_limit=0), workers=0)

    def run(data) -> Trainer:  # type: ignore[no-untyped-def]
        torch.manual_seed(1)
        return Trainer(Denoiser(UNet(NET), linear(), classes=3), data, CONFIG, "cpu")

    a, half, b = run(whole), run(streamed), run(streamed)
    a.fit()
    for now in half.steps():
        if now.step == 3:
            half.save(tmp_path / "c.pt")
            break
    b.load(tmp_path / "c.pt")
    b.fit()
    assert same(a, b)


def test_mirrored_pictures_are_seen() -> None:
    """One picture, bright on the left: about half of the times it comes out bright on the right."""
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., :2] = 255
    seen: list[torch.Tensor] = []

    class Spy(UNet):
        def forward(self, x, t, cond=None):  # type: ignore[no-untyped-def]
            seen.append(x)
            return super().forward(x, t, cond)

    for flip in (False, True):
        seen.clear()
        config = replace(CONFIG, batch_size=32, steps=4, flip=flip)
        denoiser = Denoiser(Spy(replace(NET, classes=None)), linear())
        denoiser.schedule = linear(2, 1e-9, 1e-9)  # next to no noise
        Trainer(denoiser, ImageSet("one", image), config, "cpu").fit()
        right = (torch.cat(seen)[:, 0, 0, 3] > 0).float().mean()
        assert 0.3 < right < 0.7 if flip else right == 0


def test_speed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(replace(CONFIG, steps=100))
    lines: list[str] = []
    assert t.speed is None
    t.fit(report=lines.append)
    assert len(lines) == 1 and lines[0].startswith("step 50: loss ")
    assert "pictures/s" in lines[0] and "FLOP/s" in lines[0] and "left" in lines[0]
    speed = t.speed
    assert speed is not None and speed.seconds_left == 0 and speed.utilisation is None
    # A net of one 3 x 3 convolution from 1 to 1 channel: 2 x 9 operations for each of 16 pixels.
    conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    t.ema.model, t._flops = (lambda x, *_: conv(x)), None  # type: ignore[assignment]
    assert t._forward_flops() == 2 * 9 * 16
    assert t.speed.flops_per_second == pytest.approx(3 * 288 * t.speed.images_per_second)  # type: ignore[union-attr]


def test_speed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 steps of 6 pictures took 10 s, 2 MFLOP forward each, on a GPU that can do 1 GFLOP/s."""
    t = trainer(replace(CONFIG, steps=100, precision="bf16"))
    t.step, t._looks, t._flops = 60, [(10, 3.0), (60, 13.0)], 2_000_000
    monkeypatch.setattr(train, "_peak_flops", lambda device: 1e9)
    monkeypatch.setattr(train, "_memory_used", lambda device: 5 * 2**30)
    speed = Speed(
        images_per_second=30.0,  # 5 steps a second
        flops_per_second=180e6,  # forward once, backward twice
        utilisation=0.18,
        memory=5 * 2**30,
        seconds_left=8.0,  # 40 steps to go
    )
    assert t.speed == pytest.approx(speed)
    t.processes = 2  # the pictures are those of all, and so is the peak
    assert t.speed == pytest.approx(speed._replace(utilisation=0.09))
    t.precision = "fp32"  # the peaks known are those of half precision
    assert t.speed == speed._replace(utilisation=None)


@pytest.mark.parametrize(
    "speed, words",
    [
        (Speed(30.4, 180e6, None, None, 8.4), "30 pictures/s, 0.18 GFLOP/s, about 8 s left"),
        (Speed(1234.0, 999e9, None, 3 * 2**29, 119.0),
         "1,234 pictures/s, 999 GFLOP/s, 1.5 GiB, about 119 s left"),
        (Speed(5000.0, 247e12, 0.25, 40 * 2**30, 7100.0),
         "5,000 pictures/s, 247 TFLOP/s (25% of the GPU's peak), 40.0 GiB, about 118 min left"),
        (Speed(1.0, 1e9, None, 0, 9000.0),
         "1 pictures/s, 1 GFLOP/s, 0.0 GiB, about 2.5 h left"),
    ],
)  # fmt: skip
def test_speed_in_words(speed: Speed, words: str) -> None:
    assert str(speed) == words


def test_memory_used_is_counted_in_bytes() -> None:
    """This process holds PyTorch: more than 50 MiB, and less than the machine has."""
    used = train._memory_used(torch.device("cpu"))
    if not hasattr(os, "sysconf"):  # Windows
        assert used is None
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert used is not None and 50 * 2**20 < used < there


@pytest.mark.parametrize(
    "name, tera",
    [("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-40GB", 312),
     ("Tesla T4", 65), ("NVIDIA H100 PCIe", None), ("NVIDIA GeForce RTX 4090", None)],
)  # fmt: skip
def test_peaks_of_gpus(name: str, tera: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_lib.train import _peak_flops

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = _peak_flops(torch.device("cuda"))
    assert peak == (None if tera is None else tera * 1e12)
    assert _peak_flops(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
def test_a_step_never_waits_for_the_gpu(precision: str) -> None:
    """[38]"""
    config = replace(CONFIG, steps=40, flip=True, precision=precision)  # type: ignore[arg-type]
    t = Trainer(Denoiser(UNet(NET), linear(), classes=3), pictures(), config, "cuda")
    steps = t.steps()
    next(steps)  # the first one copies tables and makes the optimiser's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision, inside", [
    ("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16),
    ("fp16", torch.float16),
])  # fmt: skip
def test_the_net_works_at_the_precision_asked_for(precision: str, inside: torch.dtype) -> None:
    """On a CPU, where "auto" is fp32. The weights and their gradients stay fp32."""
    t = trainer(replace(CONFIG, steps=2, precision=precision))  # type: ignore[arg-type]
    seen: list[torch.dtype] = []
    t.denoiser.net.first.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    losses = [now.loss for now in t.steps()]
    assert seen == [inside, inside]
    assert {loss.dtype for loss in losses} == {torch.float32}
    for p in t.denoiser.net.parameters():
        assert p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32
    assert t.scaler.is_enabled() == (precision == "fp16")


def test_the_optimiser_is_fused() -> None:
    optimizer = trainer().optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["fused"] for group in optimizer.param_groups] == [True]


def test_compiling_changes_neither_weights_nor_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The "eager" backend traces the net as any other does, and needs no compiler of C++."""
    traced: list[int] = []

    def backend(graph, inputs):  # type: ignore[no-untyped-def]
        traced.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    plain, compiled = trainer(), trainer(replace(CONFIG, compile=True))
    plain.save(tmp_path / "plain.pt")
    assert not traced
    for now in compiled.steps():
        if now.step == 4:
            break
    assert traced
    compiled.save(tmp_path / "compiled.pt")
    a, b = (files.read_checkpoint(tmp_path / f"{n}.pt", "cpu") for n in ("plain", "compiled"))
    for part in ("net", "ema"):
        assert a[part].keys() == b[part].keys()
    assert a["net"].keys() == UNet(NET).state_dict().keys()
    plain.load(tmp_path / "compiled.pt")  # either goes on from the other's checkpoint
    plain.fit()
    compiled.fit()
    assert same(plain, compiled)
    whole = trainer()
    whole.fit()
    assert same(whole, compiled)


def test_loss_falls_and_the_average_follows() -> None:
    t = trainer(replace(CONFIG, steps=60, learning_rate=3e-3))
    losses = [now.loss.item() for now in t.steps()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert not t.average.training
    assert not torch.equal(t.average.net.last.weight, t.denoiser.net.last.weight)


def test_learning_rate_warms_up_and_decays() -> None:
    t = trainer(TrainConfig(steps=100, batch_size=6, warmup=10, learning_rate=1.0))
    assert t.learning_rate(1) == pytest.approx(0.1)
    assert t.learning_rate(5) < t.learning_rate(10) and t.learning_rate(100) < 0.001
    flat = trainer(TrainConfig(steps=100, batch_size=6, warmup=10, decay="none"))
    assert flat.learning_rate(100) == flat.learning_rate(10) == 1e-3


def test_global_random_numbers_are_left_alone() -> None:
    t = trainer()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    t.fit()
    assert torch.equal(torch.rand(2), expected)


# --- trouble ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_file(tmp_path: Path) -> None:
    """[41]"""
    t = trainer()
    it = t.steps()
    for _ in range(3):
        next(it)
    t.save(tmp_path / "c.pt")
    good = (tmp_path / "c.pt").read_bytes()
    with torch.no_grad():
        t.denoiser.net.first.weight.fill_(float("nan"))
    next(it)  # step 4, the first bad one
    next(it)
    with pytest.raises(UserError, match="in step 4"):
        t.save(tmp_path / "c.pt")
    with pytest.raises(UserError, match="in step 4.*smaller learning rate"):
        list(it)
    assert (tmp_path / "c.pt").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_fit_saves_before_it_stops(tmp_path: Path) -> None:
    t = trainer()
    real = t._one_step

    def interrupted(*batch):  # type: ignore[no-untyped-def]
        if t.step == 5:
            raise KeyboardInterrupt
        return real(*batch)

    t._one_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        t.fit(tmp_path / "c.pt")
    again = trainer()
    again.load(tmp_path / "c.pt")
    assert again.step == 5


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_checkpoint_cut_short(tmp_path: Path, keep: float) -> None:
    """[41]"""
    t = trainer()
    t.save(tmp_path / "c.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    before = [v.clone() for v in everything(t)]
    with pytest.raises(UserError, match="not a whole checkpoint"):
        t.load(tmp_path / "c.pt")
    assert all(torch.equal(a, b) for a, b in zip(before, everything(t), strict=True))


def test_a_missing_checkpoint_and_a_foreign_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no checkpoint"):
        trainer().load(tmp_path / "c.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="holds no state of a training run"):
        trainer().load(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(UserError, match="holds no training state"):
        trainer().load(tmp_path / "c.pt")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="Choose another place"):
        trainer().save(tmp_path / "file" / "c.pt")


class _Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch evil",)


def test_no_code_in_a_checkpoint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": _Evil()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        trainer().load(tmp_path / "c.pt")
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    """[41] The message names what differs."""
    trainer().save(tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"net's channels: \[8, 8\] there, \[8, 16\] here"):
        trainer(net=replace(NET, channels=(8, 16))).load(tmp_path / "c.pt")
    other = trainer()
    other.denoiser.schedule = cosine()
    with pytest.raises(UserError, match="another schedule's"):
        other.load(tmp_path / "c.pt")


def test_cuda_asked_for_and_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """[41]"""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no NVIDIA GPU here"):
        Trainer(Denoiser(UNet(NET), linear(), classes=3), pictures(), CONFIG, "cuda")


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="can't be split into 4"):
        trainer(replace(CONFIG, accumulate=4))
    with pytest.raises(UserError, match="Unknown precision"):
        trainer(replace(CONFIG, precision="int8"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="3 classes and the denoiser 4"):
        Trainer(Denoiser(UNet(NET), linear(), classes=4), pictures(), CONFIG, "cpu")


def test_a_full_disk(tmp_path: Path) -> None:
    """[41] The real error of a real full device, and the old file stays."""
    t = trainer()
    t.save(tmp_path / "c.pt")
    good = (tmp_path / "c.pt").read_bytes()

    def no_space(file) -> None:  # type: ignore[no-untyped-def]
        file.write(b"half of it")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"the rest")

    if os.path.exists("/dev/full"):
        with pytest.raises(UserError, match="The disk is full.*untouched"):
            files.write_atomically(tmp_path / "c.pt", no_space)
    assert (tmp_path / "c.pt").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_disk_that_fills_up_while_torch_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trainer()
    t.save(tmp_path / "c.pt")
    good = (tmp_path / "c.pt").read_bytes()

    def small_disk(path: Path, mode: str):  # type: ignore[no-untyped-def]
        file = open(path, mode, buffering=0)  # noqa: SIM115

        class Full:
            written = 0

            def write(self, data) -> int:  # type: ignore[no-untyped-def]
                self.written += len(data)
                if self.written > 2000:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return file.write(data)

            def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
                return getattr(file, name)

            def __enter__(self):  # type: ignore[no-untyped-def]
                return self

            def __exit__(self, *_) -> None:  # type: ignore[no-untyped-def]
                file.close()

        return Full()

    monkeypatch.setattr(files, "open", small_disk, raising=False)
    with pytest.raises(UserError, match="The disk is full"):
        t.save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


# --- kills -----------------------------------------------------------------------------------

RUN = [sys.executable, str(Path(__file__).with_name("killable_run.py"))]


def run(folder: Path, kill_after: float | None) -> float | None:
    """Train in a process of its own: seconds from the first step to the end, None if killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*RUN, str(folder)], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"training\n"
        began = time.perf_counter()
        try:
            assert process.wait(kill_after) == 0
            return time.perf_counter() - began
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return None


def kills_and_resumes(folder: Path, kills: int, seed: int) -> int:
    """Kill a run that saves after every step, `kills` times at random moments; it must end with
    the weights of an undisturbed run, and never leave a checkpoint that can't be read.

    Returns:
        How many kills struck a run that was under way.
    """
    length = run(folder / "undisturbed", None)
    assert length is not None
    dice = random.Random(seed)
    killed = 0
    # Short enough on average that the run is still under way at the last kill.
    while (
        run(folder / "killed", dice.uniform(0, length / kills) if killed < kills else None) is None
    ):
        killed += 1
        checkpoint = folder / "killed" / "checkpoint.pt"
        if checkpoint.exists():
            files.read_checkpoint(checkpoint)
    a, b = (torch.load(folder / n / "end.pt", weights_only=True) for n in ("undisturbed", "killed"))
    assert len(a) == len(b) > 50
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    return killed


def test_three_kills(tmp_path: Path) -> None:
    """[40]"""
    assert kills_and_resumes(tmp_path, kills=3, seed=0) == 3
