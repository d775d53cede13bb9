"""Thirteen odd hand-ins: each is reported by name, none is silently 0, none stops the rest."""

import csv
import json

import nbformat
import pytest
from build import build
from conftest import cell
from course import Course
from grade import Limits, feedback, grade_all

NAME = "1_forward_process"
FULL = 16  # points that tests give; 4 more are for words


def _write(folder, who, nb):
    (folder / who).mkdir()
    nbformat.write(nb, folder / who / f"{NAME}.ipynb")


@pytest.fixture(scope="module")
def hand_ins(course, solution, stub, tmp_path_factory):
    """Student -> what became of the hand-in."""
    folder = tmp_path_factory.mktemp("handed-in")
    _write(folder, "good", solution(NAME, "good"))
    _write(folder, "empty", stub(NAME, "empty"))

    nb = solution(NAME, "stripped")
    for c in nb.cells:
        c.metadata.pop("nbgrader", None)
    _write(folder, "stripped", nb)

    nb = stub(NAME, "tampered")
    cell(nb, "alpha_bars-shown").source = "pass"
    _write(folder, "tampered", nb)

    nb = stub(NAME, "generous")  # to himself: only the cells' settings are others
    cell(nb, "half_time").metadata["nbgrader"]["points"] = 1000
    cell(nb, "alpha_bars-hidden").metadata["nbgrader"]["grade"] = False
    _write(folder, "generous", nb)

    nb = solution(NAME, "missing")
    nb.cells.remove(cell(nb, "forward_sample"))
    nb.cells.remove(cell(nb, "terminal_signal"))
    _write(folder, "missing", nb)

    nb = solution(NAME, "endless")
    cell(nb, "alpha_bars").source = "def alpha_bars(betas):\n    while True:\n        pass"
    _write(folder, "endless", nb)

    nb = solution(NAME, "hog")
    cell(
        nb, "alpha_bars"
    ).source = "hoard = []\nwhile True:\n    hoard.append(bytearray(50_000_000))"
    _write(folder, "hog", nb)

    nb = solution(NAME, "chatty")
    cell(nb, "my_answers").source += "\nfor i in range(60_000):\n    print('x' * 100)"
    _write(folder, "chatty", nb)

    nb = solution(NAME, "raises")
    cell(nb, "log_linear_bars").source = "def log_linear_bars(T, high, low):\n    return 1 / 0"
    _write(folder, "raises", nb)

    (folder / "broken").mkdir()
    (folder / "broken" / f"{NAME}.ipynb").write_text('{"cells": [')

    _write(folder, "thief", solution(NAME, "good"))

    nb = solution(NAME, "last-year")
    nb.metadata["diffusion_assignment"]["course"] = "00000000"
    _write(folder, "last-year", nb)

    limits = Limits(seconds=300, cell_seconds=25, gigabytes=3.0)
    return {h.student: h for h in grade_all(folder, course, limits)}


def _points(hand_in):
    return sum(mark or 0 for mark in hand_in.marks.values())


