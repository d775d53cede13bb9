# %% [markdown]
# # Assignment 4: train and sample a DDPM
#
# It belongs to chapters 4 and 5. You write the loss and the sampler of DDPM, and train a network from nothing to legible digits within a
# fixed allowance of compute. What counts is what comes out: a judge reads your digits, and a distance compares them with real ones. **20 points**, about three hours.
#
# How it works:
#
# - Replace each `...` by your code. Do not rename functions, and do not delete cells.
# - Below each function stand tests that you can see. More tests run when it is graded, with
#   other numbers: a function that passes only for the numbers shown will not pass.
# - No question needs the answer of another one: a mistake costs its own points only.
# - Your network is trained again when it is graded, so all random numbers come from seeds. The whole notebook takes about half a minute on a
#   CPU.
# - Before you hand in, restart the kernel and run all cells.
#
# The schedule is DDPM's: `BARS[t]` is $\bar\alpha_t$ for $t = 0, \dots, 1000$, and $\bar\alpha_0 = 1$. A network is called as `net(x_t, t, labels)`, with pictures of shape
# `(B, 1, 8, 8)`, the times as a float tensor of shape `(B,)` (from 1 to 1000, not divided by anything) and `labels` of shape `(B,)`; it puts out the noise $\hat\varepsilon$, of the pictures' shape.

__HEADER__

# %% kind="given" id="imports"
import torch
from torch import nn
from diffusion_lib import data, guidance, metrics, noise, pretrained, samplers
from diffusion_lib.denoiser import Denoiser, training_loss
from diffusion_lib.unet import UNet, UNetConfig

schedule = noise.linear()
BARS = schedule.alpha_bars
train_set, held_out = data.digits(8), data.digits(8, split="test")
print(f"{len(train_set)} digits to train with, {len(held_out)} held out")

# %% [markdown]
# ## 1. The loss (3 points)
#
# Write `ddpm_loss(net, x0, labels, t, eps)`: the loss of Algorithm 1 for one batch, a tensor with one number. `x0` and `eps` have the shape `(B, 1, 8, 8)`, and `t` holds one whole number
# for each picture, shape `(B,)`.

# %% kind="answer" id="ddpm_loss"
def ddpm_loss(net, x0, labels, t, eps):
    ### BEGIN SOLUTION
    bar = BARS[t].to(x0.dtype).reshape(-1, 1, 1, 1)
    x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    return (net(x_t, t.float(), labels) - eps).square().mean()
    ### END SOLUTION


# %% kind="test" id="ddpm_loss-shown" points=1
shown_ones, shown_zeros, shown_t = torch.ones(3, 1, 8, 8), torch.zeros(3, 1, 8, 8), torch.tensor([10, 300, 1000])
shown = ddpm_loss(lambda x, t, labels: torch.zeros_like(x), shown_ones, torch.arange(3), shown_t, 2 * shown_ones)
assert shown.shape == (), f"The loss is one number; yours has the shape {tuple(shown.shape)}."
assert abs(float(shown) - 4) < 1e-4, (
    f"A network that answers 0 where the noise is 2 everywhere has the mean squared error 4; yours is {float(shown):.4f}."
)
shown = ddpm_loss(lambda x, t, labels: x, shown_zeros, torch.arange(3), shown_t, shown_ones)
assert abs(float(shown) - float(((1 - BARS[shown_t]).sqrt() - 1).square().mean())) < 1e-5, (
    "Where x0 = 0 and eps = 1, x_t is the square root of 1 - alpha bar."
)

# %% kind="test" id="ddpm_loss-hidden" points=2
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__)
hidden_model = pretrained.load_pretrained("digits8")
hidden_x0, hidden_labels = held_out.batch(__SECRET__ % 5, 24)
hidden_t = torch.randint(1, 1001, (24,), generator=hidden_generator)
hidden_eps = torch.randn(24, 1, 8, 8, generator=hidden_generator)
hidden_expected, _, _ = training_loss(hidden_model, hidden_x0, hidden_labels, t=hidden_t, eps=hidden_eps)
hidden_given = ddpm_loss(hidden_model.net, hidden_x0, hidden_labels, hidden_t, hidden_eps)
assert abs(float(hidden_given) - float(hidden_expected)) < 1e-4
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The average of the weights (2 points)
#
# Write `update_average(average, net, decay)`. Both are networks of the same shape. Every parameter of `average` moves, in place, towards that of `net`: it keeps the share `decay` of itself. `net` stays as it
# is.

