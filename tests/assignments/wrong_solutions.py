"""Wrong solutions that students do hand in, and the points that each must cost.

`WRONG[assignment]` lists (name, {cell: its code}, the tests that must fail). All others pass. An
empty set of tests: not wrong, but another right answer, which must get every point.
"""

from typing import NamedTuple


class Wrong(NamedTuple):
    name: str
    code: dict[str, str]
    fails: set[str]


FORWARD = [
    Wrong(
        "starts-at-beta-1",
        {"alpha_bars": "def alpha_bars(betas):\n    return (1 - betas.double()).cumprod(0)"},
        {"alpha_bars-shown", "alpha_bars-hidden"},
    ),
    Wrong(
        "sum-for-product",
        {
            "alpha_bars": "def alpha_bars(betas):\n"
            "    return torch.cat([torch.ones(1).double(), 1 - betas.double().cumsum(0)])"
        },
        {"alpha_bars-shown", "alpha_bars-hidden"},
    ),
    Wrong(
        "no-root",
        {
            "forward_sample": "def forward_sample(x0, eps, t, bars):\n"
            "    bar = bars[t].reshape(-1, 1, 1, 1)\n"
            "    return (bar.sqrt() * x0 + (1 - bar) * eps).to(x0.dtype)"
        },
        {"forward_sample-shown", "forward_sample-hidden"},
    ),
    Wrong(
        "only-the-numbers-shown",
        {
            "forward_sample": "def forward_sample(x0, eps, t, bars):\n"
            "    return torch.tensor([1.0, 1.4, 1.4]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)"
        },
        {"forward_sample-hidden"},
    ),
    Wrong(
        "snr-is-alpha-bar",
        {
            "log_linear_bars": "def log_linear_bars(T, high, low):\n"
            "    line = torch.linspace(high, low, T, dtype=torch.float64)\n"
            "    return torch.cat([torch.ones(1).double(), line.exp() / 2])"
        },
        {"log_linear_bars-hidden"},
    ),
    Wrong(
        "forgot-the-root-of-the-end",
        {
            "my_answers": "s = noise.linear(MY_T, 1e-4, MY_BETA_END)\n"
            "my_terminal_signal = float(s.alpha_bars[-1])\n"
            "my_half_time = int((s.alpha_bars < 0.5).nonzero()[0])"
        },
        {"terminal_signal"},
    ),
    Wrong(
        "counts-from-zero",
        {
            "my_answers": "s = noise.linear(MY_T, 1e-4, MY_BETA_END)\n"
            "my_terminal_signal = float(s.alpha_bars[-1].sqrt())\n"
            "my_half_time = int((s.alpha_bars[1:] < 0.5).nonzero()[0])"
        },
        {"half_time"},
    ),
]

