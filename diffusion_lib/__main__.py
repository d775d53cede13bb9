"""The command line: python -m diffusion_lib data | train | sample | evaluate | models."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from . import data, guidance, metrics, pretrained, viz
from .denoiser import Denoise, Denoiser
from .errors import UserError
from .recipes import RECIPES, Recipe
from .samplers import Sampler, ddim, ddpm, dpmpp_2m, heun, sample
from .train import TrainConfig, Trainer, rank_and_processes, several_processes

SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m, "heun": heun}
_NAMED = ", ".join(name for name in data.DATASETS if not name.startswith("digits"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 with one line on stderr if the input was bad."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diffusion_lib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    which = f"digits, {_NAMED}, or a folder of pictures"
    fetch = commands.add_parser("data", help="fetch a data set, and say what it holds")
    fetch.add_argument("data", metavar="name", help=which)
    _data_options(fetch)
    fetch.add_argument("--out", type=Path, help="draw its first batch of 64 into this PNG file")
    fetch.set_defaults(run=_data)

    train = commands.add_parser("train", help="train a model")
    train.add_argument("--data", default="digits", help=which)
    _data_options(train)
    train.add_argument("--recipe", choices=sorted(RECIPES), help="default: the data's own recipe")
    train.add_argument("--steps", type=int, help="training steps; default: the recipe's")
    train.add_argument("--batch-size", type=int, help="pictures per step")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", help="cpu, cuda, mps; default: the best there is")
    train.add_argument("--out", type=Path, help="folder for the run; default: runs/NAME")
    train.set_defaults(run=_train)

    draw = commands.add_parser("sample", help="draw samples into a PNG file")
    _model_option(draw)
    _sampling_options(draw)
    draw.add_argument("--n", type=int, default=64, help="how many")
    draw.add_argument("--label", type=int, help="one class for all; default: each in turn")
    draw.add_argument("--out", type=Path, default=Path("samples.png"))
    draw.set_defaults(run=_sample)

    judge = commands.add_parser("evaluate", help="how good samples are, beside real pictures")
    _model_option(judge)
    _sampling_options(judge)
    judge.add_argument(
        "--features", choices=["judge", "inception"], default="judge",
        help="a judge, which comes with some data sets (accuracy, Fréchet and kernel distance, "
        "precision, recall), or Inception, for all pictures (FID, KID, IS; to be downloaded)",
    )  # fmt: skip
    judge.add_argument(
        "--n", type=int, default=1000, help="compare as many samples with as many real pictures"
    )
    judge.add_argument(
        "--data", metavar="FOLDER", help="with inception: the real pictures, if not a named set"
    )
    judge.set_defaults(run=_evaluate)

    models = commands.add_parser("models", help="list the shipped models, or show one's card")
    models.add_argument("name", nargs="?")
    models.set_defaults(run=_models)
    return parser


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, default=16, help="height and width, of digits (8, 16) and of a folder"
    )
    parser.add_argument(
        "--on-error", choices=["raise", "skip"], default="raise",
        help="a folder's pictures that can't be read: stop at the first, or leave them out",
    )  # fmt: skip


def _model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="digits16", help="a shipped model, or a file or folder")
    parser.add_argument("--device", help="cpu, cuda, mps; default: cpu")


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), default="ddim")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--eta", type=float, help="share of fresh noise, for ddim; default: 0")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale w")
    parser.add_argument("--seed", type=int, default=0)


def _data(options: argparse.Namespace) -> None:
    pictures, name = _pictures(options)
    kinds = ", no labels" if pictures.classes is None else f", {pictures.classes} classes"
    held_out = f"; {len(data.load(name, 'test')):,} held out" if name else ""
    shape = " x ".join(str(n) for n in pictures.shape)
    print(f"{pictures.name}: {len(pictures):,} pictures, {shape}{kinds}{held_out}")
    if options.out is not None:
        viz.save_png(pictures.batch(0, 64)[0], options.out, ink=_is_ink(name))
        print(f"{options.out}: 64 of them")


def _train(options: argparse.Namespace) -> None:
    with several_processes(options.device) as device:
        rank, processes = rank_and_processes()
        if rank > 0:  # the first downloads what is missing, the others wait
            dist.barrier()
        recipe, pictures = _recipe_and_data(options)
        if rank == 0 and processes > 1:
            dist.barrier()
        _train_on(device, options, recipe, pictures, _say if rank == 0 else _say_nothing)


def _say(line: str) -> None:
    print(line, flush=True)  # at once, also into a log file


def _say_nothing(line: str) -> None:
    """For all but the first of several processes."""


def _train_on(
    device: torch.device,
    options: argparse.Namespace,
    recipe: Recipe,
    pictures: data.Pictures,
    say: Callable[[str], None],
) -> None:
    changes = {
        name: value
        for name in ("steps", "batch_size", "seed")
        if (value := getattr(options, name)) is not None
    }
    recipe = replace(recipe, train=replace(recipe.train, **changes))
    out = options.out or Path("runs") / (options.recipe or pictures.name)
    denoiser = recipe.denoiser(pictures)
    trainer = Trainer(denoiser, pictures, recipe.train, device)
    parameters = sum(p.numel() for p in denoiser.net.parameters())
    several = f", {trainer.processes} processes" if trainer.processes > 1 else ""
    say(
        f"{len(pictures)} pictures of {pictures.name}, {parameters:,} parameters, "
        f"{recipe.train.steps} steps on {trainer.device.type} in {trainer.precision}{several}"
    )
    checkpoint = out / "checkpoint.pt"
    if checkpoint.is_file():
        trainer.load(checkpoint)
        say(f"going on from step {trainer.step} of {checkpoint}")
    trainer.fit(checkpoint, report=say)
    if trainer.rank == 0:
        pretrained.save_denoiser(trainer.average, out / "model.safetensors")
    say(f"{out / 'model.safetensors'}: trained in {trainer.seconds:.0f} s")


def _recipe_and_data(options: argparse.Namespace) -> tuple[Recipe, data.Pictures]:
    """The recipe and pictures that the options of `train` name."""
    if options.recipe is not None:
        recipe = RECIPES[options.recipe]
        return recipe, data.load(recipe.data)
    pictures, name = _pictures(options)
    if name is None:
        return replace(RECIPES["digits16"], data=pictures.name, train=TrainConfig()), pictures
    recipe = RECIPES[{"fashion_mnist": "mnist", "celeba": "faces64"}.get(name, name)]
    return replace(recipe, data=name), pictures


def _pictures(options: argparse.Namespace) -> tuple[data.Pictures, str | None]:
    """The set that was asked for, and its name in `data.DATASETS`; None for a folder."""
    name = f"digits{options.size}" if options.data == "digits" else options.data
    if options.data == "digits" or name in data.DATASETS:
        return data.load(name), name
    if not Path(options.data).exists():
        raise UserError(
            f"There is no data set and no folder {options.data!r}: name one of digits, {_NAMED}, "
            "or a folder of pictures."
        )
    return data.image_folder(options.data, options.size, on_error=options.on_error), None


def _is_ink(name: str | None) -> bool:
    """Whether pictures of a set are best drawn as ink on paper."""
    return (name or "").startswith(("digits", "mnist"))


def _load(options: argparse.Namespace) -> Denoiser:
    """The model that `--model` names: shipped, a file, or the folder of a run."""
    device = options.device or "cpu"
    if options.model in pretrained.available():
        return pretrained.load_pretrained(options.model, device)
    path = Path(options.model)
    if not path.exists():
        raise UserError(
            f"There is no model {options.model!r}: name a shipped one "
            f"({', '.join(pretrained.available())}), a model file or the folder of a run."
        )
    return pretrained.load_denoiser(path / "model.safetensors" if path.is_dir() else path, device)


def _guided(denoiser: Denoiser, scale: float) -> Denoise:
    """Guided where the scale asks for it, and clipped, for samples and for figures alike."""
    return guidance.clip(guidance.cfg(denoiser, scale) if scale != 1 else denoiser)


def _sampler(options: argparse.Namespace) -> Sampler:
    if options.eta is None:
        return SAMPLERS[options.sampler]
    if options.sampler != "ddim":
        raise UserError(f"--eta belongs to the sampler ddim; {options.sampler} has none.")
    return partial(ddim, eta=options.eta)


def _sample(options: argparse.Namespace) -> None:
    denoiser = _load(options)
    if denoiser.image_shape is None:
        raise UserError(f"{options.model} does not say what size its pictures are.")
    labels = None
    if denoiser.classes is not None:
        labels = torch.arange(options.n) % denoiser.classes
        if options.label is not None:
            labels = torch.full((options.n,), options.label)
    pictures = sample(
        _guided(denoiser, options.guidance),
        (options.n, *denoiser.image_shape),
        denoiser.schedule.levels(options.steps),
        sampler=_sampler(options),
        cond=labels,
        seed=options.seed,
    )
    columns = denoiser.classes if options.label is None else None
    viz.save_png(pictures.cpu(), options.out, columns=columns, ink=_is_ink(denoiser.data))
    print(f"{options.out}: {options.n} samples, {options.steps} steps of {options.sampler}")


def _evaluate(options: argparse.Namespace) -> None:
    denoiser = _load(options)
    if options.features == "inception":
        _evaluate_by_inception(denoiser, options)
        return
    report = metrics.evaluate(
        _guided(denoiser, options.guidance),
        data=denoiser.data or "",
        steps=options.steps,
        sampler=_sampler(options),
        held_out=options.n,
        # Several draws of a small set; one of MNIST's size takes minutes on a CPU.
        draws=4 if (denoiser.data or "").startswith("digits") else 1,
        seed=options.seed,
    )
    print(report)


def _evaluate_by_inception(denoiser: Denoiser, options: argparse.Namespace) -> None:
    """Samples against training pictures, and other training pictures against the same."""
    extractor = metrics.load_inception(options.device or "cpu")  # what is missing is said first
    if denoiser.image_shape is None:
        raise UserError(f"{options.model} does not say what size its pictures are.")
    if options.data is not None:
        channels, size, _ = denoiser.image_shape
        pictures: data.Pictures = data.image_folder(options.data, size, channels=channels)
    elif denoiser.data in data.DATASETS:
        pictures = data.load(denoiser.data)
    else:
        raise UserError(
            f"{options.model} was trained on {denoiser.data!r}, which is no named data set: say "
            "where its pictures are with --data FOLDER."
        )
    if pictures.shape != denoiser.image_shape:
        raise UserError(
            f"{options.model} draws pictures of another shape than those of {pictures.name}."
        )
    n = min(options.n, len(pictures))
    real, labels = pictures.batch(0, n)
    if denoiser.classes is None:
        labels = None
    elif labels is None:
        labels = torch.arange(n) % denoiser.classes
    drawn = []
    for k in range(0, n, 500):
        shape = (min(500, n - k), *denoiser.image_shape)
        cond = None if labels is None else labels[k : k + 500]
        x = sample(
            _guided(denoiser, options.guidance), shape, denoiser.schedule.levels(options.steps),
            sampler=_sampler(options), cond=cond, seed=options.seed + k,
        )  # fmt: skip
        drawn.append(data.to_uint8(x.cpu()))
    against = data.to_uint8(real)
    reference = pictures.name if options.data else f"{pictures.name}, train"

    def report(images: torch.Tensor) -> metrics.InceptionReport:
        return metrics.inception_report(
            against, images, reference=reference, extractor=extractor,
            device=options.device or "cpu", seed=options.seed,
        )  # fmt: skip

    print(report(torch.cat(drawn)))
    if 2 * n <= len(pictures):  # a batch of the same round holds none of the first again
        others = data.to_uint8(pictures.batch(1, n)[0])
        print(f"floor, other real pictures in place of samples:\n{report(others)}")
    else:
        print("No floor: it needs twice as many real pictures. Ask for a smaller --n.")


def _models(options: argparse.Namespace) -> None:
    if options.name is not None:
        print(pretrained.card(options.name))
        return
    for name in pretrained.available():
        denoiser = pretrained.load_pretrained(name)
        parameters = sum(p.numel() for p in denoiser.net.parameters())
        c, h, w = denoiser.image_shape or (0, 0, 0)
        print(f"{name}: {c} x {h} x {w}, {denoiser.classes} classes, {parameters:,} parameters")


if __name__ == "__main__":
    sys.exit(main())
