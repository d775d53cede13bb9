"""Train, measure and write the shipped models: python benchmarks/checkpoints.py NAME.

NAME is a frozen judge (`judge_digits`, `judge_mnist`, `judge_cifar10`; each before its models) or a
model (`digits8`, `digits16`, `mnist`, `cifar10`). Each writes the weights to
diffusion_lib/checkpoints/, the figures to benchmarks/results/ and, for a model, its card. With
--measure the weights are left as they are, and only figures and card are made anew; with --card
nothing is measured, and the card is made from the stored figures. A long run can be stopped: it
goes on when the same line is given again. Data sets are downloaded, or read from $DIFFUSION_DATA.

CIFAR-10 needs a GPU, which is taken where there is one. --try shows on any machine that the whole
path works: a few steps on a few pictures, all of it written to runs/try.
"""

import argparse
import json
import shutil
import sys
import textwrap
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from machine import machine
from safetensors.torch import save

from diffusion_lib import data, metrics, pretrained
from diffusion_lib.errors import UserError
from diffusion_lib.files import write_atomically
from diffusion_lib.guidance import cfg, clip
from diffusion_lib.recipes import RECIPES
from diffusion_lib.train import Trainer, pick_device

RESULTS = Path(__file__).parent / "results"
TRIED = Path("runs") / "try"

# What a card says of the data.
_DIGITS = """The 1,347 training pictures of scikit-learn's digits (the 450 held-out ones were never
trained on), {}. Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998."""
DATA = {
    "digits8": _DIGITS.format("as they are"),
    "digits16": _DIGITS.format("enlarged from 8 x 8 (bicubic)"),
    "mnist": """The 60,000 training pictures of MNIST (the 10,000 held-out ones were never trained
on), 28 x 28 with a black border of 2 pixels all round. Source: Y. LeCun, C. Cortes and C. Burges,
The MNIST Database of Handwritten Digits, 1998.""",
    "cifar10": """The 50,000 training pictures of CIFAR-10 (the 10,000 held-out ones were never
trained on), mirrored at random. Source: A. Krizhevsky, Learning Multiple Layers of Features from
Tiny Images, 2009.""",
}
JPEG = """They were read from a JPEG copy, whose pixels are not those of the original: every figure
below is of that copy and can't be compared with published ones."""
WHAT = dict.fromkeys(DATA, "handwritten digits") | {"cifar10": "photos of ten kinds of things"}
LICENCE = {
    "digits8": "CC BY 4.0",
    "digits16": "CC BY 4.0",
    "mnist": "CC BY-SA 3.0",
    "cifar10": "its authors state none",
}
JUDGE = {**metrics.JUDGES, "cifar10": "cifar10"}
# The smaller the set, the more often a judge must look at each picture.
EPOCHS = {"digits": 40, "mnist": 5, "cifar10": 20}

# How `metrics.evaluate` compares. MNIST's pictures are larger than the digits, so fewer are drawn
# in fewer steps: minutes on a CPU. CIFAR-10's are drawn on a GPU.
COMPARE: dict[str, dict[str, int]] = {
    "digits8": {"held_out": 450, "draws": 4, "extra": 200, "steps": 50},
    "digits16": {"held_out": 450, "draws": 4, "extra": 200, "steps": 50},
    "mnist": {"held_out": 1000, "draws": 1, "extra": 0, "steps": 20},
    "cifar10": {"held_out": 10000, "draws": 1, "extra": 0, "steps": 50},
}

