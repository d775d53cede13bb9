"""One of several processes that train together; a test starts them by torchrun. Usage: FOLDER"""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from test_train import NET, SHARED, everything, replace, trainer  # noqa: E402

from diffusion_lib.train import several_processes  # noqa: E402


def main(folder: Path) -> None:
    with several_processes("cpu"):
        run = trainer(SHARED, replace(NET, dropout=0.0), double=True)
        run.fit(folder / "checkpoint")
        if run.rank == 0:
            torch.save(everything(run), folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
