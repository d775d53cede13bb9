"""A notebook opened away from the repository, on a machine that has Colab's packages and no more.

The setup cell runs for real: it finds what is missing and asks pip for it. Only pip itself is a
stand-in, which takes the library from a wheel built here, as GitHub's archive would give it, and
other packages from this environment; so no test touches a network. Colab's own image is tried each
week by .github/workflows/colab.yml.
"""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import types
import zipfile
from pathlib import Path

import pytest

from diffusion_lib import UserError, files
from tools.notebooks import setup_source

ROOT = Path(__file__).parents[1]
INSTALLED = Path(sysconfig.get_paths()["purelib"])
# What Colab's image lacks, or cannot be relied on to have, of all that the library imports.
ABSENT = ("diffusion_lib", "__editable__", "safetensors", "anywidget", "latex2mathml")

PIP = """
import os, sys, zipfile
from pathlib import Path
here, installed = Path(__file__).parent, Path(os.environ["INSTALLED"])
with open(here / "pip.log", "a") as log:
    print(*sys.argv[1:], file=log)
for wanted in sys.argv[1:]:
    if wanted.startswith("https://"):
        zipfile.ZipFile(os.environ["WHEEL"]).extractall(here)
    elif not wanted.startswith("-") and wanted != "install":
        for found in installed.glob(wanted.replace("-", "_") + "*"):
            (here / found.name).symlink_to(found)
"""


# Colab's own module for Google Drive: it asks for access, and the drive appears in a folder.
DRIVE = """
from pathlib import Path
def mount(place):
    Path(place, "MyDrive").mkdir(parents=True, exist_ok=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as pip would install it. (Copied first: a build leaves files behind.)"""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("wheel")
    names = ("diffusion_lib", "benchmarks", "README.md", "LICENSE", "requirements.txt")
    copy = [ROOT / name for name in names]
    subprocess.run(["cp", "-r", *map(str, copy), str(ROOT / "pyproject.toml"), "."],
                   cwd=folder, check=True)  # fmt: skip
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", "out", "."], cwd=folder, check=True)
    (built,) = (folder / "out").glob("*.whl")
    return built


class Colab:
    """Packages, a folder that holds notebooks and nothing else, and Python runs in it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.packages, self.work = folder / "packages", folder / "content"
        self.packages.mkdir()
        self.work.mkdir()
        for entry in INSTALLED.iterdir():
            if not entry.name.startswith((*ABSENT, "pip")) and entry.suffix != ".pth":
                (self.packages / entry.name).symlink_to(entry)
        (self.packages / "pip.py").write_text(PIP)
        (self.packages / "google" / "colab").mkdir(parents=True)
        (self.packages / "google" / "colab" / "drive.py").write_text(DRIVE)
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "DIFFUSION_PROFILE"},
            "PYTHONPATH": str(self.packages),
            "INSTALLED": str(INSTALLED),
            "WHEEL": str(wheel),
            "MPLBACKEND": "agg",
        }

    def run(self, source: str, returncode: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-S", "-c", source],
            cwd=self.work, env=self.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == returncode, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Colab:
    """After the setup cell has run there."""
    machine = Colab(tmp_path_factory.mktemp("colab"), wheel)
    assert re.search(r"^device: (cpu|cuda), profile: (cpu|gpu)$", machine.run(setup_source()), re.M)
    return machine


def notebook_imports() -> list[str]:
    """Every import statement of every notebook, once."""
    statements = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = [line for line in cell["source"] if not line.startswith(("%", "!"))]
            if cell["cell_type"] != "code" or "setup" in cell["metadata"].get("tags", []):
                continue
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    statements.add(ast.unparse(node))
    return sorted(statements)


def sources(notebook: str, *ids: str) -> list[str]:
    """The code cells of a notebook in their order, all or those with these ids."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in code if not ids or cell["id"] in ids]


def test_no_package_of_colabs_is_touched(colab: Colab) -> None:
    for line in (colab.packages / "pip.log").read_text().splitlines():
        command, *wanted = (word for word in line.split() if not word.startswith("-"))
        assert command == "install"
        for name in wanted:
            missing = name.replace("-", "_").startswith(ABSENT)
            assert missing or (name.startswith("https://") and "--no-deps" in line), line
            assert not re.search("[=<>]", name), f"{name} is pinned"


def test_all_that_the_notebooks_import_is_there(colab: Colab) -> None:
    statements = notebook_imports()
    assert any("diffusion_lib" in s for s in statements)
    printed = colab.run("\n".join([*statements, "import diffusion_lib as d", "print(d.__file__)"]))
    assert Path(printed.strip().splitlines()[-1]).is_relative_to(colab.packages)