def test_all_thirteen_are_reported(hand_ins, course):
    with (course.root / "marks.csv").open(newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(hand_ins) == 13
    for who, h in hand_ins.items():
        assert rows[who]["status"] == h.status
        if not h.graded:
            assert rows[who]["points"] == "" and rows[who]["notes"]


@pytest.mark.parametrize(
    ("who", "points", "note"),
    [
        ("good", FULL, ""),
        ("empty", 0, ""),
        ("tampered", 0, "may not be changed were: alpha_bars-shown"),
        ("generous", 0, "(points, locks) were changed: alpha_bars-hidden, half_time. Restored"),
        ("missing", FULL - 4, "missing: forward_sample, terminal_signal"),
        ("endless", FULL - 3, "did not end in time: alpha_bars-shown, alpha_bars-hidden"),
        ("chatty", FULL, ""),
        ("raises", FULL - 5, ""),
        ("thief", None, "says 'good', and it was handed in by 'thief'"),
    ],
)
def test_what_can_be_graded_is(hand_ins, who, points, note):
    hand_in = hand_ins[who]
    assert hand_in.graded
    assert note in " ".join(hand_in.notes) and bool(note) == bool(hand_in.notes)
    if points is not None:
        assert _points(hand_in) == points
    assert sum(hand_in.largest.values()) == 20


@pytest.mark.parametrize(
    ("who", "note"),
    [
        ("stripped", "lost their names"),
        ("hog", "more than 3 GB of memory"),
        ("broken", "not a notebook that can be read"),
        ("last-year", "another course"),
    ],
)
def test_what_cannot_be_graded_says_why_and_is_no_zero(hand_ins, who, note):
    hand_in = hand_ins[who]
    assert hand_in.status == "NOT GRADED"
    assert note in " ".join(hand_in.notes)
    assert hand_in.marks == {} or not hand_in.graded


def test_marks_by_hand_are_entered_and_every_hand_in_gets_a_page(hand_ins, course):
    sheet = course.root / "marking.csv"
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"good", "endless"} <= {row["student"] for row in rows}
    for row in rows:
        if row["student"] == "good":
            row["points"], row["comment"] = "3", "Say which property suffers most."
    with sheet.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)

    feedback(course)

    with (course.root / "marks.csv").open(newline="") as file:
        marks = {row["student"]: row for row in csv.DictReader(file)}
    assert float(marks["good"]["points"]) == FULL + 3 and marks["good"]["status"] == "graded"
    for who in hand_ins:
        (page,) = (course.root / "feedback" / who).rglob("*.html")
        text = page.read_text()
        assert len(text) < 3_000_000
        assert ("not a mark of zero" in text) == (not hand_ins[who].graded)
    good = course.root / "feedback" / "good" / NAME / f"{NAME}.html"
    assert "Say which property suffers most." in good.read_text()
    endless = (course.root / "feedback" / "endless" / NAME / f"{NAME}.html").read_text()
    assert "<b>Cells that did not end in time: alpha_bars-shown" in endless  # the student reads it
    assert "not marked yet" in endless and "not marked yet" not in good.read_text()
    assert '<a href="#alpha_bars-shown">alpha_bars-shown</a>' in endless
    assert "Test cell</a>" not in endless and "Written response</a>" not in endless


def test_a_mark_out_of_range_is_refused_by_name(hand_ins, course):
    sheet = course.root / "marking.csv"
    before = sheet.read_text()
    row = "endless,1_forward_process,explain_terminal,4.0,"
    sheet.write_text(before.replace(f"{row},", f"{row}7,"))
    assert sheet.read_text() != before
    with pytest.raises(SystemExit, match="'7' points for endless"):
        feedback(course)
    sheet.write_text(before)


def test_two_courses_share_no_secret(tmp_path):
    courses = [Course(tmp_path / seed, seed) for seed in ("one", "two")]
    for c in courses:
        build(c, [NAME])
    hidden = [(c.root / "source" / NAME / f"{NAME}.ipynb").read_text() for c in courses]
    shown = [(c.root / "release" / NAME / f"{NAME}.ipynb").read_text() for c in courses]
    assert hidden[0] != hidden[1]
    for c, handed_out in zip(courses, shown, strict=True):
        assert str(c.number(NAME)) not in handed_out
        assert c.seed not in json.loads(handed_out)["cells"][0]["source"]
        assert "BEGIN" not in handed_out and "hidden_" not in handed_out
    with pytest.raises(SystemExit, match="another seed"):
        Course(tmp_path / "one", "two")


def test_numbers_differ_from_student_to_student_and_repeat(course, solution):
    namespace = {}
    numbers = set()
    for who in ("ada", "ben", "cleo", "dan", "eve", "fay"):
        nb = solution(NAME, who)
        exec(cell(nb, "student").source + "\n" + cell(nb, "mine").source, namespace)
        first, again = (namespace["mine"]("T", list(range(1000))) for _ in range(2))
        assert first == again
        numbers.add(first)
    assert len(numbers) == 6
