"""The apps, quizzes and sliders in JupyterLab with a kernel, and a quiz as Colab frames it."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from time import sleep

import pytest

from diffusion_lib import quiz

# A figure with a slider, the three apps, a quiz, and what the sampler hands back.
CELLS = {
    "slider": """
import matplotlib.pyplot as plt
from diffusion_lib import pretrained, quiz, widgets
def draw(n):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.bar(range(n), range(n))
    plt.close(fig)
    return fig
widgets.explore(draw, {"n": [1, 2, 3]}, alt="bars")""",
    "explorer": "widgets.forward_explorer()",
    "lab": "widgets.mixture_lab()",
    "sampler": """
model = pretrained.load_pretrained("digits8")
sampler = widgets.sampler(model, steps=5)
sampler""",
    "quiz": 'quiz.quiz("forward_process")',
}
# Whether the page drew what the library draws from the same seed.
ASK = """
from diffusion_lib.guidance import cfg, clip
from diffusion_lib.samplers import sample
if sampler.samples is not None:
    guided, levels = clip(cfg(model, 2.0)), model.schedule.levels(5)
    ours = sample(guided, (10, 1, 8, 8), levels, cond=list(range(10)), seed=0)
    print("differs by at most 1e-4:", float((sampler.samples - ours).abs().max()) <= 1e-4)"""


def notebook(sources):
    """A notebook of code cells, as a file holds it."""
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "source": source,
         "execution_count": None}
        for i, source in enumerate(sources)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """The address of a JupyterLab of its own, without a password, in an empty folder."""
    home = tmp_path_factory.mktemp("jupyter")
    (home / "work").mkdir()
    (home / "work" / "page.ipynb").write_text(json.dumps(notebook([*CELLS.values(), ASK])))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        "--no-browser", "--allow-root", "--expose-app-in-browser",
        f"--port={port}", "--ip=127.0.0.1", "--port-retries=0",
        "--IdentityProvider.token=", f"--ServerApp.root_dir={home / 'work'}",
        "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    # Nobody's own settings, and no traces in them.
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    folders["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    folders["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *settings],
            env={**os.environ, **folders}, stdout=log, stderr=log,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
            break
        assert server.poll() is None, (home / "log").read_text()
        sleep(0.1)
    yield address
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def lab(jupyter, browser):
    """The notebook in JupyterLab after "Run All Cells"; a tall window, so that all is drawn."""
    page = browser.new_page(viewport={"width": 1200, "height": 6000})
    page.set_default_timeout(60_000)
    page.goto(f"{jupyter}/lab/tree/page.ipynb")
    page.locator(".jp-Notebook").wait_for()
    # Not by the menu: what is asked for while the kernel is still being connected is lost.
    kernel = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
    page.wait_for_function(f"{kernel}?.connectionStatus === 'connected'")
    page.wait_for_function(f"{kernel}.status === 'idle'")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.locator(".dl-quiz.dl-live").wait_for()
    yield page
    page.close()


def cell(lab, name):
    """The output of a cell by its name in CELLS."""
    return lab.locator(".jp-CodeCell").nth(list(CELLS).index(name)).locator(".jp-OutputArea")


def test_sliders_recompute(lab):
    """The live face: a slider of ipywidgets, and no precomputed one beside it."""
    output = cell(lab, "slider")
    handle = output.get_by_role("slider")
    assert handle.count() == 1 and output.locator(".dl-scrub").count() == 0
    before = output.locator("img").get_attribute("src")
    handle.focus()
    handle.press("ArrowRight")
    output.locator(f'img:not([src="{before}"])').wait_for()


@pytest.mark.parametrize("app", ["explorer", "lab"])
def test_app_runs(lab, app):
    root = cell(lab, app).locator(f'[data-app="{app}"]')
    lab.wait_for_function("e => e.dataset.seed === '0'", arg=root.element_handle())
    assert root.locator("canvas").count() >= 1
    blank = """c => new Set(new Uint32Array(
        c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size < 2"""
    assert not root.locator("canvas").first.evaluate(blank)


def test_explorer_obeys_the_keyboard(lab):
    root = cell(lab, "explorer").locator('[data-app="explorer"]')
    slider = root.get_by_role("slider").first
    slider.focus()
    before = slider.input_value()
    slider.press("End")
    assert slider.input_value() != before
    assert slider.input_value() == slider.get_attribute("max")


def test_sampler_hands_its_pictures_to_the_kernel(lab):
    root = cell(lab, "sampler").locator('[data-app="sampler"]')
    root.get_by_role("button", name="Draw").click()
    root.get_by_text("Drawn in 5 steps").wait_for()
    last = lab.locator(".jp-CodeCell").last
    last.locator(".cm-content").click()
    lab.keyboard.press("Control+Enter")
    last.get_by_text("differs by at most 1e-4: True").wait_for()


def answer(form, number, option):
    """Choose an option of a question in a quiz."""
    form.locator("fieldset").nth(number).get_by_role("radio").nth(option).check()


def right_option(question):
    return next(i for i, option in enumerate(question.options) if option.right)


def check_first_question(form):
    """A wrong answer gets its reason; the right one, chosen after it, no point."""
    question = quiz.questions("forward_process")[0]
    right = right_option(question)
    answer(form, 0, (right + 1) % len(question.options))
    assert form.locator('[data-right="0"]:visible').inner_text().startswith("Not this one.")
    assert form.locator(".dl-score").inner_text().startswith("0 right at the first try, of 1")
    answer(form, 0, right)
    assert form.locator('[data-right="1"]:visible').count() == 1
    assert form.locator(".dl-score").inner_text().startswith("0 right at the first try, of 1")


def check_a_number(form, keyboard):
    """A known mistake, typed and sent with Enter, gets its own reason; then the right number."""
    entries = quiz.questions("forward_process")
    place = next(i for i, q in enumerate(entries) if q.tolerance is not None)
    question, asked = entries[place], form.locator("fieldset").nth(place)
    wrong = next(i for i, option in enumerate(question.options) if not option.right)
    for option in (wrong, right_option(question)):
        asked.get_by_role("textbox").fill("")
        asked.get_by_role("textbox").focus()
        keyboard.type(str(question.options[option].answer))
        keyboard.press("Enter")
        assert asked.locator("[data-why]:visible").get_attribute("data-why") == str(option)


def test_quiz_scores_in_jupyterlab(lab):
    form = cell(lab, "quiz").locator("form.dl-quiz")
    check_first_question(form)
    check_a_number(form, lab.keyboard)  # JupyterLab's own shortcuts are digits and Enter too


def test_apps_leave_the_quiz_its_looks(lab):
    """Their style sheets are in the same page: no rule for an app may reach the quiz."""
    frame = cell(lab, "quiz").locator("form.dl-quiz fieldset").first
    assert frame.evaluate("e => getComputedStyle(e).borderTopWidth") == "1px"
    assert frame.locator("legend").evaluate("e => getComputedStyle(e).float") == "left"


def test_quiz_scores_in_a_frame_as_in_colab(browser):
    """Colab puts each output into a sandboxed frame of another origin, and runs its scripts."""
    page = browser.new_page()
    page.set_content('<iframe sandbox="allow-scripts" width=700 height=3000></iframe>')
    text = quiz.to_html(quiz.questions("forward_process"), "forward_process")
    page.locator("iframe").evaluate("(frame, text) => { frame.srcdoc = text; }", text)
    form = page.frame_locator("iframe").locator("form.dl-quiz.dl-live")
    check_first_question(form)
    check_a_number(form, page.keyboard)
    page.close()
