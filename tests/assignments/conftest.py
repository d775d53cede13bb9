"""A course made from a fixed seed, and hand-ins for it (`make test-assignments`)."""

import copy
import os
import sys
from pathlib import Path

import nbformat
import pytest

ASSIGNMENTS = Path(__file__).resolve().parents[2] / "assignments"
sys.path.insert(0, str(ASSIGNMENTS))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from build import build  # noqa: E402
from course import ASSIGNMENTS as NAMES  # noqa: E402
from course import Course  # noqa: E402


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    made = Course(tmp_path_factory.mktemp("course"), "a seed for tests")
    build(made, NAMES)
    return made


@pytest.fixture(scope="session")
def solution(course):
    """solution(name, student): the solved notebook, signed."""
    return lambda name, who: _signed(course.root / "solution" / f"{name}.ipynb", who)


@pytest.fixture(scope="session")
def stub(course):
    """stub(name, student): the notebook as it was handed out, signed."""
    return lambda name, who: _signed(course.root / "release" / name / f"{name}.ipynb", who)


def _signed(path, student):
    nb = copy.deepcopy(nbformat.read(path, as_version=4))
    cell(nb, "student").source = f'STUDENT = "{student}"'
    return nb


def cell(nb, name):
    """The cell with this id."""
    (found,) = [c for c in nb.cells if c.metadata.get("nbgrader", {}).get("grade_id") == name]
    return found
