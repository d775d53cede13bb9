"""What runs in the page, as far as Python can tell; tests/site looks at it in a browser."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load
from torch import nn

from diffusion_lib import (
    Denoiser,
    UNet,
    UNetConfig,
    UserError,
    cfg,
    clip,
    linear,
    load_pretrained,
    pretrained,
    sample,
    web,
    widgets,
)
from diffusion_lib.web import build
from diffusion_lib.web.__main__ import main
from tools import vendor

ROOT = Path(__file__).resolve().parents[1]
SMALL = UNetConfig(channels=(8, 16), time_channels=16, classes=10)


def small(**about) -> Denoiser:
    shape = about.pop("image_shape", (1, 8, 8))
    return Denoiser(UNet(SMALL), linear(), classes=10, image_shape=shape, **about)


def unpack(script: str) -> bytes:
    """What runtime.js does with a packed model."""
    head, text = script.split("\n", 1)
    assert re.fullmatch(r'\(globalThis\.DiffusionModels \?\?= \{\}\)\["\w+"\] =', head)
    planes = zlib.decompress(base64.b64decode(text.removesuffix(";\n")))
    file = bytearray(len(planes))
    file[::2], file[1::2] = planes[: len(planes) // 2], planes[len(planes) // 2 :]
    return bytes(file)


def test_kernel_is_of_its_source():
    """The committed kernel names the hash of the source and flags that made it.

    That it was built from them, tests/site/test_kernel.py proves: it builds it again.
    """
    version, source = build.made_from(build.KERNEL.read_bytes())
    assert source == build.source_hash(), "run: python diffusion_lib/web/build.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_a_changed_source_is_noticed(monkeypatch, tmp_path):
    changed = tmp_path / "kernel.c"
    changed.write_text(build.SOURCE.read_text().replace("1e-5f", "1e-6f"))
    before = build.source_hash()
    monkeypatch.setattr(build, "SOURCE", changed)
    assert build.source_hash() != before


def test_vendored_files_are_those_that_were_fetched(monkeypatch, tmp_path):
    """Offline: each has the hash that was recorded with its package and version."""
    assert vendor.problems() == []

    copy = tmp_path / "vendor"
    shutil.copytree(vendor.VENDOR, copy)
    monkeypatch.setattr(vendor, "VENDOR", copy)
    changed, *_, gone = sorted(copy.glob("mathjax/**/*.js"))
    changed.write_bytes(changed.read_bytes() + b" ")
    gone.unlink()
    (copy / "extra.js").write_text("")
    names = [path.relative_to(copy).as_posix() for path in (gone, copy / "extra.js", changed)]
    wrong = ["missing", "not in VENDOR.json", "changed since it was fetched"]
    assert vendor.problems() == [f"{n}: {what}" for n, what in zip(names, wrong, strict=True)]


def test_whoever_builds_the_book_fetches_its_history():
    """Each page says when its text last changed; a shallow clone does not know."""
    builds = 0
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            commands = " ".join(step.get("run", "") for step in job["steps"])
            if re.search(r"jupyter-book build|make (book|test-site)|\.ci/run", commands):
                (checkout,) = (s for s in job["steps"] if "checkout" in s.get("uses", ""))
                assert checkout.get("with", {}).get("fetch-depth") == 0, path.name
                builds += 1
    assert builds >= 2


def test_scripts_are_small():
    assert len(build.script("sampler").encode()) <= 40_000
    assert (build.WEB / "loader.js").stat().st_size <= 2_048


def test_scripts_lose_only_comments():
    whole = "".join((build.WEB / name).read_text() for name in build.SCRIPTS["sampler"])
    short = build.script("sampler")
    code = [line.strip() for line in whole.splitlines()]
    code = [line for line in code if line and not line.startswith("//")]
    assert [line for line in short.splitlines() if line in set(code)][-len(code) :] == code
    assert "`" not in re.sub(r"`[^`\n]*`", "", whole)  # no text runs over several lines


@pytest.mark.parametrize("name", pretrained.available())
def test_packed_models_are_small_and_whole(name):
    denoiser = load_pretrained(name)
    file = web.contents(denoiser)
    script = web.pack(name, file)
    assert len(script) <= 2_000_000
    assert unpack(script) == file

    tensors = load(file)
    assert torch.equal(tensors.pop("alpha_bars"), denoiser.schedule.alpha_bars)
    for key, value in denoiser.net.state_dict().items():
        assert torch.equal(tensors.pop(key).float(), value)
    assert not tensors


def test_the_page_learns_what_the_checkpoint_says():
    file = web.contents(load_pretrained("digits16"))
    length = int.from_bytes(file[:8], "little")
    about = json.loads(json.loads(file[8 : 8 + length])["__metadata__"]["denoiser"])
    assert about["image_shape"] == [1, 16, 16] and about["classes"] == 10
    assert about["kind"] == "eps" and about["net"]["channels"] == [24, 48, 64]


def test_models_that_the_page_cannot_run_are_refused():
    with pytest.raises(UserError, match="UNet only"):
        web.contents(Denoiser(nn.Conv2d(1, 1, 1), linear(), image_shape=(1, 8, 8)))
    with pytest.raises(UserError, match="how large"):
        web.contents(small(image_shape=None))
    odd = UNet(UNetConfig(channels=(12,), groups=4))
    with pytest.raises(UserError, match="multiples of 8"):
        web.contents(Denoiser(odd, linear(), image_shape=(1, 8, 8)))


def test_export_command(tmp_path, capsys):
    path = tmp_path / "models" / "digits8.js"
    assert main(["digits8", "--out", str(path)]) == 0
    assert f"{path.stat().st_size:,} bytes" in capsys.readouterr().out
    assert unpack(path.read_text()) == web.contents(load_pretrained("digits8"))
    assert main(["digits9", "--out", str(path)]) == 2
    assert "no model 'digits9'" in capsys.readouterr().err


def test_widget_has_two_faces():
    shipped = widgets.sampler(load_pretrained("digits8"), steps=2, scale=3.0, seed=5)
    bundle, _ = shipped._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert '<div class="dl-app" data-app="sampler" data-model="digits8"' in bundle["text/html"]
    for option in ('data-steps="2"', 'data-guidance="3.0"', 'data-seed="5"', 'data-clip="yes"'):
        assert option in bundle["text/html"]
    assert re.search(r'<img alt="[^"]+" src="data:image/webp;base64,', bundle["text/html"])
    assert len(bundle["text/html"]) < 20_000
    assert shipped._esm.endswith(("};\n", "};"))


def test_widget_of_a_model_of_ones_own_has_a_picture_instead():
    denoiser = small()
    widget = widgets.sampler(denoiser, steps=2)
    assert "data-app" not in widget.html and "Run the notebook" in widget.html
    assert load(widget.weights).keys() - {"alpha_bars"} == denoiser.net.state_dict().keys()

    assert widget.samples is None
    there = torch.randn(10, 1, 8, 8)
    widget.set_state({"drawn": memoryview(there.numpy().tobytes())})  # as a front end does
    assert torch.equal(widget.samples, there)


def test_a_shipped_model_changed_is_no_shipped_model():
    denoiser = load_pretrained("digits8")
    denoiser.net.last.bias += 1
    assert "data-app" not in widgets.sampler(denoiser, steps=1).html


def test_widget_shows_what_the_library_draws():
    denoiser = load_pretrained("digits8")
    widget = widgets.sampler(denoiser, label=3, steps=3, scale=2.0, seed=1)
    levels = denoiser.schedule.levels(3)
    same = sample(clip(cfg(denoiser, 2.0)), (10, 1, 8, 8), levels, cond=[3] * 10, seed=1)
    assert widget.html == widgets._sampler_page(same, "digits8", widget.options)


def test_widget_refuses_what_is_not_there(monkeypatch):
    with pytest.raises(UserError, match="'ddim' and 'ddpm'"):
        widgets.sampler(small(), method="heun")
    with pytest.raises(UserError, match="out of range"):
        widgets.sampler(small(), label=11)
    monkeypatch.setitem(sys.modules, "diffusion_lib.web.widget", None)  # as without anywidget
    monkeypatch.delattr(web, "widget", raising=False)  # where an earlier import left it
    with pytest.raises(UserError, match="needs the package anywidget"):
        widgets.sampler(small())


# ---------------------------------------------------------------------------- the book's side

DIRECTIVE = """
```{diffusion-sampler}
:model: MODEL
:steps: 7
![Ten digits.](digits.png)
```
"""


def build_book(folder: Path, pages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A small book of these pages that uses the extension."""
    folder.mkdir(exist_ok=True)
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'apps']\nexclude_patterns = ['out']\n"
    )
    (folder / "digits.png").write_bytes(
        base64.b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
        )
    )
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    return subprocess.run(
        [*command, str(folder), str(folder / "out")], capture_output=True, text=True
    )


