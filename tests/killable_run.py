"""A short training run that saves after every step; the tests kill it. Usage: FOLDER"""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from test_train import CONFIG, everything, replace, trainer  # noqa: E402


def main(folder: Path) -> None:
    run = trainer(replace(CONFIG, steps=60))
    if (folder / "checkpoint.pt").exists():
        run.load(folder / "checkpoint.pt")
    print("training", flush=True)
    run.fit(folder / "checkpoint.pt", save_every=1)
    torch.save(everything(run), folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
