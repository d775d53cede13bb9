"""The notebooks' setup cell in its three homes: the repository, an installation, and Colab.

torch, pip and the library are small stand-ins here, so that no test touches a network and only the
cell's own decisions are seen.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.notebooks import setup_source

LIBRARY = "def use_style(): print('styled from', __file__)"
PIP = """
import os, sys
from pathlib import Path
here = Path(__file__).parent
with open(here / "pip.log", "a") as log:
    print(*sys.argv[1:], file=log)
if os.environ.get("OFFLINE"):
    sys.exit(1)
if "--no-deps" in sys.argv:
    (here / "diffusion_lib").mkdir()
    (here / "diffusion_lib" / "viz.py").write_text(os.environ["LIBRARY"])
"""


class Machine:
    """A Python with nothing but stand-ins installed, and a folder to run the cell in."""

    def __init__(self, folder: Path):
        self.packages, self.work = folder / "packages", folder / "work" / "notebooks"
        self.packages.mkdir()
        self.work.mkdir(parents=True)
        self.provide("torch", "class device(str): type = property(str)\n"
                              "class cuda:\n  is_available = staticmethod(lambda: CUDA)\n"
                              "import os\nCUDA = 'GPU' in os.environ")  # fmt: skip
        self.provide("pip", PIP)

    def provide(self, module: str, text: str = "") -> None:
        (self.packages / f"{module}.py").write_text(text)

    def add_library(self, root: Path) -> None:
        (root / "diffusion_lib").mkdir()
        (root / "diffusion_lib" / "viz.py").write_text(LIBRARY)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if k != "DIFFUSION_PROFILE"}
        env = {**inherited, "PYTHONPATH": str(self.packages), "LIBRARY": LIBRARY, **environment}
        command = [sys.executable, "-S", "-c", setup_source()]  # -S: no installed packages
        return subprocess.run(command, cwd=self.work, env=env, capture_output=True, text=True)

    @property
    def pip_calls(self) -> list[str]:
        log = self.packages / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_in_the_repository_its_own_library_wins(machine: Machine):
    machine.add_library(machine.packages)
    machine.add_library(machine.work.parent)
    result = machine.run()
    assert result.returncode == 0, result.stderr
    assert f"styled from {machine.work.parent / 'diffusion_lib'}" in result.stdout
    assert machine.pip_calls == []


def test_an_installed_library_is_used(machine: Machine):
    machine.add_library(machine.packages)
    result = machine.run()
    assert result.returncode == 0, result.stderr
    assert f"styled from {machine.packages}" in result.stdout
    assert machine.pip_calls == []


def test_on_colab_only_what_is_missing_is_installed(machine: Machine):
    for module in ("tqdm", "ipywidgets"):
        machine.provide(module)
    result = machine.run()
    assert result.returncode == 0, result.stderr
    assert f"styled from {machine.packages}" in result.stdout
    dependencies, library = machine.pip_calls
    assert dependencies == "install --quiet safetensors anywidget latex2mathml scikit-learn"
    assert library.startswith("install --quiet --no-deps https://github.com/")


def test_without_a_connection_it_says_what_to_do(machine: Machine):
    result = machine.run(OFFLINE="1")
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1].removeprefix("RuntimeError: ")
    assert message.startswith("diffusion_lib could not be installed from https://github.com/")
    assert message.count(". ") == 1
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "device: cpu, profile: cpu"),
        ({"GPU": "1"}, "device: cuda, profile: gpu"),
        ({"GPU": "1", "DIFFUSION_PROFILE": "cpu"}, "device: cuda, profile: cpu"),
    ],
)
def test_profile_follows_the_device_unless_it_is_given(
    machine: Machine, environment: dict[str, str], line: str
):
    machine.add_library(machine.packages)
    assert machine.run(**environment).stdout.splitlines()[-1] == line