def test_apps_load_on_their_pages_only(tmp_path):
    pages = {
        "index": "# One\n"
        + DIRECTIVE.replace("MODEL", "digits8")
        + "```{toctree}\ntwo\nthree\n```",
        "two": '# Two\n\nThe words `data-app="sampler"` load nothing.\n',
        "three": '# Three\n\n<div class="dl-app" data-app="lab">As in a notebook.</div>\n',
    }
    done = build_book(tmp_path, pages)
    assert done.returncode == 0, done.stderr
    html = {name: (tmp_path / "out" / f"{name}.html").read_text() for name in pages}
    for name, text in html.items():
        assert ("apps/loader.js" in text) == ("apps/apps.css" in text) == (name != "two")
    assert (
        '<div class="dl-app" data-app="sampler" data-model="digits8" data-steps="7">'
        in (html["index"])
    )
    assert '<img alt="Ten digits."' in html["index"]

    folder = tmp_path / "out" / "_static" / "apps"
    assert (folder / "sampler.js").read_text() == build.script("sampler")
    assert [path.name for path in (folder / "models").iterdir()] == ["digits8.js"]
    assert unpack((folder / "models" / "digits8.js").read_text()) == (
        web.contents(load_pretrained("digits8"))
    )


def test_mistakes_stop_the_book(tmp_path):
    pages = {
        "index": "# One\n\n```{diffusion-sampler}\n```\n\n"
        "```{diffusion-sampler}\n:eta: x\n\nA\n```\n" + DIRECTIVE.replace("MODEL", "digits9")
    }
    done = build_book(tmp_path, pages)
    assert done.returncode != 0
    for problem in ("needs content", "eta", "no shipped model 'digits9'"):
        assert problem in done.stderr


def test_all_apps_are_known_on_both_sides():
    spec = importlib.util.spec_from_file_location("apps", ROOT / "book" / "_ext" / "apps.py")
    apps = importlib.util.module_from_spec(spec)
    sys.modules["apps"] = apps  # a dataclass looks its module up
    spec.loader.exec_module(apps)
    del sys.modules["apps"]
    assert apps.APPS.keys() == build.SCRIPTS.keys()
    for app in apps.APPS:
        assert build.is_there(app)
