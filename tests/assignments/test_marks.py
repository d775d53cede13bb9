"""For each assignment: nothing for the empty notebook, all for the solution, errors priced."""

import nbformat
import pytest
from conftest import NAMES, cell
from grade import Limits, grade_all
from wrong_solutions import WRONG


@pytest.fixture(scope="module")
def graded(course, solution, stub, tmp_path_factory):
    """graded(name): student -> what became of the hand-in; each assignment is graded once."""
    done = {}

    def grade_class(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            notebooks = {"solved": solution(name, "solved"), "empty": stub(name, "empty")}
            for wrong in WRONG[name]:
                notebooks[wrong.name] = solution(name, wrong.name)
                for which, code in wrong.code.items():
                    cell(notebooks[wrong.name], which).source = code
            for who, nb in notebooks.items():
                (folder / who).mkdir()
                nbformat.write(nb, folder / who / "mine.ipynb")
            # On a busy machine a training that is right may take long: not the subject here.
            patient = Limits(seconds=3600, cell_seconds=1200)
            done[name] = {h.student: h for h in grade_all(folder, course, patient)}
        return done[name]

    return grade_class


def test_every_assignment_has_at_least_five_wrong_solutions():
    assert set(WRONG) == set(NAMES)
    assert all(len(entries) >= 5 for entries in WRONG.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_gets_every_point_that_a_test_gives(graded, name):
    hand_in = graded(name)["solved"]
    assert hand_in.graded and hand_in.notes == []
    tested = {test: mark for test, mark in hand_in.marks.items() if mark is not None}
    assert tested == {test: hand_in.largest[test] for test in tested}
    assert sum(hand_in.largest.values()) == 20
    marked = [test for test, mark in hand_in.marks.items() if mark is None]
    assert marked, "an answer in words waits for a person"


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_notebook_gets_nothing(graded, name):
    hand_in = graded(name)["empty"]
    assert hand_in.graded and hand_in.notes == []
    assert sum(mark or 0 for mark in hand_in.marks.values()) == 0


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name in WRONG for wrong in WRONG[name]],
    ids=[f"{name}-{wrong.name}" for name in WRONG for wrong in WRONG[name]],
)  # fmt: skip
def test_a_wrong_solution_loses_its_points_and_no_others(graded, name, wrong):
    hand_in = graded(name)[wrong.name]
    assert hand_in.graded
    lost = {t for t, mark in hand_in.marks.items() if mark is not None and mark == 0}
    assert lost == wrong.fails
