"""Files that are written whole or not at all, and read as data only."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from .errors import UserError

DRIVE = Path("/content/drive")  # where Colab's own notebooks mount it


def drive_folder(name: str) -> Path:
    """A folder on the learner's Google Drive: on Colab, what lies there outlives the session.

    Asks for access the first time. The folder is made if need be.

    Raises:
        UserError: this is not Colab, or the access was not given.
    """
    try:
        from google.colab import drive
    except ImportError as error:
        raise UserError(
            "Google Drive can be reached from Colab only. Elsewhere save to a folder of your own "
            "machine, which stays when the kernel ends."
        ) from error
    try:
        drive.mount(str(DRIVE))
    except Exception as error:  # Colab raises one kind for a refusal, another for a time-out
        raise UserError(
            "Google Drive could not be mounted, so nothing would be kept there. Run the cell again "
            "and allow the access that Google asks for."
        ) from error
    folder = DRIVE / "MyDrive" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file so that at every moment either the old one or the whole new one is there.

    The new one is written beside it under another name, forced to disk, and renamed.

    Args:
        path: the file; its folder is made if need be.
        write: gets the open file and writes the contents.

    Raises:
        UserError: the disk is full or the place can't be written to; the old file is untouched.
    """
    path = Path(path)
    # One name per process: two that write the same file don't write into each other's.
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException as error:
        if new.exists():
            new.unlink()
        if _disk_full(error):
            raise UserError(
                f"The disk is full: {path} could not be written, and what was there before is "
                "untouched. Free some space or save elsewhere."
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            reason = error.strerror
            raise UserError(f"Can't write {path} ({reason}). Choose another place.") from error
        raise
    _sync_folder(path.parent)


def _disk_full(error: BaseException) -> bool:
    # torch.save wraps the operating system's error in one of its own, which only tells in words.
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(chain, RuntimeError) and "file write failed" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to disk, where folders can be opened (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint's contents, loaded as data only: no code in the file can run.

    Raises:
        UserError: no such file, or a damaged or foreign one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}. Check the path, or train first.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} is not a whole checkpoint: it was cut short, or another program wrote it. "
            "Use an older copy, or train again."
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no training state: it is not one of this library's files.")
    return state
