"""Run, stamp and check the notebooks, which are committed with their outputs.

    python tools/notebooks.py run [paths]      execute in a fresh kernel, tidy, stamp, check
    python tools/notebooks.py setup [paths]    write the common setup cell into each
    python tools/notebooks.py check [paths]    prove that outputs are fresh and can be read by all

Without paths, all of `notebooks/`. `check` runs nothing, so it takes a moment. CONTRIBUTING.md says
what it demands and why.
"""

import argparse
import base64
import datetime
import hashlib
import io
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
SETUP = ROOT / "tools" / "setup_cell.py"
COSTS = ROOT / "benchmarks" / "results" / "notebooks.json"
MAX_BYTES = 1_500_000
STAMP = "diffusion_book"
WIDGET = "application/vnd.jupyter.widget-view+json"
# Written by editors, different on every machine, and of no use to a reader.
VOLATILE = {"ExecuteTime", "colab", "collapsed", "execution", "id", "outputId", "scrolled"}


def read(path: Path) -> NotebookNode:
    nb = nbformat.read(path, as_version=4)
    return nbformat.v4.upgrade(nb) if nb.nbformat_minor < 5 else nb  # Colab saves version 4.0


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The code cells that hold code."""
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def code_hash(nb: NotebookNode) -> str:
    """Changes when any code does; the repository's address, which no output shows, is left out."""
    address = re.compile(r'(?m)^REPOSITORY = ".*"$')
    return digest([address.sub("REPOSITORY", cell.source) for cell in code_cells(nb)])


def library_hash(root: Path = ROOT) -> str:
    """Changes when any module of diffusion_lib does."""
    modules = sorted((root / "diffusion_lib").rglob("*.py"))
    return digest([path.read_text(encoding="utf-8") for path in modules])


def setup_source(notebook: str | None = None) -> str:
    """The common setup cell; a notebook's own says at its end what running it took."""
    common = SETUP.read_text(encoding="utf-8").strip()
    if notebook is None:
        return common
    return f'{common}\nprint(diffusion_lib.results.cost("{notebook}", device.type))'


def insert_setup(nb: NotebookNode, notebook: str) -> None:
    """Make the first code cell the setup cell."""
    first = next((cell for cell in nb.cells if cell.cell_type == "code"), None)
    if first is None or "setup" not in tags(first):
        cell = nbformat.v4.new_code_cell(metadata={"tags": ["setup", "hide-input"]})
        nb.cells.insert(len(nb.cells) if first is None else nb.cells.index(first), cell)
        first = cell
    first.source = setup_source(notebook)


def smaller(png: str) -> str:
    """A stored picture (base64 PNG) in 256 colours, which plots do not exceed visibly: a third."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P" or picture.convert("RGBA").getextrema()[3] != (255, 255):
        return png  # done already, or partly transparent
    buffer = io.BytesIO()
    few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    return min(base64.b64encode(buffer.getvalue()).decode(), png, key=len)


def tidy(nb: NotebookNode) -> None:
    """Remove whatever would differ between two runs of the same code, and dead widget views;
    store pictures small."""
    nb.metadata.pop("widgets", None)
    nb.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    nb.metadata["language_info"] = {"name": "python"}
    for cell in nb.cells:
        for key in VOLATILE:
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        merged: list[NotebookNode] = []
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:  # without a kernel only the HTML face of a widget works
                data.pop(WIDGET, None)
            if data.get("image/png", "").startswith("iVBORw0KGgo"):  # how each PNG begins
                data["image/png"] = smaller(data["image/png"].replace("\n", ""))
            last = merged[-1] if merged else None
            if output.output_type == "stream" and last and last.get("name") == output.name:
                last.text += output.text  # a stream is cut at random moments
            else:
                merged.append(output)
        cell.outputs = merged


def execute(nb: NotebookNode, folder: Path) -> None:
    """Run every cell from a fresh kernel of this very Python, in the notebook's folder."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    kernels = KernelSpecManager(kernel_dirs=[str(Path(sys.prefix, "share/jupyter/kernels"))])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = NotebookClient(
        nb, km=manager, timeout=3600, resources={"metadata": {"path": str(folder)}}
    )
    # Threads as in the Makefile; a progress bar is no output to keep.
    environment = {"OMP_NUM_THREADS": "2", **os.environ, "TQDM_DISABLE": "1"}
    client.execute(cleanup_kc=True, env=environment)


