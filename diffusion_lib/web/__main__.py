"""The command line: python -m diffusion_lib.web NAME [--out FILE]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import web
from ..errors import UserError
from ..pretrained import available


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack one model; 0 if it went well, 2 with one line on stderr if the input was bad."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_lib.web", description="Pack a shipped model for the page."
    )
    parser.add_argument("name", help=f"one of: {', '.join(available())}")
    parser.add_argument("--out", type=Path, help="the script to write (default: NAME.js)")
    options = parser.parse_args(arguments)
    path = options.out or Path(f"{options.name}.js")
    try:
        size = web.export(options.name, path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
