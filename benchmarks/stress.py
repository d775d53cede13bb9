"""Kill a training run twenty times at random moments; it must end with the weights of a run that
nobody disturbed. Writes results/stress.json. Run it with `make stress`."""

import json
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_train import kills_and_resumes  # noqa: E402

KILLS, SEED = 20, 1

if __name__ == "__main__":
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        killed = kills_and_resumes(Path(folder), KILLS, SEED)
    result = {
        "machine": machine(),
        "kills": killed,
        "seed": SEED,
        "seconds": round(time.perf_counter() - began, 1),
        "weights_equal": True,  # kills_and_resumes has raised otherwise
    }
    (ROOT / "benchmarks" / "results" / "stress.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )
    print(f"{killed} kills, the same weights in the end, {result['seconds']} s")
