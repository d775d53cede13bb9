"""From a folder of handed-in notebooks to a table of marks and a page of feedback for each.

    python assignments/grade.py FOLDER [--course FOLDER] [--seconds N] [--gigabytes N] ...
    python assignments/grade.py --feedback [--course FOLDER]

A hand-in is FOLDER/STUDENT/anything.ipynb or FOLDER/STUDENT.ipynb. Each is run in a process
of its own with a limit on time and memory. Whatever happens to one, the others go on, and nothing
that was not graded looks like a zero: `marks.csv` says of every hand-in what became of it, and why.

This runs other people's code. The limits protect your patience, not your files: use the container
(assignments/Containerfile) for anything but a class that you trust.
"""

import argparse
import csv
import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
from course import Course
from nbformat import NotebookNode
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderAPI
from tqdm.auto import tqdm

MAX_HAND_IN = 50_000_000  # bytes; what is larger is not read at all


@dataclass
class HandIn:
    """One notebook that somebody handed in, and what became of it.

    Attributes:
        student: by the folder or the file it came in.
        path: where it lies.
        assignment: as the notebook itself or its file name says; "" if neither does.
        graded: whether there are marks.
        notes: what a person should know, a sentence each.
        marks: points by test, None where a person has to mark.
        largest: the most points there are, by test.
    """

    student: str
    path: Path
    assignment: str = ""
    graded: bool = False
    notes: list[str] = field(default_factory=list)
    marks: dict[str, float | None] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if not self.graded:
            return "NOT GRADED"
        return "needs marking" if None in self.marks.values() else "graded"


@dataclass(frozen=True)
class Limits:
    """What one hand-in may use.

    Attributes:
        seconds: for all of it.
        cell_seconds: for one cell; the cells after it still run.
        gigabytes: of memory, with all processes that it starts.
    """

    seconds: float = 600
    cell_seconds: int = 120
    gigabytes: float = 4.0


