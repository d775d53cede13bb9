"""Name the files over 1.5 MB among those given: a clone carries every version of them for ever."""

import sys
from pathlib import Path

MAX_BYTES = 1_500_000


def main(paths: list[str]) -> int:
    """Print each file that is too big; returns the exit status."""
    big = [path for path in paths if Path(path).stat().st_size > MAX_BYTES]
    for path in big:
        size = Path(path).stat().st_size
        print(f"{path}: {size:,} bytes, over {MAX_BYTES:,}. Make it smaller, or link to it.")
    return 1 if big else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
