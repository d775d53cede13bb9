"""Train, measure and write the shipped models: python benchmarks/checkpoints.py NAME.

NAME is `judge_digits` or `judge_mnist` (the frozen judges; each before its models), `digits8`,
`digits16` or `mnist`. Each writes the weights to diffusion_lib/checkpoints/, the figures to
benchmarks/results/ and, for a model, its card. With --measure the weights are left as they are, and
only figures and card are made anew. A long run can be stopped: it goes on when the same line is
given again. MNIST is downloaded, or read from $DIFFUSION_DATA.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import machine
from safetensors.torch import save

from diffusion_lib import data, metrics, pretrained
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.files import write_atomically
from diffusion_lib.guidance import cfg, clip
from diffusion_lib.recipes import RECIPES, Recipe
from diffusion_lib.train import Trainer

RESULTS = Path(__file__).parent / "results"

# What a card says of the data; {n_train} and {n_test} are filled in.
_DIGITS = """The {{n_train}} training pictures of scikit-learn's digits (the {{n_test}} held-out
ones were never trained on), {}. Source: E. Alpaydin and C. Kaynak, Optical Recognition of
Handwritten Digits, UCI Machine Learning Repository, 1998."""
DATA = {
    "digits8": _DIGITS.format("as they are"),
    "digits16": _DIGITS.format("enlarged from 8 x 8 (bicubic)"),
    "mnist": """The {n_train} training pictures of MNIST (the {n_test} held-out ones were never
trained on), 28 x 28 with a black border of 2 pixels all round. Source: Y. LeCun, C. Cortes and
C. Burges, The MNIST Database of Handwritten Digits, 1998.""",
}
LICENCE = {"digits8": "CC BY 4.0", "digits16": "CC BY 4.0", "mnist": "CC BY-SA 3.0"}

# How `metrics.evaluate` compares: 2,000 samples in 50 steps with all 450 held-out digits. MNIST's
# are larger: 1,000 samples in 20 steps with 1,000 held-out ones take minutes on a CPU.
COMPARE: dict[str, dict[str, Any]] = {
    "digits8": {},
    "digits16": {},
    "mnist": {"held_out": 1000, "draws": 1, "extra": 0, "steps": 20},
}

CARD = """# {name}

A class-conditional DDPM of handwritten digits, {side} x {side} grey pixels, {parameters:,}
parameters, weights averaged over training (EMA) and stored in float16.

## Data

{data}

## Licence

Weights: MIT, as the library. Data: {licence}.

## Recipe

`python benchmarks/checkpoints.py {name}`: {steps:,} steps of {batch} pictures, AdamW at
{rate:g} with cosine decay, labels dropped with probability {drop:g}, eps prediction on DDPM's
linear schedule (T = 1000), seed {seed}{arithmetic}. Took {minutes:.0f} minutes with \
{threads} thread(s) on {processor}{note}.

## Figures

Measured on {date} with {sample_steps} DDIM steps, estimates of x_0 clipped to [-1, 1], and the
shipped judge, which reads real held-out digits with accuracy {judge_accuracy:.4f}. All sets
compared hold as many pictures of each class.

| | guidance scale 1 | guidance scale 2 |
|---|---|---|
| class accuracy ({n} samples) | {accuracy:.4f} ({a_low:.4f} to {a_high:.4f}) | {accuracy2:.4f} |
| Fréchet distance, {compared} to {compared}, mean of {draws} draw(s) | {frechet:.2f} \
({f_low:.2f} to {f_high:.2f}) | {frechet2:.2f} |
| its floor, real against real | {floor:.2f} ± {floor_std:.2f} | the same |
| distance to nearest training picture, samples / held-out | {nearest:.3f} | {nearest2:.3f} |

