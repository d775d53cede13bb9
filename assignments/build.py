"""From one source, the student's, the teacher's and the grader's version of each assignment.

    python assignments/build.py [--course FOLDER] [--seed TEXT] [names]

A source is a script in jupytext's percent format. A cell's first line says what it is:

    # %% [markdown]                              prose
    # %% kind="given"                            code that students get and can't edit
    # %% kind="answer" id="forward"              code to write, between ### BEGIN SOLUTION and END
    # %% kind="test" id="forward-1" points=2     its test, with ### BEGIN HIDDEN TESTS and END
    # %% [markdown] kind="marked" id="why" points=4     prose that a person marks

`__HEADER__` becomes header.py: the setup cell, the student's id, and numbers made from it.
`__SECRET__` becomes a number made from the course's private seed, another one in each assignment;
it belongs into hidden tests. `__COURSE__` becomes the course's code, which students may see.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from course import ASSIGNMENTS, HERE, Course
from nbformat import NotebookNode
from nbgrader.apps import NbGraderAPI

KINDS: dict[str, dict[str, bool]] = {
    "given": {"grade": False, "solution": False, "locked": True},
    "answer": {"grade": False, "solution": True, "locked": False},
    "test": {"grade": True, "solution": False, "locked": True},
    "marked": {"grade": True, "solution": True, "locked": False},
}


def notebook(name: str, course: Course) -> NotebookNode:
    """The grader's version of an assignment: solutions, hidden tests, this course's secrets.

    Raises:
        SystemExit: a cell of an unknown kind, or an id that is there twice.
    """
    text = (HERE / f"{name}.py").read_text(encoding="utf-8")
    setup = (HERE.parent / "tools" / "setup_cell.py").read_text(encoding="utf-8").strip()
    text = text.replace("__HEADER__", (HERE / "header.py").read_text(encoding="utf-8"))
    text = text.replace("__SETUP__", setup)
    text = text.replace("__SECRET__", str(course.number(name))).replace("__COURSE__", course.code)
    nb = jupytext.reads(text, fmt="py:percent")
    seen: set[str] = set()
    for i, cell in enumerate(nb.cells):
        cell.metadata = _nbgrader(cell.metadata, default_id=f"cell-{i}", where=name)
        if settings := cell.metadata.get("nbgrader"):
            if settings["grade_id"] in seen:
                raise SystemExit(f"{name}: the id {settings['grade_id']!r} is there twice.")
            seen.add(settings["grade_id"])
        cell.id = f"c{i}"
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "diffusion_assignment": {"name": name, "course": course.code},
    }
    nbformat.validate(nb)
    return nb


def _nbgrader(options: dict[str, Any], *, default_id: str, where: str) -> dict[str, Any]:
    """nbgrader's own metadata for the options of a cell."""
    if "kind" not in options:
        return {}
    if options["kind"] not in KINDS:
        raise SystemExit(f"{where}: {options['kind']!r} is no kind: use one of {', '.join(KINDS)}.")
    about: dict[str, Any] = {
        **KINDS[options["kind"]],
        "task": False,
        "schema_version": 3,
        "grade_id": options.get("id", default_id),
    }
    if about["grade"]:
        about["points"] = options["points"]
    return {"nbgrader": about}


def build(course: Course, names: list[str]) -> None:
    """Write source, student's version (`release/`) and solution (`solution/`) into the course.

    Raises:
        SystemExit: an unknown name, or nbgrader refuses an assignment.
    """
    api = NbGraderAPI(config=course.config())
    for name in names:
        if name not in ASSIGNMENTS:
            raise SystemExit(f"No assignment {name!r}. There are: {', '.join(ASSIGNMENTS)}.")
        nb = notebook(name, course)
        source = course.root / "source" / name / f"{name}.ipynb"
        source.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, source)
        result = api.generate_assignment(name, force=True)
        if not result["success"]:
            raise SystemExit(f"{name}: nbgrader refused it.\n{result['log']}")
        solution = course.root / "solution" / f"{name}.ipynb"
        solution.parent.mkdir(exist_ok=True)
        nbformat.write(_without_hidden_tests(nb), solution)
        points = sum(c.metadata.nbgrader.get("points", 0) for c in nb.cells if c.metadata)
        print(f"{name}: {points} points, {course.root / 'release' / name}")


def _without_hidden_tests(nb: NotebookNode) -> NotebookNode:
    """For the class, after the deadline: solutions, and the tests that it has already seen."""
    from nbgrader.preprocessors import ClearHiddenTests

    return ClearHiddenTests().preprocess(nbformat.from_dict(nb), {})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--course", type=Path, default=Path("course"))
    parser.add_argument("--seed", help="the private seed of a new course; default: drawn")
    options = parser.parse_args()
    build(Course(options.course, options.seed), options.names or ASSIGNMENTS)


if __name__ == "__main__":
    sys.exit(main())