CARD = """# {name}

A class-conditional DDPM of {what}, {side} x {side} {colour} pixels, {parameters:,} parameters,
weights averaged over training (EMA) and stored in float16.

## Data

{data}

## Licence

Weights: MIT, as the library. Data: {licence}.

## Recipe

`{command}`: {steps:,} steps of {batch_size} pictures, AdamW at {learning_rate:g} with {decay}
decay, labels dropped with probability {drop_cond:g}, eps prediction on DDPM's linear schedule
(T = 1000), seed {seed}{arithmetic}. Took {minutes:.0f} minutes {on}{note}.

## Figures

Measured on {date} with {sample_steps} DDIM steps, estimates of x_0 clipped to [-1, 1], and the
shipped judge, which reads real held-out pictures with accuracy {judge_accuracy:.4f}. All sets
compared hold as many pictures of each class.

| | guidance scale 1 | guidance scale 2 |
|---|---|---|
{rows}

Intervals are 95%. Made for teaching; it draws {what} and nothing else.
"""
ROWS = """\
| class accuracy ({n} samples) | {a:.4f} ({a_low:.4f} to {a_high:.4f}) | {accuracy2:.4f} |
| Fréchet distance, {held_out} to {held_out}, {mean} | {f:.2f} \
({f_low:.2f} to {f_high:.2f}) | {frechet2:.2f} |
| its floor, real against real | {floor:.2f} ± {floor_std:.2f} | the same |
| kernel distance, mean over classes | {kernel:.0f} | {kernel2:.0f} |
| its floor, real against real | {kernel_floor:.0f} ± {kernel_floor_std:.0f} | the same |
| precision, recall of {held_out} | {precision:.3f}, {recall:.3f} | {precision2:.3f}, \
{recall2:.3f} |
| the same, real against real | {real_precision:.3f}, {real_recall:.3f} | the same |
| distance to nearest training picture, samples / held-out | {nearest:.3f} | {nearest2:.3f} |"""


