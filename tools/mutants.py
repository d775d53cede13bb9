"""Break each guarded formula, one at a time, and see its tests go red.

    python tools/mutants.py [WORD]

Each mutant replaces one piece of a file in a copy of the library and runs the named test file
against the copy. A mutant that survives is a formula no test guards. WORD picks mutants whose
file or replacement holds it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """In diffusion_lib/`file`, `right` becomes `wrong`; tests/`test` must fail."""

    file: str
    right: str
    wrong: str
    test: str


MUTANTS = [
    # noise schedules
    Mutant("noise.py", "(1 - self.alpha_bars).sqrt()])", "(1 - self.alpha_bars)])", "test_noise.py"),
    Mutant("noise.py", "betas = betas.double()", "betas = betas.float()", "test_noise.py"),
    Mutant("noise.py", "math.pi / 2).cos() ** 2", "math.pi / 2).cos()", "test_noise.py"),
    Mutant("noise.py", "(t / T + s) / (1 + s)", "(t / T + s)", "test_noise.py"),
    Mutant("noise.py", "return DiscreteSchedule(\n        roots**2,", "return DiscreteSchedule(\n        roots,", "test_noise.py"),
    Mutant("noise.py", "alpha_bars = (curve[-1] - curve)", "alpha_bars = (curve[-1] - curve**2)", "test_noise.py"),
    Mutant("noise.py", "(signal[1:] - last) * first / (first - last)", "(signal[1:] - last)", "test_noise.py"),
    Mutant("noise.py", "times.new_zeros(1)", "times.new_ones(1)", "test_noise.py"),
    Mutant("noise.py", "1 + torch.arange(n).flip(0)", "torch.arange(n).flip(0)", "test_noise.py"),
    Mutant("noise.py", "torch.randint(1, self.T + 1,", "torch.randint(1, self.T,", "test_noise.py"),
    Mutant("noise.py", "torch.randint(1, self.T + 1,", "torch.randint(0, self.T + 1,", "test_noise.py"),
    Mutant("noise.py", "(low + u * (high - low)) ** rho", "low + u * (high - low)", "test_noise.py"),
    Mutant("noise.py", "return 2 * (self.signal.log()", "return (self.signal.log()", "test_noise.py"),
    # prediction kinds
    Mutant("predict.py", "return -noise, signal", "return noise, signal", "test_predict.py"),
    Mutant("predict.py", "return -one, one", "return one, -one", "test_predict.py"),
    Mutant("predict.py", "(b * x_t - level.noise * out) / det", "(b * x_t + level.noise * out) / det", "test_predict.py"),
    Mutant("predict.py", "(level.signal * out - a * x_t) / det", "(level.signal * out - a * x_t)", "test_predict.py"),
    Mutant("predict.py", "on_x0 = level.snr.clamp(max=gamma)", "on_x0 = level.snr", "test_predict.py"),
    Mutant("predict.py", "(level.noise * SIGMA_DATA) ** 2\n", "(level.noise * SIGMA_DATA)\n", "test_predict.py"),
    Mutant("predict.py", "determinant(kind, level)) ** 2", "determinant(kind, level))", "test_predict.py"),
    Mutant("predict.py", "-signal * SIGMA_DATA**2 / scale", "-signal * SIGMA_DATA / scale", "test_predict.py"),
    # denoiser and loss
    Mutant("denoiser.py", "level.signal * x0 + level.noise * eps\n", "level.signal * x0 + eps\n", "test_denoiser.py"),
    Mutant("denoiser.py", "level.noise.log() / 4", "level.noise.log() / 2", "test_denoiser.py"),
    Mutant("denoiser.py", "time = 1000 * level.t", "time = level.t", "test_denoiser.py"),
    Mutant("denoiser.py", ".flatten() * per_example)", ".flatten() * 0 + per_example)", "test_denoiser.py"),
    Mutant("denoiser.py", ") < probability", ") > probability", "test_denoiser.py"),
    # samplers
    Mutant("samplers.py", "(to.noise**2 - nu**2).sqrt() * eps", "to.noise * eps", "test_samplers.py"),
    Mutant("samplers.py", "torch.where(to.noise > 0, scale, 0)", "scale", "test_samplers.py"),
    Mutant("samplers.py", "(1 - ratio**2)", "(1 - ratio)", "test_samplers.py"),
    Mutant("samplers.py", "(1 - (now.signal / to.signal) ** 2).sqrt()", "(1 - (now.signal / to.signal) ** 2)", "test_samplers.py"),
    Mutant("samplers.py", "return (x - level.signal * x0) / level.noise", "return (x - x0) / level.noise", "test_samplers.py"),
    Mutant("samplers.py", "nu=eta * posterior_nu(now, to)", "nu=posterior_nu(now, to)", "test_samplers.py"),
    Mutant("samplers.py", "/ (2 * r)", "/ r", "test_samplers.py"),
    Mutant("samplers.py", "step(ahead, eps_from(x, ahead, now), to)", "step(ahead, eps_from(x, x0, now), to)", "test_samplers.py"),
    Mutant("samplers.py", "if last is not None and to.noise > 0:", "if last is not None:", "test_samplers.py"),
    Mutant("samplers.py", "step(x0_from(x, mean_eps, now), mean_eps, to)", "step(x0, mean_eps, to)", "test_samplers.py"),
    Mutant("samplers.py", "if now.signal > 0 and to.noise > 0:", "if True:", "test_samplers.py"),
    Mutant("samplers.py", "pairwise(reversed(levels[:-1]))", "pairwise(reversed(levels[1:-1]))", "test_samplers.py"),
    Mutant("samplers.py", "(level.signal**2 + level.noise**2).sqrt()", "level.noise**2", "test_samplers.py"),
    Mutant("samplers.py", "(labels >= classes)", "(labels > classes)", "test_samplers.py"),
    # guidance
    Mutant("guidance.py", "return unconditional + scale", "return conditional + scale", "test_guidance.py"),
    Mutant("guidance.py", "return unconditional + scale * (conditional - unconditional)", "return scale * conditional + (scale - 1) * unconditional", "test_guidance.py"),
    # oracle
    Mutant("toy.py", "signal**2 * self.stds**2 + level.noise.double() ** 2", "signal * self.stds**2 + level.noise.double() ** 2", "test_toy.py"),
    Mutant("toy.py", "x.shape[-1] * (2 * math.pi * variance).log()", "(2 * math.pi * variance).log()", "test_toy.py"),
    Mutant("toy.py", "(signal * self.stds**2 / variance)", "(self.stds**2 / variance)", "test_toy.py"),
    Mutant("toy.py", "pull = -self._away", "pull = self._away", "test_toy.py"),
    # the variational bound
    Mutant("likelihood.py", "0.5 * (to.snr - now.snr)", "(to.snr - now.snr)", "test_likelihood.py"),
    Mutant("likelihood.py", "0.5 * (to.snr - now.snr)", "0.5 * (to.snr - now.snr) / to.snr", "test_likelihood.py"),
    Mutant("likelihood.py", "(now.noise / determinant(kind, now)) ** 2", "(determinant(kind, now) / now.noise) ** 2", "test_likelihood.py"),
    Mutant("likelihood.py", "now, to = at(index), at(index + 1)", "now, to = at(index + 1), at(index)", "test_likelihood.py"),
    Mutant("likelihood.py", "total = len(levels) - 2", "total = len(levels) - 3", "test_likelihood.py"),
    Mutant("likelihood.py", "(edges[k + 1] - edges[k]) * cost", "cost", "test_likelihood.py"),
    Mutant("likelihood.py", "torch.randint(edges[k], edges[k + 1],", "torch.randint(edges[k], edges[k] + 1,", "test_likelihood.py"),
    Mutant("likelihood.py", "keyed_generator(seed, k)", "keyed_generator(seed)", "test_likelihood.py"),
    Mutant("likelihood.py", "/ variance - 1 - (noise2", "/ variance - (noise2", "test_likelihood.py"),
    Mutant("likelihood.py", "(signal2 * square + noise2) / variance", "signal2 * square + noise2", "test_likelihood.py"),
    Mutant("likelihood.py", "torch.where(grey == 0, -math.inf, low)", "low", "test_likelihood.py"),
    Mutant("likelihood.py", "torch.where(grey == grey_levels - 1, math.inf, high)", "high", "test_likelihood.py"),
    Mutant("likelihood.py", "(2 * grey - 1) / (grey_levels - 1)", "(2 * grey - 2) / (grey_levels - 1)", "test_likelihood.py"),
    Mutant("likelihood.py", "2 * (grey_levels - 1)).round()", "2 * (grey_levels - 1))", "test_likelihood.py"),
    Mutant("likelihood.py", "torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)", "low, high", "test_likelihood.py"),
    Mutant("likelihood.py", "/ variance.sqrt()\n    high", "/ variance\n    high", "test_likelihood.py"),
    Mutant("likelihood.py", "(x0 - estimate) ** 2 / variance)", "(x0 - estimate) ** 2 / variance.sqrt())", "test_likelihood.py"),
    Mutant("likelihood.py", "levels[-2].noise ** 2 if", "levels[-3].noise ** 2 if", "test_likelihood.py"),
    Mutant("likelihood.py", "self.nats / (self.dims * math.log(2))", "self.nats / self.dims", "test_likelihood.py"),
    Mutant("likelihood.py", "self.prior + self.steps.sum(0) + self.decoder", "self.steps.sum(0) + self.decoder", "test_likelihood.py"),
    # network
    Mutant("unet.py", "_zeroed(nn.Conv2d(c, config.image_channels, 3, padding=1))", "nn.Conv2d(c, config.image_channels, 3, padding=1)", "test_unet.py"),
    Mutant("unet.py", "q, k, v = qkv", "k, q, v = qkv", "test_unet.py"),
    Mutant("unet.py", "self.norm2(h) * (1 + scale) + shift", "self.norm2(h) * scale + shift", "test_unet.py"),
    Mutant("unet.py", "torch.exp(-math.log(max_period) * exponents)", "torch.exp(-exponents)", "test_unet.py"),
    Mutant("unet.py", "return embedding + self.class_embedding(row)", "return embedding", "test_unet.py"),
    Mutant("unet.py", "else cond + 1", "else cond.clamp(min=0)", "test_unet.py"),
    # moving average
    Mutant("ema.py", "theirs, 1 - self.decay)", "theirs, self.decay)", "test_ema.py"),
    Mutant("ema.py", "warmup_power: float | None = 2 / 3", "warmup_power: float | None = 1 / 3", "test_ema.py"),
    Mutant("ema.py", "mine.copy_(other)", "mine.lerp_(other.to(mine), 0.5)", "test_ema.py"),
    # data
    Mutant("data.py", "images.float() / 127.5 - 1", "images.float() / 128 - 1", "test_data.py"),
    Mutant("data.py", "* 127.5).round()", "* 127.5)", "test_data.py"),
    Mutant("data.py", "keyed_generator(seed, round_)", "keyed_generator(seed)", "test_data.py"),
    Mutant("data.py", "picture = ImageOps.exif_transpose(file)", "picture = file", "test_data.py"),
    # measures
    Mutant("metrics.py", "cov2.trace() - 2 * cross", "cov2.trace() - cross", "test_metrics.py"),
    Mutant("metrics.py", "(mean1 - mean2).square().sum()", "(mean1 - mean2).abs().sum()", "test_metrics.py"),
    Mutant("metrics.py", "z**2 / (2 * n)) / (1", "z**2 / n) / (1", "test_metrics.py"),
    Mutant("metrics.py", "return (x @ y.T / x.shape[1] + 1) ** 3", "return (x @ y.T + 1) ** 3", "test_metrics.py"),
    Mutant("metrics.py", "return (x @ y.T / x.shape[1] + 1) ** 3", "return (x @ y.T / x.shape[1] + 1) ** 2", "test_metrics.py"),
    Mutant("metrics.py", "(k.sum() - k.trace()) / (len(x) * (len(x) - 1))", "k.sum() / len(x) ** 2", "test_metrics.py"),
    Mutant("metrics.py", "- 2 * kernel(a, b).mean()", "- kernel(a, b).mean()", "test_metrics.py"),
    Mutant("metrics.py", "entropies = -torch.special.entr(p).sum(1)", "entropies = -torch.special.entr(p).sum(1) / 2", "test_metrics.py"),
    Mutant("metrics.py", "torch.special.entr(p.mean(0)).sum()).exp()", "torch.special.entr(p.mean(0)).sum())", "test_metrics.py"),
    Mutant("metrics.py", "kthvalue(k + 1, 1)", "kthvalue(k, 1)", "test_metrics.py"),
    Mutant("metrics.py", "return covered(samples, real), covered(real, samples)", "return covered(real, samples), covered(samples, real)", "test_metrics.py"),
    Mutant("metrics.py", "radii = distances(centres, centres)", "radii = distances(centres, points)", "test_metrics.py"),
    Mutant("metrics.py", "inception.update(scores)", "inception.update(f_samples)", "test_metrics.py"),
    Mutant("metrics.py", "metric.update(f_samples, real=False)", "metric.update(f_real, real=False)", "test_metrics.py"),
    # training
    Mutant("train.py", "keyed_generator(config.seed, step, device=self.device)", "torch.Generator(self.device)", "test_train.py"),
    Mutant("train.py", "keyed_generator(config.seed, step, device=self.device)", "torch.default_generator", "test_train.py"),
    Mutant("train.py", "with _keyed_dropout(config.seed, step, self.device):", "with nullcontext():", "test_train.py"),
    Mutant("train.py", "loss = loss / config.accumulate", "loss = loss * 1.0", "test_train.py"),
    Mutant("train.py", 'self.optimizer.load_state_dict(state["optimizer"])', "pass", "test_train.py"),
    Mutant("train.py", 'self.ema.load_state_dict(state["ema"])', "pass", "test_train.py"),
    Mutant("train.py", "        self._check_finite()\n        state = {", "        state = {", "test_train.py"),
    Mutant("files.py", "os.replace(new, path)", "path.write_bytes(new.read_bytes())", "test_train.py"),
    Mutant("files.py", "weights_only=True", "weights_only=False", "test_train.py"),
]  # fmt: skip


def survives(mutant: Mutant) -> bool:
    """Whether the tests still pass with the mutant in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "diffusion_lib", copy / "diffusion_lib")
        shutil.copytree(ROOT / "tests", copy / "tests")
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / "diffusion_lib" / mutant.file
        text = file.read_text(encoding="utf-8")
        if mutant.right not in text:
            raise SystemExit(f"{mutant.file} no longer holds: {mutant.right}")
        file.write_text(text.replace(mutant.right, mutant.wrong, 1), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(copy), "TQDM_DISABLE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
             f"tests/{mutant.test}"],
            cwd=copy, env=environment, capture_output=True,
        )  # fmt: skip
        return done.returncode == 0


def main() -> int:
    """Try them all; 1 if any survives."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [m for m in MUTANTS if word in m.file or word in m.wrong]
    alive = []
    for number, mutant in enumerate(chosen, 1):
        lives = survives(mutant)
        alive += [mutant] if lives else []
        state = "SURVIVES" if lives else "caught"
        print(f"{number}/{len(chosen)} {state}: {mutant.file}: {mutant.wrong[:70]!r}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} caught")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
