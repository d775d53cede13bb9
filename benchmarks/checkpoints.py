"""Train, measure and write the shipped models: python benchmarks/checkpoints.py NAME.

NAME is `judge` (the frozen judge; run it first), `digits8` or `digits16`. Each writes the weights
to diffusion_lib/checkpoints/, the figures to benchmarks/results/ and, for a model, its card.
With --measure the weights are left as they are, and only figures and card are made anew.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine
from safetensors.torch import save_file

from diffusion_lib import data, metrics, pretrained
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import cfg, clip
from diffusion_lib.recipes import RECIPES, Recipe
from diffusion_lib.train import Trainer

RESULTS = Path(__file__).parent / "results"

CARD = """# {name}

A class-conditional DDPM of handwritten digits, {side} x {side} grey pixels, {parameters:,}
parameters, weights averaged over training (EMA) and stored in float16.

## Data

The {n_train:,} training pictures of scikit-learn's digits (the 450 held-out ones were never
trained on), {origin}. Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository, 1998.

## Licence

Weights: MIT, as the library. Data: CC BY 4.0.

## Recipe

`python benchmarks/checkpoints.py {name}`: {steps:,} steps of {batch} pictures, AdamW at
{rate:g} with cosine decay, labels dropped with probability {drop:g}, eps prediction on DDPM's
linear schedule (T = 1000), seed {seed}. Took {minutes:.0f} minutes with {threads} thread(s) on
{processor}.

## Figures

Measured on {date} with 50 DDIM steps, estimates of x_0 clipped to [-1, 1], and the shipped judge,
which reads real held-out digits with accuracy {judge_accuracy:.4f}. All sets compared hold as many
pictures of each class.

| | guidance scale 1 | guidance scale 2 |
|---|---|---|
| class accuracy ({n} samples) | {accuracy:.4f} ({a_low:.4f} to {a_high:.4f}) | {accuracy2:.4f} |
| Fréchet distance, 450 to 450, mean of 4 draws | {frechet:.2f} ({f_low:.2f} to {f_high:.2f}) \
| {frechet2:.2f} |
| its floor, real against real | {floor:.2f} ± {floor_std:.2f} | the same |
| distance to nearest training picture, samples / held-out | {nearest:.3f} | {nearest2:.3f} |

Intervals are 95%. Made for teaching; it draws small digits and nothing else.
"""


def make_judge() -> None:
    """Train the judge on the 8 x 8 training pictures and measure it on the held-out ones."""
    began = time.perf_counter()
    judge = metrics.train_judge(data.digits(8))
    seconds = time.perf_counter() - began
    save_file(judge.state_dict(), pretrained.folder() / "judge_digits.safetensors")
    figures = {}
    for size in (8, 16):
        test = data.digits(size, "test")
        assert test.labels is not None
        figures[f"accuracy{size}"] = metrics.accuracy(judge, test.floats(), test.labels)
    write("judge_digits", {"seconds": round(seconds, 1), **figures})


def make_model(name: str, train: bool) -> None:
    """Train a model by its recipe, write its weights, measure what was written."""
    recipe, file = RECIPES[name], pretrained.folder() / f"{name}.safetensors"
    pictures = data.load(recipe.data)
    result = RESULTS / f"{name}.json"
    if train:
        began = time.perf_counter()
        trainer = Trainer(recipe.denoiser(pictures), pictures, recipe.train, "cpu")
        trainer.fit()
        training = {"seconds": round(time.perf_counter() - began), **machine()}
        pretrained.save_denoiser(trainer.average, file, dtype=torch.float16)
    else:
        training = json.loads(result.read_text())["training"]
    model = pretrained.load_denoiser(file)
    # Clipped, as `python -m diffusion_lib sample` and the DDPM paper's code draw.
    report = metrics.evaluate(clip(model), data=recipe.data)
    guided = metrics.evaluate(clip(cfg(model, 2.0)), data=recipe.data)
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
    pictures = data.load(recipe.data)
    text = CARD.format(
        name=name,
        side=pictures.shape[1],
        parameters=sum(p.numel() for p in model.net.parameters()),
        n_train=len(pictures),
        origin="enlarged from 8 x 8 (bicubic)" if pictures.shape[1] == 16 else "as they are",
        steps=recipe.train.steps,
        batch=recipe.train.batch_size,
        rate=recipe.train.learning_rate,
        drop=recipe.train.drop_cond,
        seed=recipe.train.seed,
        minutes=training["seconds"] / 60,
        threads=training["threads"],
        processor=training["processor"],
        date=machine()["date"],
        judge_accuracy=report.judge_accuracy,
        n=report.n,
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
    parser.add_argument("name", choices=["judge", "digits8", "digits16"])
    parser.add_argument("--measure", action="store_true", help="measure the shipped weights only")
    options = parser.parse_args()
    if options.name == "judge":
        make_judge()
    else:
        make_model(options.name, train=not options.measure)