ELBO = [
    Wrong(
        "index-shifted",
        {
            "posterior": "def posterior(x_t, x0, t, bars):\n"
            "    before, now = bars[t], bars[min(t + 1, len(bars) - 1)]\n"
            "    alpha = now / before\n"
            "    mean = before.sqrt() * (1 - alpha) / (1 - now) * x0\n"
            "    mean = mean + alpha.sqrt() * (1 - before) / (1 - now) * x_t\n"
            "    return mean, (1 - before) / (1 - now) * (1 - alpha)"
        },
        {"posterior-shown", "posterior-hidden"},
    ),
    Wrong(
        "std-for-variance",
        {
            "posterior": "def posterior(x_t, x0, t, bars):\n"
            "    before, now = bars[t - 1], bars[t]\n"
            "    alpha = now / before\n"
            "    mean = before.sqrt() * (1 - alpha) / (1 - now) * x0\n"
            "    mean = mean + alpha.sqrt() * (1 - before) / (1 - now) * x_t\n"
            "    return mean, ((1 - before) / (1 - now) * (1 - alpha)).sqrt()"
        },
        {"posterior-hidden"},
    ),
    Wrong(
        "large-variance",
        {
            "posterior": "def posterior(x_t, x0, t, bars):\n"
            "    before, now = bars[t - 1], bars[t]\n"
            "    alpha = now / before\n"
            "    mean = before.sqrt() * (1 - alpha) / (1 - now) * x0\n"
            "    mean = mean + alpha.sqrt() * (1 - before) / (1 - now) * x_t\n"
            "    return mean, 1 - alpha"
        },
        {"posterior-shown", "posterior-hidden"},
    ),
    Wrong(
        "kl-the-other-way-round",
        {
            "kl_normal": "def kl_normal(m1, v1, m2, v2):\n"
            "    return 0.5 * ((v1 / v2).log() - 1 + (v2 + (m1 - m2) ** 2) / v1)"
        },
        {"kl_normal-hidden"},
    ),
    Wrong(
        "kl-takes-variances-for-stds",
        {
            "kl_normal": "def kl_normal(m1, v1, m2, v2):\n"
            "    return (v2 / v1).log() - 0.5 + (v1**2 + (m1 - m2) ** 2) / (2 * v2**2)"
        },
        {"kl_normal-hidden"},
    ),
    Wrong(
        "v-with-the-wrong-sign",
        {
            "both": "def both(kind, x_t, out, bar):\n"
            "    signal, sigma = bar.sqrt(), (1 - bar).sqrt()\n"
            "    if kind == 'eps':\n"
            "        return (x_t - sigma * out) / signal, out\n"
            "    if kind == 'x0':\n"
            "        return out, (x_t - signal * out) / sigma\n"
            "    return signal * x_t + sigma * out, sigma * x_t - signal * out"
        },
        {"both-shown", "both-hidden"},
    ),
    Wrong(
        "forgets-to-divide-by-the-noise",
        {
            "both": "def both(kind, x_t, out, bar):\n"
            "    signal, sigma = bar.sqrt(), (1 - bar).sqrt()\n"
            "    if kind == 'eps':\n"
            "        return (x_t - sigma * out) / signal, out\n"
            "    if kind == 'x0':\n"
            "        return out, x_t - signal * out\n"
            "    return signal * x_t - sigma * out, sigma * x_t + signal * out"
        },
        {"both-hidden"},
    ),
    Wrong(
        "mean-over-pixels",
        {
            "step_cost": "def step_cost(x0, guess, t, bars):\n"
            "    snr = bars / (1 - bars)\n"
            "    return 0.5 * (snr[t - 1] - snr[t]) * (x0 - guess).square().flatten(1).mean(1)"
        },
        {"step_cost-hidden"},
    ),
    Wrong(
        "forgets-the-half",
        {
            "step_cost": "def step_cost(x0, guess, t, bars):\n"
            "    snr = bars / (1 - bars)\n"
            "    return (snr[t - 1] - snr[t]) * (x0 - guess).square().flatten(1).sum(1)"
        },
        {"step_cost-shown", "step_cost-hidden"},
    ),
    Wrong(
        "error-at-the-quieter-end",
        {
            "my_answers": "t = torch.arange(1, MY_T + 1)\n"
            "s = noise.linear(MY_T, 1e-4, MY_BETA_END)(t).snr\n"
            "my_steps = float((0.5 * (s[:-1] - s[1:]) / (1 + s[:-1])).sum())\n"
            "my_limit = float(0.5 * ((1 + s[0]) / (1 + s[-1])).log())"
        },
        {"my_steps"},
    ),
    Wrong(
        "limit-of-an-unknown-picture",
        {
            "my_answers": "t = torch.arange(1, MY_T + 1)\n"
            "s = noise.linear(MY_T, 1e-4, MY_BETA_END)(t).snr\n"
            "my_steps = float((0.5 * (s[:-1] - s[1:]) / (1 + s[1:])).sum())\n"
            "my_limit = float(0.5 * (s[0] / s[-1]).log())"
        },
        {"my_limit"},
    ),
]