# Run after a notebook's own cells: the most memory that they held at once, in bytes.
PEAK = """
import resource, sys, torch
unit = 1 if sys.platform == "darwin" else 1024
print(torch.cuda.max_memory_allocated() if torch.cuda.is_available()
      else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


def record(notebook: str, seconds: int, peak: int) -> None:
    """Keep what a run took in results/notebooks.json, beside those on other kinds of device."""
    import torch

    from diffusion_lib.data import usable_cores

    cuda, cores = torch.cuda.is_available(), usable_cores()
    device = torch.cuda.get_device_name() if cuda else f"{cores} CPU core{'s' * (cores != 1)}"
    recorded = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.is_file() else {}
    recorded.setdefault(notebook, {})["cuda" if cuda else "cpu"] = {
        "seconds": seconds,
        "gigabytes": round(peak / 1e9, 2),
        "device": device,
        "profile": os.environ.get("DIFFUSION_PROFILE", "gpu" if cuda else "cpu"),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    COSTS.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n", encoding="utf-8")


def run(path: Path) -> None:
    """Execute, tidy and stamp one notebook; on an error the file stays as it was."""
    import torch

    nb = read(path)
    nb.cells.append(nbformat.v4.new_code_cell(PEAK))
    start = time.monotonic()
    execute(nb, path.resolve().parent)
    seconds = round(time.monotonic() - start)
    record(path.stem, seconds, int(nb.cells.pop().outputs[0].text))
    tidy(nb)
    nb.metadata[STAMP] = {
        "code": code_hash(nb),
        "library": library_hash(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seconds": seconds,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    nbformat.write(nb, path)


def image_problems(cell: NotebookNode) -> Iterator[str]:
    """What a reader who cannot see the cell's pictures, or cannot run it, would miss."""
    bundles = [output.get("data", {}) for output in cell.outputs]
    pictures = sum(any(mime.startswith("image/") for mime in data) for data in bundles)
    if pictures:
        options = cell.metadata.get("mystnb", {})
        figure = options.get("figure", {})
        if not options.get("image", {}).get("alt", "").strip():
            yield "a picture without alt text (metadata mystnb.image.alt)"
        if not figure.get("caption", "").strip():
            yield "a picture without a caption (metadata mystnb.figure.caption)"
        if not figure.get("name", "").startswith("fig-"):
            yield "a picture without a name fig-... (metadata mystnb.figure.name)"
    if pictures > 1:
        yield f"{pictures} pictures, which one alt text cannot describe: one picture a cell"
    for data in bundles:
        html = data.get("text/html", "")
        for tag in re.findall(r"<[a-zA-Z][^>]*>", html):
            if re.match(r"<img\b", tag) and not re.search(r"\balt=[\"'][^\"']", tag):
                yield "an <img> without alt text in its HTML"
            is_image = re.search(r"\brole=[\"']?img\b", tag)
            if is_image and not re.search(r"\baria-label(ledby)?=[\"']?[^\"'\s>]", tag):
                yield 'a role="img" without aria-label in its HTML'
        if WIDGET in data and not html:
            yield "a widget without an HTML face, which is dead on a page"


def cell_problems(cell: NotebookNode) -> Iterator[str]:
    if any(o.output_type == "error" for o in cell.outputs) and "raises-exception" not in tags(cell):
        yield "an error among its outputs"
    if any(o.get("name") == "stderr" for o in cell.outputs):
        yield "a warning among its outputs (stderr)"
    if "nbval-check-output" in tags(cell) and not cell.outputs:
        yield "the tag nbval-check-output, but no stored output to compare with"
    shown = json.dumps(cell.outputs)
    if f"{ROOT}{os.sep}" in shown or "/ipykernel_" in shown:
        yield "a path of the machine that it ran on among its outputs"
    if re.search(r"\bat 0x[0-9a-f]{6,}>", shown):
        yield "an object's address as output: end a figure with plt.show()"
    yield from image_problems(cell)


def problems(path: Path) -> list[str]:
    """Everything that keeps a notebook from being committed as it is."""
    nb = read(path)
    cells, found = code_cells(nb), []
    wanted = setup_source(path.stem)
    if not cells or "setup" not in tags(cells[0]) or cells[0].source.strip() != wanted:
        found.append("its first code cell is not the setup cell (run: tools/notebooks.py setup)")
    if nb.metadata.get(STAMP, {}).get("code") != code_hash(nb):
        found.append("its code changed since it was run (run: tools/notebooks.py run)")
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"it was not run once from top to bottom: {counts}")
    for number, cell in enumerate(cells, start=1):
        found += [f"code cell {number} has {problem}" for problem in cell_problems(cell)]
    size = path.stat().st_size
    if size > MAX_BYTES:
        found.append(f"it has {size:,} bytes, over {MAX_BYTES:,}: show smaller or fewer pictures")
    return found


def has_drifted(path: Path) -> bool:
    """Whether the library changed since the notebook was run; its outputs may still be right."""
    stamp = read(path).metadata.get(STAMP, {})
    return stamp.get("library") != library_hash()


def check(path: Path, release: bool) -> bool:
    """Print what is wrong with one notebook; returns whether it may be committed (or released)."""
    found, drifted = problems(path), has_drifted(path)
    for problem in found:
        print(f"{path}: {problem}", file=sys.stderr)
    if drifted:
        level = "error" if release else "warning"
        print(f"{path}: {level}: diffusion_lib changed since it was run", file=sys.stderr)
    ok = not found and not (release and drifted)
    if ok:
        print(f"{path}: fresh")
    return ok


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "setup", "check"])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--release", action="store_true", help="library drift is an error")
    options = parser.parse_intermixed_args(arguments)
    everything = sorted((ROOT / "notebooks").glob("*.ipynb"))
    paths = options.paths or [Path(os.path.relpath(path)) for path in everything]
    if not paths:
        print("There is no notebook to work on.", file=sys.stderr)
        return 1
    ok = True
    for path in paths:
        if options.command == "setup":
            nb = read(path)
            insert_setup(nb, path.stem)
            nbformat.write(nb, path)
            continue
        if options.command == "run":
            print(f"{path}: running", flush=True)
            run(path)
        ok = check(path, options.release) and ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