@dataclass(frozen=True)
class Job:
    """One call of this script.

    Attributes:
        device: what trains and draws.
        folder: CIFAR-10 as pictures, in place of the download.
        weights, results: where the files go.
        few: a trial: few steps, few pictures.
        command: the line that reproduces it.
    """

    device: torch.device
    folder: Path | None
    weights: Path
    results: Path
    few: bool
    command: str

    def sets(self, name: str) -> tuple[data.ImageSet, data.ImageSet]:
        """Training and held-out pictures."""
        if self.folder is None:
            train, test = data.load(name), data.load(name, "test")
        else:
            train, test = (
                # Another name: `evaluate` shall not compare with the original unasked.
                replace(
                    data.image_folder(self.folder / split, 32, channels=3),
                    name=f"{name}_{_copy(self.folder)}",
                )
                for split in ("train", "test")
            )
        assert isinstance(train, data.ImageSet) and isinstance(test, data.ImageSet)
        if self.few:
            train, test = metrics._fewer(train, 640), metrics._fewer(test, 100)
        return train, test

    def about(self) -> dict[str, object]:
        """What is to be known beside a figure of this run."""
        found = machine()
        if self.device.type != "cuda":
            found["device"] = self.device.type
        return found | ({} if self.folder is None else {"copy": _copy(self.folder)})

    def write(self, name: str, figures: dict[str, object]) -> None:
        """figures, and what they were measured on, as NAME.json."""
        self.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": self.about(), **figures}, indent=1)
        (self.results / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _copy(folder: Path) -> str:
    """What kind of copy the pictures in a folder are."""
    endings = {p.suffix.lower() for p in folder.rglob("*") if p.is_file()}
    return "jpeg" if endings & {".jpg", ".jpeg"} else "folder"


def make_judge(job: Job, name: str) -> None:
    """Train a judge on training pictures and measure it on the held-out ones."""
    train, test = job.sets("digits8" if name == "digits" else name)
    began = time.perf_counter()
    epochs = 1 if job.few else EPOCHS[name]
    judge = metrics.train_judge(train, epochs=epochs, device=job.device)
    seconds = time.perf_counter() - began
    contents = save(judge.state_dict())
    file = job.weights / f"judge_{name}.safetensors"
    write_atomically(file, lambda opened: opened.write(contents) and None)
    figures = {}
    for looked_at, by in JUDGE.items():
        if by == name:
            if name == "digits":
                _, test = job.sets(looked_at)
            assert test.labels is not None
            figures[f"accuracy_{looked_at}"] = metrics.accuracy(judge, test.floats(), test.labels)
    print(figures)
    job.write(f"judge_{name}", {"seconds": round(seconds, 1), **figures})


def make_model(job: Job, name: str, train: bool, run: Path, note: str, fast: bool) -> None:
    """Train a model by its recipe, measure it, and write weights, figures and card.

    Args:
        train: whether to train, or to measure the weights that are there.
        run: folder for the checkpoint of a training that is not yet finished.
        note: what else is to be said of how long the training took.
        fast: whether to compile the net and run it in bfloat16; the recipe is otherwise the same.
    """
    recipe, compare, final = RECIPES[name], COMPARE[name], job.weights / f"{name}.safetensors"
    if fast:
        recipe = replace(recipe, train=replace(recipe.train, precision="bf16", compile=True))
    if job.few:
        recipe = replace(recipe, train=replace(recipe.train, steps=3, batch_size=8))
        compare = {"held_out": 100, "draws": 1, "extra": 0, "steps": 2}
    sets = job.sets(recipe.data)
    judge_there = (job.weights / f"judge_{JUDGE[name]}.safetensors").is_file()
    judge = metrics.load_judge(JUDGE[name], job.weights if judge_there else None)
    if train:
        trainer = Trainer(recipe.denoiser(sets[0]), sets[0], recipe.train, job.device)
        checkpoint = run / "checkpoint.pt"
        if checkpoint.is_file():
            trainer.load(checkpoint)
        trainer.fit(checkpoint, report=lambda line: print(line, flush=True))
        training = {
            "command": job.command,
            "seconds": round(trainer.seconds),
            **asdict(recipe.train),
            "precision": trainer.precision if job.device.type == "cuda" else recipe.train.precision,
            **job.about(),
            "note": note,
        }
        file = run / f"{name}.safetensors"  # shipped when it is measured
        pretrained.save_denoiser(trainer.average, file, dtype=torch.float16)
    else:
        training, file = stored(job.results, name)["training"], final
    model = pretrained.load_denoiser(file, job.device)
    reports = [
        # Clipped, as `python -m diffusion_lib sample` and the DDPM paper's code draw.
        metrics.evaluate(clip(denoiser), data=name, judge=judge, sets=sets, **compare)
        for denoiser in (model, cfg(model, 2.0))
    ]
    if file != final:
        shutil.copyfile(file, final)
    report, guided = (vars(found) for found in reports)
    figures = {"training": training, "compare": compare, "report": report, "guided_2": guided}
    job.write(name, figures)
    write_card(name, job.weights, job.results)
    print(reports[0])


def stored(results: Path, name: str) -> dict[str, dict]:
    """What NAME.json holds.

    Raises:
        UserError: there is none yet.
    """
    file = results / f"{name}.json"
    if not file.is_file():
        raise UserError(f"There is no {file}: {name} was not measured yet.")
    return json.loads(file.read_text(encoding="utf-8"))


def card(name: str, weights: Path, results: Path) -> str:
    """The model card: figures from NAME.json, the net's size from its file."""
    result = stored(results, name)
    training, compare = result["training"], result["compare"]
    report, guided = result["report"], result["guided_2"]
    # Older files don't hold the recipe and the command.
    recipe = asdict(RECIPES[name].train) | training
    precision = training.get("precision", "")
    command = f"python benchmarks/checkpoints.py {name}{' --fast' if precision == 'bf16' else ''}"
    model = pretrained.load_denoiser(weights / f"{name}.safetensors")
    assert model.image_shape is not None
    threads, gpu = training["threads"], training["device"] != "cpu"
    on = f"with {threads} thread{'s' if threads > 1 else ''} on {training['processor']}"
    from_recipe = ("steps", "batch_size", "learning_rate", "decay", "drop_cond", "seed")
    text = CARD.format(
        **{key: recipe[key] for key in from_recipe},
        name=name,
        what=WHAT[name],
        side=model.image_shape[1],
        colour="grey" if model.image_shape[0] == 1 else "colour",
        parameters=sum(p.numel() for p in model.net.parameters()),
        data=DATA[name] + (f" {JPEG}" if training.get("copy") == "jpeg" else ""),
        licence=LICENCE[name],
        command=training.get("command", command),
        arithmetic={"bf16": ", in bfloat16", "fp16": ", in float16"}.get(precision, ""),
        minutes=training["seconds"] / 60,
        on=f"on one {training['device']}" if gpu else on,
        note=f" ({training['note']})" if training.get("note") else "",
        date=result["machine"]["date"],
        sample_steps=compare["steps"],
        judge_accuracy=report["judge_accuracy"],
        rows=ROWS.format(
            **report,
            held_out=compare["held_out"],
            mean="one draw" if compare["draws"] == 1 else f"mean of {compare['draws']} draws",
            **{f"{key}2": value for key, value in guided.items()},
            a=report["accuracy"],
            a_low=report["accuracy_interval"][0],
            a_high=report["accuracy_interval"][1],
            f=report["frechet"],
            f_low=report["frechet_interval"][0],
            f_high=report["frechet_interval"][1],
            nearest=report["nearest_ratio"],
            nearest2=guided["nearest_ratio"],
        ),
    )  # fmt: skip
    return "\n\n".join(
        part if part.startswith(("#", "|"))
        else textwrap.fill(" ".join(part.split()), 98, break_on_hyphens=False)
        for part in text.strip().split("\n\n")
    ) + "\n"  # fmt: skip


def write_card(name: str, weights: Path, results: Path) -> None:
    (weights / f"{name}.md").write_text(card(name, weights, results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    judges = [f"judge_{name}" for name in EPOCHS]
    parser.add_argument("name", choices=[*judges, *DATA])
    parser.add_argument("--measure", action="store_true", help="measure the shipped weights only")
    parser.add_argument("--card", action="store_true", help="only make the card, from the figures")
    parser.add_argument("--try", action="store_true", dest="few", help="a trial, see above")
    parser.add_argument("--device", help="cpu or cuda; default: cuda for cifar10, where it is")
    parser.add_argument(
        "--folder",
        type=Path,
        help="cifar10 as pictures, train/CLASS/* and test/CLASS/*, in place of the download",
    )
    parser.add_argument("--run", type=Path, help="folder for the checkpoint; default: runs/NAME")
    parser.add_argument("--note", default="", help="for the card: what slowed the training, say")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="compile the net and run it in bfloat16: 1.4 times as fast on a processor with "
        "AVX-512 BF16, slower on others; needs a C++ compiler",
    )
    options = parser.parse_args()
    name, of_cifar = options.name, options.name.endswith("cifar10")
    if options.folder is not None and not of_cifar:
        parser.error("--folder is for cifar10 and its judge.")
    device = pick_device(options.device or (None if of_cifar else "cpu"))
    if (
        name == "cifar10"
        and device.type == "cpu"
        and not (options.few or options.card or options.device)
    ):
        raise UserError(
            "The model of CIFAR-10 needs a GPU, and there is none here. --try shows that the path "
            "works; --device cpu trains on the processor all the same, very slowly."
        )
    command = f"python benchmarks/checkpoints.py {name}"
    for said, text in (
        (options.few, " --try"),
        (options.fast, " --fast"),
        (options.folder is not None, " --folder FOLDER"),
    ):
        command += text if said else ""
    weights, results = (TRIED, TRIED) if options.few else (pretrained.folder(), RESULTS)
    weights.mkdir(parents=True, exist_ok=True)
    job = Job(device, options.folder, weights, results, options.few, command)
    if options.card:
        write_card(name, weights, results)
    elif name in judges:
        make_judge(job, name.removeprefix("judge_"))
    else:
        run = TRIED / "run" / name if options.few else options.run or Path("runs") / name
        run.mkdir(parents=True, exist_ok=True)
        make_model(job, name, not options.measure, run, options.note, options.fast)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