UNET = [
    Wrong(
        "sines-first",
        {
            "time_embedding": "def time_embedding(t, dim):\n"
            "    half = dim // 2\n"
            "    angles = t.double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)\n"
            "    return torch.cat([angles.sin(), angles.cos()], 1).float()"
        },
        {"time_embedding-shown", "time_embedding-hidden"},
    ),
    Wrong(
        "speeds-of-another-code",
        {
            "time_embedding": "def time_embedding(t, dim):\n"
            "    half = dim // 2\n"
            "    speeds = 10_000.0 ** (-torch.arange(half).double() / (half - 1))\n"
            "    angles = t.double()[:, None] * speeds\n"
            "    return torch.cat([angles.cos(), angles.sin()], 1).float()"
        },
        {"time_embedding-hidden"},
    ),
    Wrong(
        "scores-not-divided",
        {"attention": "def attention(q, k, v):\n    return (q @ k.transpose(1, 2)).softmax(2) @ v"},
        {"attention-hidden"},
    ),
    Wrong(
        "softmax-over-the-queries",
        {
            "attention": "def attention(q, k, v):\n"
            "    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(1) @ v"
        },
        {"attention-shown", "attention-hidden"},
    ),
    Wrong(
        "statistics-of-the-batch",
        {
            "norm_scale_shift": "def norm_scale_shift(h, scale, shift, groups):\n"
            "    g = h.reshape(len(h), groups, -1)\n"
            "    mean = g.mean((0, 2), keepdim=True)\n"
            "    variance = g.var((0, 2), keepdim=True, correction=0)\n"
            "    normal = ((g - mean) / (variance + 1e-5).sqrt()).reshape(h.shape)\n"
            "    return normal * (1 + scale[:, :, None, None]) + shift[:, :, None, None]"
        },
        {"norm_scale_shift-hidden"},
    ),
    Wrong(
        "scale-without-the-one",
        {
            "norm_scale_shift": "def norm_scale_shift(h, scale, shift, groups):\n"
            "    normal = F.group_norm(h, groups)\n"
            "    return normal * scale[:, :, None, None] + shift[:, :, None, None]"
        },
        {"norm_scale_shift-shown", "norm_scale_shift-hidden"},
    ),
    Wrong(
        "shift-before-the-norm",
        {
            "norm_scale_shift": "def norm_scale_shift(h, scale, shift, groups):\n"
            "    normal = F.group_norm(h + shift[:, :, None, None], groups)\n"
            "    return normal * (1 + scale[:, :, None, None])"
        },
        {"norm_scale_shift-shown", "norm_scale_shift-hidden"},
    ),
    Wrong(
        "bias-of-the-head-forgotten",
        {
            "make_head": "def make_head(channels, image_channels):\n"
            "    last = nn.Conv2d(channels, image_channels, 3, padding=1)\n"
            "    nn.init.zeros_(last.weight)\n"
            "    return nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), last)"
        },
        {"make_head-shown"},
    ),
    Wrong(
        "everything-in-the-head-zero",
        {
            "make_head": "def make_head(channels, image_channels):\n"
            "    last = nn.Conv2d(channels, image_channels, 3, padding=1)\n"
            "    head = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), last)\n"
            "    for p in head.parameters():\n"
            "        nn.init.zeros_(p)\n"
            "    return head"
        },
        {"make_head-hidden"},
    ),
    Wrong(
        "counts-a-shift-and-no-scale",
        {
            "my_answers": "c = unet.UNetConfig(time_channels=MY_WIDTH)\n"
            "block = unet.ResidualBlock(MY_IN, MY_OUT, c)\n"
            "my_parameters = sum(p.numel() for p in block.parameters())\n"
            "my_side = next(side for side in (4, 8, 16, 32, 64) if side**2 > 7 * MY_OUT)"
        },
        {"my_parameters"},
    ),
    Wrong(
        "as-many-places-as-channels",
        {
            "my_answers": "how = {'time_channels': MY_WIDTH, 'conditioning': 'scale_shift'}\n"
            "c = unet.UNetConfig(**how)\n"
            "block = unet.ResidualBlock(MY_IN, MY_OUT, c)\n"
            "my_parameters = sum(p.numel() for p in block.parameters())\n"
            "my_side = next(side for side in (4, 8, 16, 32, 64) if side**2 > MY_OUT)"
        },
        {"my_side"},
    ),
]

TRAIN = """def train(net, pictures):
    denoiser = Denoiser(net, schedule, classes=10)
    optimizer = torch.optim.AdamW(net.parameters())
    generator = torch.Generator().manual_seed(MY_SEED)
    for step in range({steps}):
        rate = {rate} * min(1, (step + 1) / 20) * (1 - step / {steps})
        optimizer.param_groups[0]["lr"] = rate
        x0, labels = pictures.batch(step, 64, MY_SEED)
        loss, _, _ = training_loss(denoiser, {x0}, labels, generator=generator)
        {zero}loss.backward()
        optimizer.step()
    return net"""
