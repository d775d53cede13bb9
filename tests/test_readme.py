"""What the README tells people to type exists and works."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lib import results
from diffusion_lib.__main__ import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# What README or Makefile run as `python FILE.py`.
SCRIPTS = sorted(set(re.findall(r"\b(?:python|\(PYTHON\)) ([\w/]+\.py)", README + MAKEFILE)))


def test_every_make_target_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    listed = re.findall(r"^\| `make ([a-z-]+)[^|]*` \|", README, re.M)
    explained = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.M))
    assert sorted(listed) == sorted(explained - {"help"})  # "`make help` prints the same list"
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert {"book", "test", "benchmark"} <= named <= targets


def test_every_command_line_is_understood() -> None:
    lines = re.findall(r"-m diffusion_lib ([^#`\n]+)", README)
    assert len(lines) >= 7
    for line in lines:
        if "|" not in line:  # the summary of the commands is no command
            _parser().parse_args(shlex.split(line))


def test_the_scripts_that_are_named() -> None:
    assert {"benchmarks/checkpoints.py", "benchmarks/peers.py", "tools/repository.py"} <= set(
        SCRIPTS
    ) | set(re.findall(r"[\w/]+\.py", MAKEFILE))
    for name in re.findall(r"\b(?:benchmarks|tools|assignments)/\w+\.py", README + MAKEFILE):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", [*SCRIPTS, "benchmarks/peers.py"])
def test_a_script_starts(name: str) -> None:
    """It answers --help; or, where it takes no options, all that it imports is there."""
    path = ROOT / name
    if "argparse" in path.read_text(encoding="utf-8"):
        line = [str(path), "--help"]
    else:
        line = ["-c", "import runpy, sys; runpy.run_path(sys.argv[1])", str(path)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path.parent}"}
    done = subprocess.run(
        [sys.executable, *line], capture_output=True, text=True, env=env, cwd=ROOT
    )
    if done.returncode and name == "benchmarks/peers.py":
        assert "`make benchmark` installs them" in done.stderr and done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0, done.stderr


def test_the_race_without_the_others_says_what_to_do() -> None:
    """Also where they are installed: here they can't be imported."""
    block = "import runpy, sys; sys.modules['diffusers'] = None; runpy.run_path(sys.argv[1])"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    done = subprocess.run(
        [sys.executable, "-c", block, str(ROOT / "benchmarks" / "peers.py")],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "is not installed. `make benchmark` installs them and runs it." in done.stderr
    assert "benchmarks/peers.py --out $(OUT)" in MAKEFILE


def test_the_web_command() -> None:
    """`python -m diffusion_lib.web NAME` of a shipped model."""
    from diffusion_lib.pretrained import available

    (name,) = re.findall(r"`python -m diffusion_lib\.web (\w+)`", README)
    assert name in available()


def test_the_python_snippet_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(snippet, names)
    assert names["images"].shape == (16, 1, 16, 16)


def test_the_race_ended_as_the_readme_says() -> None:
    result = json.loads((ROOT / "benchmarks/results/peers.json").read_text(encoding="utf-8"))
    assert result["gpu"] == "not measured" and "On a GPU it was not measured." in README
    number = r" ([\d.]+) \|"
    rows = re.findall(rf"^\| (training step|drawing)[^|]*\|{4 * number}$", README, re.M)
    said = iter(rows)
    for kind in ("default", "compiled"):
        for what in ("training", "sampling"):
            seconds = {k: v["median"] for k, v in result["rows"][kind][what]["seconds"].items()}
            names = ("diffusers", "denoising-diffusion-pytorch")
            ratios = tuple(f"{seconds[n] / seconds['diffusion_lib']:.2f}" for n in names)
            row = result["rows"][kind][what]
            goal, missed = row["goal"], row["goal"] - row["ratio"]
            assert row["faster_peer"] == "diffusers" and not row["met"]
            assert next(said)[1:] == (*ratios, f"{goal}", f"{missed:.2f}")
    assert len(rows) == 4
    goals = [result["rows"]["default"][what]["goal"] for what in ("training", "sampling")]
    assert goals == [1.3, 1.5]
    # The reasons given.
    ours, theirs = (result["nets"][name] for name in ("diffusion_lib", "diffusers"))
    assert ours == theirs and f"{ours['parameters']:,} of them" in README
    assert f"and {ours['forward_flops'] / 1e6:.0f} million operations a picture" in README
    seconds = {k: v["median"] for k, v in result["switches"].items()}
    bf16 = f"{seconds['Trainer, bf16']:.2f} s instead of {seconds['Trainer, fp32']:.2f} s"
    assert bf16 in README.replace("\n", " ")
    # benchmarks/peers.py holds a GPU to these.
    code = (ROOT / "benchmarks/peers.py").read_text(encoding="utf-8")
    assert "(2.0, 2.0) if gpu else (1.3, 1.5)" in code and code.count("(1.2, 1.2)") == 2
    assert "goals are 2 times by default and 1.2 at equal precision" in README.replace("\n", " ")


def test_what_is_not_measured_is_not_offered() -> None:
    from diffusion_lib.pretrained import available

    assert "CIFAR-10 is not\nmeasured" in README and "cifar10" not in available()
    assert not (ROOT / "benchmarks/results/cifar10.json").exists()


def test_every_file_and_folder_named_is_there() -> None:
    for name in re.findall(r"\]\(([^)h][^)]*)\)", README) + re.findall(
        r"^\| `(\w+/)`", README, re.M
    ):
        assert (ROOT / name).exists(), name


def test_what_the_notebooks_take_is_what_was_recorded() -> None:
    recorded = results.load("notebooks")
    rows = re.findall(r"^\| (.+) \| (\d+) min \| (\d+) GB \| (.+) \|$", README, re.M)
    assert len(rows) == len(recorded) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for (title, minutes, gigabytes, gpu), (name, runs) in zip(rows, recorded.items(), strict=True):
        heading = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"][0]
        assert title.removeprefix(f"{name[1]} ") in "".join(heading["source"])
        assert math.ceil(runs["cpu"]["seconds"] / 60) <= int(minutes) <= 2
        assert math.ceil(runs["cpu"]["gigabytes"]) <= int(gigabytes) <= 4
        assert runs["cpu"]["device"] == "2 CPU cores"
        assert (gpu == "not measured") == ("cuda" not in runs)