def collect(folder: Path) -> list[HandIn]:
    """Everything that was handed in, one notebook for each student and assignment.

    Raises:
        SystemExit: no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise SystemExit(f"There is no folder {folder}.")
    found = [
        HandIn(_student(path, folder), path)
        for path in sorted(folder.rglob("*.ipynb"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise SystemExit(f"There is no notebook (*.ipynb) in {folder}.")
    return found


def _student(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder)
    return inside.parts[0] if len(inside.parts) > 1 else path.stem


def inspect(hand_in: HandIn, course: Course) -> NotebookNode | None:
    """Read a notebook, find out which assignment it is, and look for what would spoil its grading.

    Returns:
        The notebook, its outputs removed; None if it can't be graded, and then a note says why.
    """
    if hand_in.path.stat().st_size > MAX_HAND_IN:
        size = hand_in.path.stat().st_size / 1e6
        hand_in.notes.append(f"The file has {size:.0f} MB: ask for it again with outputs cleared.")
        return None
    try:
        nb = nbformat.read(hand_in.path, as_version=4)
        nbformat.validate(nb)
    except Exception as error:  # whatever is wrong with this file, the others go on
        hand_in.notes.append(f"It is not a notebook that can be read ({_first_line(error)}).")
        return None

    about = nb.metadata.get("diffusion_assignment", {})
    built = sorted(path.name for path in (course.root / "release").glob("*") if path.is_dir())
    named = [name for name in built if name in (about.get("name"), hand_in.path.stem)]
    named = named or [name for name in built if name in hand_in.path.as_posix()]
    if len(named) != 1:
        hand_in.notes.append(f"Which assignment is it? This course has {', '.join(built)}.")
        return None
    (hand_in.assignment,) = named
    if about.get("course", course.code) != course.code:
        hand_in.notes.append("It was handed out by another course: its numbers are not this one's.")
        return None

    released = nbformat.read(_released(course, hand_in.assignment), as_version=4)
    expected = {c.metadata.nbgrader.grade_id: c for c in released.cells if "nbgrader" in c.metadata}
    given = {
        c.metadata["nbgrader"].get("grade_id"): c
        for c in nb.cells
        if isinstance(c.metadata.get("nbgrader"), dict)
    }
    if not set(expected) & set(given):
        hand_in.notes.append(
            "Its cells have lost their names (nbgrader's metadata), as some editors do: nothing "
            "tells which is which. Ask for the original file, or copy the answers into a fresh one."
        )
        return None
    missing = [name for name in expected if name not in given]
    if missing:
        hand_in.notes.append(f"Cells are missing: {', '.join(missing)}. Tests were put back.")
    changed = [
        name
        for name, cell in expected.items()
        if name in given
        and not cell.metadata.nbgrader.solution
        and given[name].source.split() != cell.source.split()
    ]
    if changed:
        hand_in.notes.append(f"Cells that may not be changed were: {', '.join(changed)}. Restored.")
    settings = ("points", "grade", "solution", "locked", "task")
    reset = [
        name
        for name, cell in expected.items()
        if name in given
        and any(given[name].metadata.nbgrader.get(k) != cell.metadata.nbgrader.get(k)
                for k in settings)
    ]  # fmt: skip
    if reset:
        hand_in.notes.append(
            f"The settings of cells (points, locks) were changed: {', '.join(reset)}. Restored."
        )
        for name in reset:  # nbgrader itself would stop at some of them
            given[name].metadata.nbgrader.update(expected[name].metadata.nbgrader)
    said = re.search(r"STUDENT\s*=\s*\(?\s*[\"']([^\"']*)", given["student"].source) if (
        "student" in given
    ) else None  # fmt: skip
    if said is None or said[1].strip().lower() != hand_in.student.lower():
        says = f"says {said[1]!r}" if said else "names nobody"
        hand_in.notes.append(f"The notebook {says}, and it was handed in by {hand_in.student!r}.")
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return nb


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _released(course: Course, assignment: str) -> Path:
    return course.root / "release" / assignment / f"{assignment}.ipynb"


def grade(hand_in: HandIn, course: Course, limits: Limits) -> None:
    """Run one hand-in under the limits, and fill in its marks or a note."""
    nb = inspect(hand_in, course)
    if nb is None:
        return
    place = course.root / "submitted" / hand_in.student / hand_in.assignment
    place.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, place / f"{hand_in.assignment}.ipynb")
    log = course.root / "logs" / f"{hand_in.student}-{hand_in.assignment}.txt"
    log.parent.mkdir(exist_ok=True)
    stopped = _run_limited(
        [
            sys.executable, "-m", "nbgrader", "autograde", hand_in.assignment,
            "--student", hand_in.student, "--force", f"--CourseDirectory.root={course.root}",
            "--CourseDirectory.course_id=diffusion", "--OverwriteCells.add_missing_cells=True",
            f"--Execute.timeout={limits.cell_seconds}", "--LimitOutput.max_lines=200",
        ],
        log, course.root, limits,
    )  # fmt: skip
    if stopped:
        hand_in.notes.append(stopped)
        return
    _read_marks(hand_in, course)
    if not hand_in.graded:
        hand_in.notes.append(f"nbgrader could not run it: {log} says why.")
        return
    slow = _slow_cells(course, hand_in)
    if slow:
        hand_in.notes.append(f"Cells that did not end in time: {', '.join(slow)}.")
    if "setup" in slow:  # our own cell: this machine is too slow for the limit
        hand_in.graded = False
        hand_in.notes.append("The setup cell is among them, so nothing ran: raise --cell-seconds.")


def _run_limited(command: list[str], log: Path, folder: Path, limits: Limits) -> str | None:
    """Run a command; kill it and all it started where it goes over a limit, and say which."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder
        )
    watched = psutil.Process(process.pid)
    began = time.monotonic()
    reason = None
    while process.poll() is None and reason is None:
        time.sleep(0.1)
        used = sum(_memory(p) for p in _family(watched))
        if used > limits.gigabytes * 2**30:
            reason = f"It used more than {limits.gigabytes:g} GB of memory and was stopped."
        elif time.monotonic() - began > limits.seconds:
            reason = f"It ran longer than {limits.seconds:g} s in all and was stopped."
        elif log.stat().st_size > MAX_HAND_IN:
            reason = "It printed too much and was stopped."
    for member in [*_family(watched)] if reason else []:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    return reason


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    """A process and all that it started, the youngest last to be found and first to go."""
    try:
        yield from reversed(process.children(recursive=True))
        yield process
    except psutil.NoSuchProcess:
        return


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def _read_marks(hand_in: HandIn, course: Course) -> None:
    with Gradebook(f"sqlite:///{course.root / 'gradebook.db'}", "diffusion") as book:
        try:
            submission = book.find_submission_notebook(
                hand_in.assignment, hand_in.assignment, hand_in.student
            )
        except MissingEntry:
            return
        done = course.root / "autograded" / hand_in.student / hand_in.assignment
        hand_in.graded = (done / f"{hand_in.assignment}.ipynb").is_file()
        for mark in submission.grades if hand_in.graded else []:
            hand_in.largest[mark.name] = mark.max_score
            hand_in.marks[mark.name] = None if mark.needs_manual_grade else mark.score