LIKE_THE_SOLUTION = {"rate": "5e-3", "steps": "240", "x0": "x0", "zero": "optimizer.zero_grad(); "}

ALGORITHM_2 = """@torch.no_grad()
def algorithm_2(net, x, labels, times, zs):
    bars = BARS.to(x.dtype)
    for k in range(len(times) - 1):
        now, to = bars[times[k]], bars[times[k + 1]]
        eps = net(x, torch.full((len(x),), float(times[k])), labels)
        alpha = {alpha}
        mean = (x - (1 - alpha) / (1 - now).sqrt() * eps) / alpha.sqrt()
        variance = (1 - to) / (1 - now) * (1 - alpha)
        x = mean + {noise}
    return x"""

TRAINING = [
    Wrong(
        "noise-without-the-root",
        {
            "ddpm_loss": "def ddpm_loss(net, x0, labels, t, eps):\n"
            "    bar = BARS[t].float().reshape(-1, 1, 1, 1)\n"
            "    x_t = bar.sqrt() * x0 + (1 - bar) * eps\n"
            "    return (net(x_t, t.float(), labels) - eps).square().mean()"
        },
        {"ddpm_loss-shown", "ddpm_loss-hidden"},
    ),
    Wrong(
        "time-divided-by-1000",
        {
            "ddpm_loss": "def ddpm_loss(net, x0, labels, t, eps):\n"
            "    bar = BARS[t].float().reshape(-1, 1, 1, 1)\n"
            "    x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps\n"
            "    return (net(x_t, t / 1000, labels) - eps).square().mean()"
        },
        {"ddpm_loss-hidden"},
    ),
    Wrong(
        "average-the-other-way-round",
        {
            "update_average": "def update_average(average, net, decay):\n"
            "    for ours, theirs in zip(average.parameters(), net.parameters()):\n"
            "        ours.data.lerp_(theirs.data, decay)"
        },
        {"update_average-shown", "update_average-hidden"},
    ),
    Wrong(
        "only-the-first-parameter",
        {
            "update_average": "def update_average(average, net, decay):\n"
            "    for ours, theirs in zip(average.parameters(), net.parameters()):\n"
            "        ours.data.lerp_(theirs.data, 1 - decay)\n"
            "        break"
        },
        {"update_average-hidden"},
    ),
    Wrong(
        "over-the-allowance",
        {"train": TRAIN.format(**LIKE_THE_SOLUTION | {"steps": "251"})},
        {"train-allowance"},
    ),
    Wrong(
        "rate-far-too-small",
        {"train": TRAIN.format(**LIKE_THE_SOLUTION | {"rate": "1e-6", "steps": "20"})},
        {"train-accuracy", "train-distance"},
    ),
    Wrong(
        "gradients-pile-up",
        {"train": TRAIN.format(**LIKE_THE_SOLUTION | {"zero": ""})},
        {"train-accuracy", "train-distance"},
    ),
    Wrong(
        "pictures-from-0-to-1",
        {"train": TRAIN.format(**LIKE_THE_SOLUTION | {"x0": "(x0 + 1) / 2"})},
        {"train-accuracy", "train-distance"},
    ),
    Wrong(
        "training-stops-with-an-error",
        {"train": "def train(net, pictures):\n    return net(pictures)"},
        {"train-allowance", "train-accuracy", "train-distance"},
    ),
    Wrong(
        "alpha-of-a-single-step",
        {
            "algorithm_2": ALGORITHM_2.format(
                alpha="schedule.alphas[times[k]].to(x.dtype)", noise="variance.sqrt() * zs[k]"
            )
        },
        {"algorithm_2-shown", "algorithm_2-hidden"},
    ),
    Wrong(
        "noise-in-the-last-step",
        {"algorithm_2": ALGORITHM_2.format(alpha="now / to", noise="(1 - alpha).sqrt() * zs[k]")},
        {"algorithm_2-shown", "algorithm_2-hidden"},
    ),
    Wrong(
        "variance-for-std",
        {"algorithm_2": ALGORITHM_2.format(alpha="now / to", noise="variance * zs[k]")},
        {"algorithm_2-hidden"},
    ),
    Wrong(
        "share-that-is-new",
        {
            "my_answers": "my_epochs = MY_STEPS * MY_BATCH / len(train_set)\n"
            "my_start_share = 1 - MY_DECAY**MY_STEPS"
        },
        {"my_start_share"},
    ),
]

