"""Run book/ddpm_in_100_lines.py as a reader would, time it, and judge what it drew.

    OMP_NUM_THREADS=1 python benchmarks/ddpm_in_100_lines.py

Writes the picture of the page (book/_static/ddpm_in_100_lines.png) and the figures its text
quotes (benchmarks/results/ddpm_in_100_lines.json). Then makes each change that the page sets as
an exercise, by replacing one line of the script, and measures what comes of it.
"""

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "book" / "ddpm_in_100_lines.py"
PICTURE = ROOT / "book" / "_static" / "ddpm_in_100_lines.png"
RESULTS = ROOT / "benchmarks" / "results" / "ddpm_in_100_lines.json"

# name: (what stands in the script, what the exercise puts in its place)
EXERCISES: dict[str, tuple[str, str]] = {
    "no_new_noise": (
        "x = mean + sigma * torch.randn_like(x)",
        "x = mean",
    ),
    "too_little_noise": (
        "torch.linspace(1e-4, 0.02, T)",
        "torch.linspace(1e-4, 0.002, T)",
    ),
    "no_average": (
        "return average.eval(), losses",
        "return net.eval(), losses",
    ),
}


def run(source: str, picture: Path) -> tuple[torch.Tensor, list[float]]:
    """Run the script's source with its default settings: samples (100, 1, 8, 8) and losses."""
    before, names = sys.argv, {"__name__": "__main__"}
    sys.argv = [SCRIPT.name, "--out", str(picture)]
    try:
        exec(compile(source, str(SCRIPT), "exec"), names)
    finally:
        sys.argv = before
    return names["x"], names["losses"]


def spread(x: torch.Tensor, digit: torch.Tensor) -> dict[str, float]:
    """Overall mean of images (N, ...), and how much a pixel differs between images of one digit."""
    within = torch.stack([x[digit == d].std(0).mean() for d in range(10)])
    return {"mean": round(float(x.mean()), 2), "spread": round(float(within.mean()), 2)}


def measure(x: torch.Tensor, losses: list[float], judge: SVC) -> dict[str, float]:
    """What the page quotes of one run: `x` (100, 1, 8, 8), ten of each digit, data in [-1, 1]."""
    asked = torch.arange(10).repeat_interleave(10).numpy()
    read = judge.predict(((x.clamp(-1, 1) + 1) * 8).flatten(1).numpy())
    return {
        "first_loss": round(losses[0], 3),
        "final_loss": round(sum(losses[-100:]) / 100, 3),  # mean of the last 100 steps
        "read_as_asked": int((read == asked).sum()),
        **spread(x, torch.tensor(asked)),
    }


def main() -> None:
    """Run, time and judge the script; then run its exercises; then write the results."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).numpy()
    fit, held_out = order[:1347], order[1347:]
    judge = SVC(gamma=0.001).fit(pixels[fit], labels[fit])
    source = SCRIPT.read_text(encoding="utf-8")

    start = time.perf_counter()
    x, losses = run(source, PICTURE)
    seconds = time.perf_counter() - start
    data = torch.tensor(pixels) / 8 - 1
    results = {
        "seconds": round(seconds),
        "steps": len(losses),
        "seed": 0,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "judge": "scikit-learn SVC(gamma=0.001), fitted on 1347 real digits",
        "judge_accuracy_on_450_held_out": round(judge.score(pixels[held_out], labels[held_out]), 3),
        "data": spread(data, torch.tensor(labels)),
        **measure(x, losses, judge),
        "exercises": {},
    }
    folder = Path(tempfile.mkdtemp())
    print("pictures of the exercises:", folder)
    for name, (line, change) in EXERCISES.items():
        if line not in source:
            raise SystemExit(f"exercise {name}: the script no longer holds {line!r}")
        x, losses = run(source.replace(line, change), folder / f"{name}.png")
        results["exercises"][name] = measure(x, losses, judge)
        print(name, results["exercises"][name], flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
