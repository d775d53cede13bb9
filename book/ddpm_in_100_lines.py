"""Denoising diffusion (DDPM, Ho et al., 2020) that learns to write digits, in 100 lines."""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

T = 1000  # noise steps; entry 0 of each table below is the clean image: alpha_bar[0] = 1
beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])
alpha = 1 - beta
alpha_bar = alpha.cumprod(0)  # the share of the image, in variance, that is left at step t


def layer(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))


class Block(nn.Module):  # residual; between its layers, a hint of the time step and the digit
    def __init__(self, n_in: int, n_out: int, n_hint: int = 128) -> None:
        super().__init__()
        self.first, self.second = layer(n_in, n_out), layer(n_out, n_out)
        self.hint, self.skip = nn.Linear(n_hint, n_out), nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.first(x) + self.hint(hint)[:, :, None, None])


class UNet(nn.Module):  # predicts the noise in x_t: at 8x8 for strokes, at 4x4 for shape, joined
    def __init__(self, n: int = 32, n_hint: int = 128) -> None:
        super().__init__()
        self.time, self.digit = nn.Linear(64, n_hint), nn.Embedding(10, n_hint)
        self.stem, self.fine = nn.Conv2d(1, n, 3, padding=1), Block(n, n)
        self.coarse1, self.coarse2 = Block(n, 2 * n), Block(2 * n, 2 * n)
        self.join, self.head = Block(3 * n, n), layer(n, 1)

    def forward(self, x: Tensor, t: Tensor, digit: Tensor) -> Tensor:
        angle = t[:, None] * torch.logspace(0, -4, 32)  # 32 waves: fast to tell near steps apart
        hint = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.digit(digit))
        fine = self.fine(self.stem(x), hint)
        coarse = self.coarse2(self.coarse1(F.avg_pool2d(fine, 2), hint), hint)
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        return self.head(self.join(both, hint))


def loss_of(net: nn.Module, x0: Tensor, digit: Tensor) -> Tensor:
    """Algorithm 1: give each image a random time step, add that much noise, predict the noise."""
    t = torch.randint(1, T + 1, (len(x0),))  # 1..T, both included
    eps = torch.randn_like(x0)
    kept = alpha_bar[t].view(-1, 1, 1, 1)
    x_t = kept.sqrt() * x0 + (1 - kept).sqrt() * eps
    return F.mse_loss(net(x_t, t, digit), eps)


def train(steps: int, batch: int = 64) -> tuple[nn.Module, list[float]]:
    """Return the net with its weights averaged over the last steps (EMA), and every loss."""
    pixels, digit = (torch.tensor(a) for a in load_digits(return_X_y=True))  # 1797 of them
    images = pixels.float().view(-1, 1, 8, 8) / 8 - 1  # 0..16 becomes -1..1: centred, as noise is
    net, average, losses = UNet(), UNet(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(steps):
        pick = torch.randint(len(images), (batch,))
        loss = loss_of(net, images[pick], digit[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.995, step / (step + 10))  # warm-up: soon forget the random first weights
        for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - decay)
        losses.append(loss.item())
    return average.eval(), losses


@torch.no_grad()
def sample(net: nn.Module, digit: Tensor) -> Tensor:
    """Algorithm 2: from pure noise, T small steps back, each a guess plus a little new noise."""
    x = torch.randn(len(digit), 1, 8, 8)
    for t in range(T, 0, -1):
        eps = net(x, torch.full((len(digit),), t), digit)
        mean = (x - beta[t] / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt()
        sigma = (beta[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])).sqrt()
        x = mean + sigma * torch.randn_like(x)  # the last step adds none: alpha_bar[0] = 1
    return x


if __name__ == "__main__":  # python ddpm_in_100_lines.py [--steps N] [--out file.png]
    option = {"--steps": 2000, "--out": "ddpm_in_100_lines.png"}
    steps, out = (option | dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))).values()
    torch.manual_seed(0)
    net, losses = train(int(steps))
    x = sample(net, torch.arange(10).repeat_interleave(10))
    tiles = F.pad(x, (1, 1, 1, 1), value=-1).view(10, 10, 10, 10).transpose(1, 2).reshape(100, 100)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
    left.semilogy(losses, linewidth=0.5)
    left.set(xlabel="training step", ylabel="loss: mean squared error of the predicted noise")
    right.imshow(tiles.numpy(), cmap="gray", vmin=-1, vmax=1)
    right.set(ylabel="digit asked for", xticks=[], yticks=range(5, 100, 10), yticklabels=range(10))
    figure.savefig(out)