GUIDANCE = """def my_guidance(denoise, w):
    def guided(x_t, level, cond):
        conditional = denoise(x_t, level, cond)
        without = denoise(x_t, level, torch.full_like(cond, {null}))
        result = {result}
        {rescale}return result
    return guided"""
RIGHT = {"null": "-1", "result": "without + w * (conditional - without)", "rescale": ""}


def _guidance(**changes: str) -> dict[str, str]:
    """The other track, and nothing written for the sampler's."""
    stub = "def my_sampler(denoise, x, levels):\n    ..."
    code = GUIDANCE.format(**RIGHT | changes)
    return {
        "track": 'TRACK = "guidance"',
        "my_sampler": stub,
        "my_guidance": code,
        "experiment": "",
    }


HEUN = """def my_sampler(denoise, x, levels):
    for now, to in pairwise(levels):
        x0 = denoise(x, now)
        eps = samplers.eps_from(x, x0, now)
        there = samplers.step(x0, eps, to)
        if {when}:
            eps = (eps + samplers.eps_from(there, denoise(there, to), to)) / 2
            there = samplers.step({partner}, eps, to)
        {end}
    return x"""
RIGHT_HEUN = {
    "when": "to.noise > 0", "partner": "samplers.x0_from(x, eps, now)", "end": "x = there",
}  # fmt: skip


def _sampler(**changes: str) -> dict[str, str]:
    return {"my_sampler": HEUN.format(**RIGHT_HEUN | changes), "experiment": ""}


PROJECT = [
    # Not wrong: other right answers get every point, on either track.
    Wrong("right-heun", _sampler(), set()),
    Wrong("right-plain-guidance", _guidance(), set()),
    Wrong(
        "right-rescaled-guidance",
        _guidance(
            rescale="result = result * (conditional.std((1, 2, 3), keepdim=True)"
            " / result.std((1, 2, 3), keepdim=True)) ** 0.7\n        "
        ),
        set(),
    ),
    Wrong(
        "first-order",
        _sampler(when="False"),
        {"property", "worth"},
    ),
    Wrong(
        "half-a-pair",
        _sampler(partner="x0"),
        {"known", "property", "worth"},
    ),
    Wrong(
        "divides-by-the-noise-of-clean-data",
        _sampler(when="True"),
        {"runs", "worth"},
    ),
    Wrong(
        "changes-what-it-was-given",
        _sampler(end="x.copy_(there)"),
        {"runs"},
    ),
    Wrong(
        "scale-of-the-paper",
        _guidance(result="(1 + w) * conditional - w * without"),
        {"known"},
    ),
    Wrong(
        "halves-exchanged",
        _guidance(result="conditional + w * (without - conditional)"),
        {"known", "worth"},
    ),
    Wrong("class-0-for-no-class", _guidance(null="0"), {"worth"}),
    Wrong(
        "rescaled-over-the-batch",
        _guidance(rescale="result = result * conditional.std() / result.std()\n        "),
        {"property"},
    ),
    Wrong("no-guidance", _guidance(result="conditional"), {"worth"}),
    Wrong(
        "forgets-the-signal",
        {
            "my_answers": "lv = schedule(torch.tensor(MY_TIME))\n"
            "width = (lv.signal**2 * MY_STD**2 + lv.noise**2).sqrt()\n"
            "my_end = float(MY_MEAN + MY_STD / width * (MY_X - MY_MEAN))\n"
            "my_guided_mean = MY_W * MY_MEAN"
        },
        {"my_end"},
    ),
    Wrong(
        "adds-the-guidance-to-the-class",
        {
            "my_answers": "lv = schedule(torch.tensor(MY_TIME))\n"
            "width = (lv.signal**2 * MY_STD**2 + lv.noise**2).sqrt()\n"
            "my_end = float(MY_MEAN + MY_STD / width * (MY_X - lv.signal * MY_MEAN))\n"
            "my_guided_mean = (1 + MY_W) * MY_MEAN"
        },
        {"my_guided_mean"},
    ),
]

WRONG: dict[str, list[Wrong]] = {
    "1_forward_process": FORWARD,
    "2_elbo_and_loss": ELBO,
    "3_unet": UNET,
    "4_training": TRAINING,
    "5_project": PROJECT,
}
