"""Print the address of a built page, and open it where a person can see it."""

import os
import sys
import webbrowser
from pathlib import Path


def has_browser() -> bool:
    """Whether a window could open here: a desktop, and not a continuous-integration run."""
    if os.environ.get("CI"):
        return False
    on_desktop = sys.platform in {"darwin", "win32"}
    return on_desktop or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def main() -> None:
    address = Path(sys.argv[1]).resolve().as_uri()
    print(f"\nThe book is at {address}")
    if has_browser():
        webbrowser.open(address)


if __name__ == "__main__":
    main()