def _slow_cells(course: Course, hand_in: HandIn) -> list[str]:
    """The cells that ran into the limit on time."""
    name = hand_in.assignment
    done = course.root / "autograded" / hand_in.student / name / f"{name}.ipynb"
    return [
        cell.metadata.get("nbgrader", {}).get("grade_id", "?")
        for cell in nbformat.read(done, as_version=4).cells
        if any(o.get("ename") == "CellTimeoutError" for o in cell.get("outputs", []))
    ]


def write_marks(hand_ins: list[HandIn], path: Path) -> None:
    """One line a hand-in: who, which, what became of it, points in all and test by test, notes."""
    tests = list(dict.fromkeys(name for h in hand_ins for name in h.largest))
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["student", "assignment", "status", "points", "of", "notes", *tests])
        for h in hand_ins:
            points = sum(mark or 0 for mark in h.marks.values()) if h.graded else ""
            table.writerow(
                [h.student, h.assignment, h.status, points, sum(h.largest.values()) or "",
                 " ".join(h.notes), *("" if h.marks.get(t) is None else h.marks[t] for t in tests)]
            )  # fmt: skip


def write_marking_sheet(hand_ins: list[HandIn], path: Path) -> None:
    """Add a line for each answer that a person has to mark, and keep the marks already given."""
    given = {(r["student"], r["assignment"], r["cell"]): r for r in read_marking_sheet(path)}
    for h in hand_ins:
        for cell, mark in h.marks.items():
            if mark is None:
                row = {"student": h.student, "assignment": h.assignment, "cell": cell}
                row |= {"of": str(h.largest[cell]), "points": "", "comment": ""}
                given.setdefault((h.student, h.assignment, cell), row)
    with path.open("w", newline="") as file:
        columns = ["student", "assignment", "cell", "of", "points", "comment"]
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(given.values())


def read_marking_sheet(path: Path) -> list[dict[str, str]]:
    """The lines of the marking sheet; none if there is no sheet yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def feedback(course: Course) -> None:
    """Enter the marks given by hand, then write a page for every hand-in.

    Raises:
        SystemExit: nothing was graded yet, or a mark in the sheet is not a number in range.
    """
    stored = course.root / "hand_ins.json"
    if not stored.is_file():
        raise SystemExit("Nothing has been graded in this course yet: make grade SUBMISSIONS=...")
    hand_ins = [
        HandIn(**{**entry, "path": Path(entry["path"])}) for entry in json.loads(stored.read_text())
    ]
    _enter_marks(course)
    api = NbGraderAPI(config=course.config())
    for h in tqdm(hand_ins, desc="feedback", unit="page"):
        page = course.root / "feedback" / h.student / h.assignment / f"{h.assignment}.html"
        if h.graded:
            _read_marks(h, course)
            result = api.generate_feedback(h.assignment, h.student, force=True)
            if result["success"]:
                unmarked = [_UNMARKED] if h.status == "needs marking" else []
                text = _with_notes(page.read_text(encoding="utf-8"), [*h.notes, *unmarked])
                page.write_text(text, encoding="utf-8")
            else:
                h.notes.append("The page of feedback could not be made.")
        else:
            if not h.assignment:
                page = course.root / "feedback" / h.student / "not-graded.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(_NOT_GRADED.format(
                name=html.escape(h.path.name), why=html.escape(" ".join(h.notes))
            ))  # fmt: skip
    write_marks(hand_ins, course.root / "marks.csv")
    print(f"pages: {course.root / 'feedback'}\nmarks: {course.root / 'marks.csv'}")


def _with_notes(page: str, notes: list[str]) -> str:
    """nbgrader's page, with the notes at its top, its cells by name, and no line cut off."""
    whole_lines = "<style>pre {white-space: pre-wrap !important}</style>"
    page = page.replace("</head>", f"{whole_lines}</head>", 1)
    page = re.sub(r'(<a href="#([\w-]+)">)(?:Test cell|Written response)</a>', r"\1\2</a>", page)
    told = "".join(f"<p><b>{html.escape(note)}</b></p>" for note in notes)
    return page.replace("</ol>", f"</ol>{told}", 1)


