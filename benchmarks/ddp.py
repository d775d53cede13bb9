"""Training in several processes, each on its share of every batch (distributed data parallel).

    torchrun --standalone --nproc-per-node=2 benchmarks/ddp.py

Every process has its own copy of the net, works on its part of the batch, and DDP averages the
gradients before the optimiser's step: so the copies stay equal, and equal to one process that saw
the whole batch. On the CPU here (backend gloo); with several GPUs the backend is nccl and each
process takes `cuda:LOCAL_RANK`. Prints one line of JSON: milliseconds a step, and how far the
weights are from those of one process with the whole batch, in float64.
"""

import json
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_lib import Denoiser, UNet, UNetConfig, data, noise
from diffusion_lib.data import keyed_generator
from diffusion_lib.denoiser import randn_like, training_loss, uniform

NET = UNetConfig(channels=(32, 64), time_channels=96, classes=10)
BATCH, STEPS = 64, 12


def train(share: slice, parallel: bool, dtype: torch.dtype, steps: int) -> tuple[nn.Module, float]:
    """Some steps on this share of each batch; the net, and the median of milliseconds a step."""
    torch.manual_seed(0)
    net = UNet(NET).to(dtype)
    working = DistributedDataParallel(net) if parallel else net
    denoiser = Denoiser(working, noise.linear(), classes=10)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    pictures, seconds = data.digits(16), []
    for step in range(steps):
        began = time.perf_counter()
        x0, labels = pictures.batch(step, BATCH)
        x0 = x0.to(dtype)
        generator = keyed_generator(0, step)  # the whole batch's, the same in each process
        t, eps = uniform(denoiser.schedule, BATCH, generator), randn_like(x0, generator)
        loss, _, _ = training_loss(denoiser, x0[share], labels[share], t=t[share], eps=eps[share])
        optimizer.zero_grad()
        loss.backward()  # with DDP: gradients are averaged over the processes meanwhile
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return net, round(1000 * statistics.median(seconds[2:] or seconds), 1)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, n = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * BATCH // n, (rank + 1) * BATCH // n)
    _, milliseconds = train(mine, True, torch.float32, STEPS)
    together, _ = train(mine, True, torch.float64, 3)
    alone, _ = train(slice(0, BATCH), False, torch.float64, 3)
    pairs = zip(together.parameters(), alone.parameters(), strict=True)
    apart = max(float((a - b).abs().max().detach()) for a, b in pairs)
    if rank == 0:
        print(
            json.dumps({"processes": n, "milliseconds": milliseconds, "apart": apart}), flush=True
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