Intervals are 95%. Made for teaching; it draws small digits and nothing else.
"""


def make_judge(name: str) -> None:
    """Train a judge on training pictures and measure it on the held-out ones."""
    pictures = data.digits(8) if name == "digits" else data.load(name)
    began = time.perf_counter()
    # As many looks at each picture as the small set needs would be wasted on the large one.
    judge = metrics.train_judge(pictures, epochs=40 if name == "digits" else 5)
    seconds = time.perf_counter() - began
    contents = save(judge.state_dict())
    file = pretrained.folder() / f"judge_{name}.safetensors"
    write_atomically(file, lambda opened: opened.write(contents) and None)
    figures = {}
    for looked_at, by in metrics.JUDGES.items():
        if by == name:
            test = data.load(looked_at, "test")
            assert test.labels is not None
            figures[f"accuracy_{looked_at}"] = metrics.accuracy(judge, test.floats(), test.labels)
    write(f"judge_{name}", {"seconds": round(seconds, 1), **figures})


def make_model(name: str, train: bool, run: Path, note: str, fast: bool) -> None:
    """Train a model by its recipe, write its weights, measure what was written.

    Args:
        train: whether to train, or to measure the weights that are there.
        run: folder for the checkpoint of a training that is not yet finished.
        note: what else is to be said of how long the training took.
        fast: whether to compile the net and run it in bfloat16; the recipe is otherwise the same.
    """
    recipe, file = RECIPES[name], pretrained.folder() / f"{name}.safetensors"
    if fast:
        recipe = replace(recipe, train=replace(recipe.train, precision="bf16", compile=True))
    pictures = data.load(recipe.data)
    result = RESULTS / f"{name}.json"
    if train:
        trainer = Trainer(recipe.denoiser(pictures), pictures, recipe.train, "cpu")
        checkpoint = run / "checkpoint.pt"
        if checkpoint.is_file():
            trainer.load(checkpoint)
        trainer.fit(checkpoint)
        training = {
            "seconds": round(trainer.seconds),
            "precision": recipe.train.precision,
            **machine(),
            "note": note,
        }
        pretrained.save_denoiser(trainer.average, file, dtype=torch.float16)
    else:
        training = json.loads(result.read_text())["training"]
    model = pretrained.load_denoiser(file)
    # Clipped, as `python -m diffusion_lib sample` and the DDPM paper's code draw.
    report = metrics.evaluate(clip(model), data=recipe.data, **COMPARE[name])
    guided = metrics.evaluate(clip(cfg(model, 2.0)), data=recipe.data, **COMPARE[name])
    write(name, {"training": training, "report": vars(report), "guided_2": vars(guided)})
    write_card(name, recipe, model, report, guided, training)


def write_card(
    name: str,
    recipe: Recipe,
    model: Denoiser,
    report: metrics.Report,
    guided: metrics.Report,
    training: dict[str, Any],
) -> None:
    """The model card, every figure of which comes from this run."""
    pictures, n_test = data.load(recipe.data), len(data.load(recipe.data, "test"))
    compare = COMPARE[name]
    text = CARD.format(
        name=name,
        side=pictures.shape[1],
        parameters=sum(p.numel() for p in model.net.parameters()),
        data=DATA[name].format(n_train=f"{len(pictures):,}", n_test=f"{n_test:,}"),
        licence=LICENCE[name],
        note=f" ({training['note']})" if training.get("note") else "",
        steps=recipe.train.steps,
        batch=recipe.train.batch_size,
        rate=recipe.train.learning_rate,
        drop=recipe.train.drop_cond,
        seed=recipe.train.seed,
        arithmetic=", in bfloat16" if training.get("precision") == "bf16" else "",
        minutes=training["seconds"] / 60,
        threads=training["threads"],
        processor=training["processor"],
        date=machine()["date"],
        judge_accuracy=report.judge_accuracy,
        n=report.n,
        compared=compare.get("held_out", n_test),
        draws=compare.get("draws", 4),
        sample_steps=compare.get("steps", 50),
        accuracy=report.accuracy,
        a_low=report.accuracy_interval[0],
        a_high=report.accuracy_interval[1],
        accuracy2=guided.accuracy,
        frechet=report.frechet,
        f_low=report.frechet_interval[0],
        f_high=report.frechet_interval[1],
        frechet2=guided.frechet,
        floor=report.floor,
        floor_std=report.floor_std,
        nearest=report.nearest_ratio,
        nearest2=guided.nearest_ratio,
    )
    (pretrained.folder() / f"{name}.md").write_text(text, encoding="utf-8")
    print(report)


def write(name: str, figures: dict[str, object]) -> None:
    """figures, and what they were measured on, as results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    judges = [f"judge_{name}" for name in sorted(set(metrics.JUDGES.values()))]
    parser.add_argument("name", choices=[*judges, *DATA])
    parser.add_argument("--measure", action="store_true", help="measure the shipped weights only")
    parser.add_argument("--run", type=Path, help="folder for the checkpoint; default: runs/NAME")
    parser.add_argument("--note", default="", help="for the card: what slowed the training, say")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="compile the net and run it in bfloat16: 1.4 times as fast on a processor with "
        "AVX-512 BF16, slower on others; needs a C++ compiler",
    )
    options = parser.parse_args()
    if options.name in judges:
        make_judge(options.name.removeprefix("judge_"))
    else:
        run = options.run or Path("runs") / options.name
        make_model(options.name, not options.measure, run, options.note, options.fast)