_UNMARKED = "Answers in words that are not marked yet show 0 points here."
_NOT_GRADED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Not graded</title>
<body style="font:1.1em/1.6 system-ui;max-width:40em;margin:3em auto;padding:0 1em">
<h1>Not graded yet</h1><p><b>{name}</b> could not be graded. This is not a mark of zero.</p>
<p>{why}</p></body></html>
"""


def _enter_marks(course: Course) -> None:
    with Gradebook(f"sqlite:///{course.root / 'gradebook.db'}", "diffusion") as book:
        for row in read_marking_sheet(course.root / "marking.csv"):
            if not row["points"].strip():
                continue
            try:
                points = float(row["points"])
            except ValueError:
                points = -1.0
            if not 0 <= points <= float(row["of"]):
                raise SystemExit(
                    f"marking.csv: {row['points']!r} points for {row['student']}, {row['cell']}: "
                    f"give a number from 0 to {row['of']}."
                )
            name = row["assignment"]
            mark = book.find_grade(row["cell"], name, name, row["student"])
            mark.manual_score, mark.needs_manual_grade = points, False
            comment = book.find_comment(row["cell"], name, name, row["student"])
            comment.manual_comment = row["comment"]
            book.db.commit()


def grade_all(folder: Path, course: Course, limits: Limits) -> list[HandIn]:
    """Grade a folder of hand-ins and write marks.csv and the marking sheet."""
    hand_ins = collect(folder)
    done: set[tuple[str, str]] = set()
    for h in tqdm(hand_ins, desc="grading", unit="hand-in"):
        try:
            grade(h, course, limits)
        except Exception as error:  # one hand-in must never stop the rest
            h.graded = False
            h.notes.append(f"Grading itself failed: {type(error).__name__}: {_first_line(error)}")
        if h.graded and (h.student, h.assignment) in done:
            h.notes.append("There is more than one notebook of this student: this one counts.")
        done.add((h.student, h.assignment))
    entries = [{**vars(h), "path": str(h.path)} for h in hand_ins]
    (course.root / "hand_ins.json").write_text(json.dumps(entries, indent=1))
    write_marks(hand_ins, course.root / "marks.csv")
    write_marking_sheet(hand_ins, course.root / "marking.csv")
    return hand_ins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--feedback", action="store_true", help="enter marks by hand, write pages")
    parser.add_argument("--course", type=Path, default=Path("course"))
    parser.add_argument("--seconds", type=float, default=Limits.seconds)
    parser.add_argument("--cell-seconds", type=int, default=Limits.cell_seconds)
    parser.add_argument("--gigabytes", type=float, default=Limits.gigabytes)
    options = parser.parse_args()
    course = Course(options.course)
    if options.feedback:
        feedback(course)
        return
    if options.folder is None:
        parser.error("name the folder of hand-ins, or say --feedback")
    limits = Limits(options.seconds, options.cell_seconds, options.gigabytes)
    hand_ins = grade_all(options.folder, course, limits)
    for h in hand_ins:
        points = f"{sum(m or 0 for m in h.marks.values()):g}/{sum(h.largest.values()):g}"
        print(f"{h.student:20} {h.assignment:24} {h.status:14} {points if h.graded else '':>8}  "
              + " ".join(h.notes))  # fmt: skip
    print(f"marks: {course.root / 'marks.csv'}; to mark by hand: {course.root / 'marking.csv'}")


if __name__ == "__main__":
    sys.exit(main())