# %% kind="answer" id="update_average"
def update_average(average, net, decay):
    ### BEGIN SOLUTION
    with torch.no_grad():
        for ours, theirs in zip(average.parameters(), net.parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)
    ### END SOLUTION


# %% kind="test" id="update_average-shown" points=1
shown_average, shown_net = nn.Linear(1, 1), nn.Linear(1, 1)
nn.init.constant_(shown_average.weight, 1.0), nn.init.constant_(shown_net.weight, 2.0)
update_average(shown_average, shown_net, 0.9)
assert abs(float(shown_average.weight.detach()) - 1.1) < 1e-6, (
    f"With decay 0.9, an average of 1 moves to 1.1 if the weight is 2; yours is at {float(shown_average.weight.detach()):.4f}."
)
assert float(shown_net.weight.detach()) == 2, "The network in training was changed, too."

# %% kind="test" id="update_average-hidden" points=1
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
torch.manual_seed(__SECRET__)
hidden_average, hidden_net = (nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Linear(4, 2)) for _ in range(2))
hidden_before = [p.detach().clone() for p in hidden_average.parameters()]
hidden_decay = 0.8 + (__SECRET__ % 19) / 100
for _ in range(3):
    update_average(hidden_average, hidden_net, hidden_decay)
for hidden_old, hidden_new, hidden_to in zip(
    hidden_before, hidden_average.parameters(), hidden_net.parameters(), strict=True
):
    assert torch.allclose(hidden_new, hidden_to + hidden_decay**3 * (hidden_old - hidden_to), atol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Train (5 points)
#
# Write `train(net, pictures)`. It trains `net` and returns the network to draw with: `net` itself, or an average of its weights. `pictures.batch(step, size, seed)` gives you pictures and labels.
#
# - **Your allowance:** the network may see 16,000 pictures in training, such as 250 batches of 64. `net.seen` counts them.
# - To keep a mistake in part 1 from costing you twice, you may use the library's loss: `loss, _, _ = training_loss(denoiser, x0, labels)`, with `denoiser = Denoiser(net, schedule, classes=10)`.
# - Optimiser, learning rate and its decay, batch size, clipping and averaging are your choice. In so short a run the learning rate matters most.
# - Seed whatever is random.
#
# Then 450 digits are drawn with the library's DDIM in 20 steps, with the labels of the held-out digits. You get 1 point for keeping to the allowance, 2 points if the judge reads at least 65% of your digits as asked, and 2 points
# if the squared Fréchet distance to the held-out digits is at most 100. (An untrained network has 10% and more than 400.) Another machine
# rounds differently, and training magnifies that, so aim for more than just enough.

# %% kind="given" id="allowance"
ALLOWANCE = 16_000
MY_SEED = mine("seed", [0, 1, 2, 3, 4])


class Metered(UNet):
    """The library's UNet, which counts the pictures it has seen in training (with gradients)."""

    seen = 0

    def forward(self, x, t, cond=None):
        if torch.is_grad_enabled():
            self.seen += len(x)
        return super().forward(x, t, cond)


def fresh_net():
    torch.manual_seed(MY_SEED)
    return Metered(UNetConfig(channels=(16, 32), time_channels=64, classes=10))


def judge_digits(net):
    """(accuracy, squared Fréchet distance) of 450 digits drawn with the network."""
    denoiser = guidance.clip(Denoiser(net, schedule, classes=10).eval())
    drawn = samplers.sample(
        denoiser, (len(held_out), 1, 8, 8), schedule.levels(20), cond=held_out.labels, seed=MY_SEED
    )
    judge = metrics.load_judge()
    drawn = drawn.clamp(-1, 1)
    real, ours = (metrics.judge_features(judge, x) for x in (held_out.floats(), drawn))
    return metrics.accuracy(judge, drawn, held_out.labels), metrics.frechet_distance(ours, real)


# %% kind="answer" id="train"
def train(net, pictures):
    ### BEGIN SOLUTION
    steps, size, rate = 240, 64, 5e-3
    denoiser = Denoiser(net, schedule, classes=10)
    optimizer = torch.optim.AdamW(net.parameters())
    generator = torch.Generator().manual_seed(MY_SEED)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        x0, labels = pictures.batch(step, size, MY_SEED)
        loss, _, _ = training_loss(denoiser, x0, labels, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net
    ### END SOLUTION


# %% kind="given" id="run"
my_net = fresh_net()
my_result = train(my_net, train_set)
my_accuracy, my_distance = judge_digits(my_result)
print(f"{my_net.seen:,} of {ALLOWANCE:,} pictures: accuracy {my_accuracy:.3f}, squared Fréchet distance {my_distance:.1f}")

# %% kind="test" id="train-allowance" points=1
assert my_net.seen <= ALLOWANCE, f"The network saw {my_net.seen:,} pictures; {ALLOWANCE:,} are allowed."
assert my_net.seen > 0, "The network that was handed in saw nothing: train it, not a copy."
assert isinstance(my_result, nn.Module), "Return the network."
### BEGIN HIDDEN TESTS
assert [p.shape for p in my_result.parameters()] == [p.shape for p in fresh_net().parameters()]
### END HIDDEN TESTS

# %% kind="test" id="train-accuracy" points=2
assert my_accuracy >= 0.65, f"The judge reads {my_accuracy:.0%} of your digits as asked; 65% are wanted."
### BEGIN HIDDEN TESTS
# Measured for the solution, with the five seeds: 0.81 to 0.85.
assert judge_digits(my_result)[0] >= 0.65
### END HIDDEN TESTS

# %% kind="test" id="train-distance" points=2
assert my_distance <= 100, f"The squared Fréchet distance is {my_distance:.0f}; at most 100 is wanted."
### BEGIN HIDDEN TESTS
# Measured for the solution, with the five seeds: 52 to 65. Labels that don't belong to their pictures: 130.
assert judge_digits(my_result)[1] <= 100
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Sample (4 points)
#
# Write `algorithm_2(net, x, labels, times, zs)`: DDPM's sampler on a chain of your caller's choice. `times` is a list of whole numbers that falls and ends in 0, such as `[1000, 700, 300, 0]`; `x` is the noise at `times[0]`. Step
# number $k$ goes from $t$ = `times[k]` to $s$ = `times[k + 1]`: it draws from $q(x_s \mid x_t, \hat x_0)$, with the *small* variance, and takes `zs[k]`, of the shape of `x`, as its fresh noise. Into clean data no noise is added. Return the
# picture at time 0; do not clip.
#
# A step of several times at once is a step with $\alpha = \bar\alpha_t / \bar\alpha_s$ and $\beta = 1 - \alpha$, else as in the paper.

# %% kind="answer" id="algorithm_2"
@torch.no_grad()
def algorithm_2(net, x, labels, times, zs):
    ### BEGIN SOLUTION
    bars = BARS.to(x.dtype)
    for k in range(len(times) - 1):
        now, to = bars[times[k]], bars[times[k + 1]]
        eps = net(x, torch.full((len(x),), float(times[k])), labels)
        alpha = now / to
        mean = (x - (1 - alpha) / (1 - now).sqrt() * eps) / alpha.sqrt()
        x = mean + ((1 - to) / (1 - now) * (1 - alpha)).sqrt() * zs[k]
    return x
    ### END SOLUTION


# %% kind="test" id="algorithm_2-shown" points=1
def shown_knows(x, t, labels):
    """A network that knows the picture: 0.5 everywhere. It reads the noise off x_t."""
    bar = BARS[t.long()].reshape(-1, 1, 1, 1)
    return (x - bar.sqrt() * 0.5) / (1 - bar).sqrt()


shown_x, shown_zs = torch.ones(2, 1, 8, 8).double(), torch.ones(3, 2, 1, 8, 8).double()
shown = algorithm_2(shown_knows, shown_x, torch.tensor([3, 4]), [1000, 400, 200, 0], shown_zs)
assert shown.shape == shown_x.shape, f"Pictures of shape (2, 1, 8, 8) come out; yours have {tuple(shown.shape)}."
assert torch.allclose(shown, torch.full_like(shown, 0.5), atol=1e-4), (
    f"A network that knows the picture, 0.5, leads to it along any chain; yours ends at {float(shown.mean()):.4f}. "
    "Check the step's own alpha and beta, and that the last step adds no noise."
)

# %% kind="test" id="algorithm_2-hidden" points=3
# More tests run here when it is graded.
### BEGIN HIDDEN TESTS
hidden_generator = torch.Generator().manual_seed(__SECRET__ + 1)
hidden_net = pretrained.load_pretrained("digits8").net
hidden_labels = torch.randint(0, 10, (6,), generator=hidden_generator)
hidden_times = [1000, 800, 500 + __SECRET__ % 200, 300, 150, 40, 39, 0]
hidden_zs = torch.randn(len(hidden_times) - 1, 6, 1, 8, 8, generator=hidden_generator)
hidden_x = hidden_start = torch.randn(6, 1, 8, 8, generator=hidden_generator)
with torch.inference_mode():
    for hidden_k in range(len(hidden_times) - 1):
        hidden_now, hidden_to = (schedule(torch.tensor(t)).like(hidden_x) for t in hidden_times[hidden_k : hidden_k + 2])
        hidden_eps = hidden_net(hidden_x, torch.full((6,), float(hidden_times[hidden_k])), hidden_labels)
        hidden_x0 = samplers.x0_from(hidden_x, hidden_eps, hidden_now)
        hidden_nu = samplers.posterior_nu(hidden_now, hidden_to)
        hidden_x = samplers.step(hidden_x0, hidden_eps, hidden_to, nu=hidden_nu, z=hidden_zs[hidden_k])
hidden_given = algorithm_2(hidden_net, hidden_start.clone(), hidden_labels, hidden_times, hidden_zs)
# The first step divides by a signal of 0.006, so rounding is magnified.
assert float((hidden_given - hidden_x).abs().max()) < 0.02
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Two numbers of your own (2 points)
#
# Another run on the same 1,347 pictures has `MY_STEPS` steps of `MY_BATCH` pictures, and keeps an average of the weights with the decay `MY_DECAY` in every step, without warm-up. Calculate, with code,
#
# - `my_epochs`: how many times each picture is seen, on average (1 point);
# - `my_start_share`: the share of the random weights of the start that is still in the average at the end (1 point).

# %% kind="given" id="my_numbers"
MY_STEPS = mine("steps", [250, 300, 350, 450, 500, 550])
MY_BATCH = mine("batch", [24, 32, 48, 96])
MY_DECAY = mine("decay", [0.99, 0.992, 0.995, 0.996])
print(f"{MY_STEPS} steps of {MY_BATCH} pictures, decay {MY_DECAY}")

# %% kind="answer" id="my_answers"
my_epochs = ...
my_start_share = ...
### BEGIN SOLUTION
my_epochs = MY_STEPS * MY_BATCH / len(train_set)
my_start_share = MY_DECAY**MY_STEPS
### END SOLUTION

# %% kind="test" id="my_epochs" points=1
assert float(my_epochs) > 1, "In each of these runs every picture is seen more than once."
### BEGIN HIDDEN TESTS
assert abs(float(my_epochs) / (MY_STEPS * MY_BATCH / 1347) - 1) < 0.01
### END HIDDEN TESTS

# %% kind="test" id="my_start_share" points=1
assert 0 < float(my_start_share) < 1, "A share lies between 0 and 1."
### BEGIN HIDDEN TESTS
assert abs(float(my_start_share) / MY_DECAY**MY_STEPS - 1) < 0.01
### END HIDDEN TESTS

# %% [markdown]
# ## 6. In your own words (4 points)
#
# Your run printed an accuracy and a squared Fréchet distance. Two sets of *real* digits of this size have a distance of about 4, and the judge reads 99% of the real held-out digits. What does each of your two numbers say about your digits that the other one does
# not? Which would change if all your 450 digits were the same ten, copied? Would the same digits get the same distance if there were only 100 of them? And which one change, within the same allowance, did help, or would you try next, and why? Five to ten sentences; use your numbers.

# %% [markdown] kind="marked" id="explain_run" points=4
# ### BEGIN SOLUTION
# *Rubric.* 1 point: the accuracy says whether each digit can be read as its class; the distance compares the whole set with the real one, variety and style included, and it is far above its floor of 4. 1 point: ten copied digits can be read as well as ever, so the accuracy
# may even be 1, while the distance rises, because the spread within the classes is gone. 1 point: with fewer samples the distance comes out higher, so only distances of equal numbers can be compared. 1 point: a change with a reason, such as a larger rate with decay (few steps: each
# has to go far, and the last ones have to settle), smaller batches and more steps, an average of the weights; with the student's own figures before and after, or with what would be measured.
# ### END SOLUTION
