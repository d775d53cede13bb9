"""A teacher's course: where its files lie, and the private seed that all its secrets come from.

The assignments of this book are public, solutions and all. What a class is handed therefore
depends on a seed that only its teacher has: the numbers and the hidden tests are made from it.
"""

import hashlib
import hmac
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from traitlets.config import Config

# nbgrader calls the program `alembic`, which lies beside this interpreter, by its bare name.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

HERE = Path(__file__).resolve().parent
ASSIGNMENTS = sorted(path.stem for path in HERE.glob("[0-9]_*.py"))


class Course:
    """The folder of one course. Nothing in it belongs into a public repository.

    Attributes:
        root: the folder.
        seed: the private seed, from `seed.txt`; made at first use.
    """

    def __init__(self, root: Path, seed: str | None = None) -> None:
        """
        Args:
            root: made if it is not there.
            seed: to set the private seed of a new course; None takes the stored one or draws one.

        Raises:
            SystemExit: a seed is given and the course already has another.
        """
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        stored = self.root / "seed.txt"
        if not stored.exists():
            stored.write_text((seed or secrets.token_hex(16)) + "\n")
        self.seed = stored.read_text().strip()
        if seed and seed != self.seed:
            raise SystemExit(
                f"{stored} holds another seed. A course keeps its seed, or handed-out notebooks "
                "could no longer be graded: choose another folder with COURSE=..."
            )

    def number(self, purpose: str) -> int:
        """A number below 2^31 that nobody can guess without the seed."""
        key = hmac.new(self.seed.encode(), purpose.encode(), hashlib.sha256).digest()
        return int.from_bytes(key[:4], "big") >> 1

    @property
    def code(self) -> str:
        """Stands in what students get, and makes their numbers differ from other courses'."""
        return f"{self.number('course'):08x}"

    def config(self, **more: dict[str, Any]) -> Config:
        """nbgrader's settings. All folders are nbgrader's own: source, release, submitted, ..."""
        config = Config()
        config.CourseDirectory.root = str(self.root)
        config.CourseDirectory.course_id = "diffusion"
        config.Exchange.path_includes_course = False
        config.ClearSolutions.code_stub = {"python": "..."}
        config.ClearSolutions.text_stub = "YOUR ANSWER HERE"
        config.ClearSolutions.enforce_metadata = True
        config.OverwriteCells.add_missing_cells = True
        for name, settings in more.items():
            config[name].update(settings)
        return config