def test_everything_that_the_library_imports_is_there(colab: Colab) -> None:
    """Also what is imported only inside a function, but for the metrics that ask for torchmetrics
    and torch-fidelity themselves."""
    wanted = set()
    for path in (ROOT / "diffusion_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                wanted.add(str(node.module).split(".")[0])
    wanted -= {*sys.stdlib_module_names, "torchmetrics", "torch_fidelity"}
    there = colab.run("from importlib.util import find_spec\n"
                      f"print([n for n in {sorted(wanted)} if find_spec(n) is None])")  # fmt: skip
    assert there.strip() == "[]"


def test_every_file_of_the_library_is_installed(wheel: Path) -> None:
    """Weights, cards, scripts of the pages: what pip leaves out fails only on Colab."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "diffusion_lib").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            name = path.relative_to(ROOT).as_posix()
            assert name in packed, f"{name} would be missing on Colab: see package-data"


def test_a_shipped_model_draws_there(colab: Colab) -> None:
    source = """
from diffusion_lib import load_pretrained, sample
denoiser = load_pretrained("digits16")
print(sample(denoiser, (1, 1, 16, 16), denoiser.schedule.levels(2)).shape)
"""
    assert "[1, 1, 16, 16]" in colab.run(source)


def test_setup_cell_tells_device_time_and_memory(colab: Colab) -> None:
    device, cost = colab.run(setup_source("02_elbo_and_loss")).splitlines()
    assert device == "device: cpu, profile: cpu"
    assert re.fullmatch(r"All cells take up to \d+ min and \d+ GB of memory: measured on .+", cost)
    on_a_gpu = 'import diffusion_lib as d; print(d.results.cost("02_elbo_and_loss", "cuda"))'
    assert re.search("was not measured|measured on NVIDIA", colab.run(on_a_gpu))


def test_no_cell_but_the_setup_fetches_anything() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for source in sources(path.stem)[1:]:
            assert not re.search(r"https?://|urlopen|urlretrieve|REPOSITORY|[!%]pip", source), path


def test_every_stored_measurement_is_there(colab: Colab) -> None:
    named = {
        name
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for name in re.findall(r'results\.load\("(\w+)"\)', "\n".join(sources(path.stem)))
    }
    assert len(named) >= 6
    read = f"from diffusion_lib import results\nprint([len(results.load(n)) for n in {named}])"
    assert "0" not in re.findall(r"\d+", colab.run(read))


@pytest.mark.parametrize("notebook", ["01_forward_process", "02_elbo_and_loss"])
def test_run_all_works_there(colab: Colab, notebook: str) -> None:
    """Every cell of a notebook, one after the other, by IPython and with no repository near."""
    run = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for source in {sources(notebook)!r}:
    shell.run_cell(source, store_history=True).raise_error()
"""
    assert "device: cpu" in colab.run(run)


def test_a_long_run_on_drive_survives_a_disconnect(colab: Colab) -> None:
    """The cell of chapter 4, ended in its middle as Colab ends a session, and run again."""
    setup, imports, cell = sources("04_training", "setup", "imports", "long-run")
    on_drive = cell.replace("ON_DRIVE = False", "ON_DRIVE = True").replace("every=200", "every=2")
    assert on_drive.count("ON_DRIVE = True") == 1 and "save_every=2)" in on_drive
    place = "from diffusion_lib import files; files.DRIVE = Path('drive')"
    ended = """
save, saves = Trainer.save, []
def save_and_end(self, path):
    save(self, path)
    saves.append(path)
    if len(saves) == 2:
        os._exit(3)
Trainer.save = save_and_end
"""
    weights = "print(float(sum(p.double().abs().sum() for p in long_run.average.net.parameters())))"
    begin = "\n".join([setup, imports, place])
    colab.run("\n".join([begin, ended, on_drive]), returncode=3)
    kept = colab.work / "drive" / "MyDrive" / "diffusion_book" / "digits16.pt"
    assert kept.is_file()
    resumed = colab.run("\n".join([begin, on_drive, weights])).splitlines()
    assert resumed[-2] == "from step 4 to step 10, kept in digits16.pt"
    whole = colab.run("\n".join([begin, cell, weights])).splitlines()
    assert whole[-2].startswith("from step 0 to step 10")
    assert resumed[-1] == whole[-1]


def test_away_from_colab_drive_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(UserError, match=r"from Colab only\. Elsewhere save to a folder"):
        files.drive_folder("x")
    refuses = types.ModuleType("google.colab")
    refuses.drive = types.SimpleNamespace(mount=lambda place: 1 / 0)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", refuses)
    with pytest.raises(UserError, match=r"could not be mounted.*\. Run the cell again"):
        files.drive_folder("x")
