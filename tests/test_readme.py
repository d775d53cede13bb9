"""What the README tells people to type exists and works."""

import json
import re
import shlex
from pathlib import Path

from diffusion_lib.__main__ import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_make_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"book", "test", "lab", "serve", "lint", "notebooks", "clean"} <= named
    assert named <= targets


def test_every_command_line_is_understood() -> None:
    lines = re.findall(r"python -m diffusion_lib ([^#`\n]+)", README)
    assert len(lines) >= 4
    for line in lines:
        if "|" not in line:  # the summary of the commands is no command
            _parser().parse_args(shlex.split(line))


def test_the_python_snippet_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(snippet, names)
    assert names["images"].shape == (16, 1, 16, 16)


def test_the_race_ended_as_the_readme_says() -> None:
    result = json.loads((ROOT / "benchmarks/results/peers.json").read_text(encoding="utf-8"))
    assert result["gpu"] == "not measured" and "On a GPU it was not measured." in README
    rows = re.findall(r"^\| (training step|drawing)[^|]*\| ([\d.]+) \| ([\d.]+) \|$", README, re.M)
    said = iter(rows)
    for kind in ("default", "compiled"):
        for what in ("training", "sampling"):
            seconds = {k: v["median"] for k, v in result["rows"][kind][what]["seconds"].items()}
            names = ("diffusers", "denoising-diffusion-pytorch")
            ratios = tuple(f"{seconds[n] / seconds['diffusion_lib']:.2f}" for n in names)
            assert next(said)[1:] == ratios
    assert len(rows) == 4


def test_every_file_and_folder_named_is_there() -> None:
    for name in re.findall(r"\]\(([^)h][^)]*)\)", README) + re.findall(
        r"^\| `(\w+/)`", README, re.M
    ):
        assert (ROOT / name).exists(), name
