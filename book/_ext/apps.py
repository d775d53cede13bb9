"""Small programs in the page: they compute live, without a kernel and without a network.

    ```{diffusion-sampler}
    :model: digits16
    :steps: 20
    ![Ten handwritten digits that the model drew.](_static/samples_digits.webp)
    ```

The content is what is shown where the program can't run: without JavaScript, on paper, and in
other formats than HTML. It must hold a picture (with alt text) or words. In HTML this becomes

    <div class="dl-app" data-app="sampler" data-model="digits16" data-steps="20">...</div>

A notebook's output may hold such a ``div`` too. Only pages with a ``data-app`` load anything: one
style sheet and ``loader.js``, which fetches the app's own script when the reader comes near it.

**To add an app**, put its source into ``diffusion_lib/web``, name its files in ``SCRIPTS`` of
``diffusion_lib/web/build.py``, and add a line to ``APPS`` below. The script is a classic one (it
must work from file://) that registers a function under the app's name:

    (globalThis.DiffusionApps ??= {}).sampler = (element, options) => { ... };

``element`` is the ``div``; the function replaces its content, or leaves it there if the app can't
run. ``options`` holds the directive's options as strings, and ``base``, the address of the folder
with the scripts. Shared looks (controls, colours, focus) are in ``diffusion_lib/web/apps.css``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "diffusion_lib" / "web"
FOLDER = "apps"  # inside the site's _static

logger = logging.getLogger(__name__)


def _yes_or_no(argument: str) -> str:
    return directives.choice(argument, ("yes", "no"))


def _whole_number(argument: str) -> int:
    return int(argument)


@dataclass(frozen=True)
class App:
    """An app's directive and the options it takes: name -> what reads (and refuses) a value."""

    directive: str
    options: dict[str, Callable[[str], Any]]


APPS = {
    "sampler": App(
        "diffusion-sampler",
        {
            "model": directives.unchanged_required,
            "steps": directives.positive_int,
            "eta": float,
            "guidance": float,
            "class": directives.unchanged_required,  # "each", "none" or a number
            "seed": directives.nonnegative_int,
            "sampler": lambda text: directives.choice(text, ("ddim", "ddpm")),
            "clip": _yes_or_no,
            "autostart": _yes_or_no,
        },
    ),
    "explorer": App(
        "forward-explorer",
        {"t": directives.nonnegative_int, "schedule": directives.unchanged_required},
    ),
    "lab": App("mixture-lab", {"t": directives.nonnegative_int, "seed": _whole_number}),
}


class AppNode(nodes.General, nodes.Element):
    """Holds the app's name and options, and as children what to show where it can't run."""


class AppDirective(SphinxDirective):
    has_content = True
    app = ""

    def run(self) -> list[nodes.Node]:
        if not self.content:
            raise self.error(
                f"A {self.name} needs content to show where it can't run: a picture with alt text."
            )
        node = AppNode("", app=self.app, data=dict(self.options))
        self.set_source_info(node)
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


def _open(writer: Any, node: AppNode) -> None:
    data = {"app": node["app"], **node["data"]}
    attributes = "".join(f' data-{name}="{escape(str(value))}"' for name, value in data.items())
    writer.body.append(f'<div class="dl-app"{attributes}>\n')


def _close(writer: Any, node: AppNode) -> None:
    writer.body.append("</div>\n")


def _as_content(writer: Any, node: AppNode) -> None:
    """Other formats show what is inside."""


def _build() -> Any:
    """The module diffusion_lib/web/build.py, without the seconds that importing torch takes."""
    spec = spec_from_file_location("diffusion_web_build", WEB / "build.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_scripts(app: Sphinx) -> None:
    """Into the site before its pages, so that their links carry a checksum."""
    if app.builder.format != "html":
        return
    app.env.dl_models = set()  # type: ignore[attr-defined]
    build = _build()
    folder = Path(app.outdir, "_static", FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for name in build.SHARED:
        (folder / name).write_text((WEB / name).read_text(encoding="utf-8"), encoding="utf-8")
    for name in APPS:
        if build.is_there(name):
            (folder / f"{name}.js").write_text(build.script(name), encoding="utf-8")


def _use(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the loader where the page, or a notebook's output on it, holds an app."""
    body = context.get("body", "")
    if not re.search(r'\bdata-app="\w+"', body):
        return
    app.add_css_file(f"{FOLDER}/apps.css")
    app.add_js_file(f"{FOLDER}/loader.js", loading_method="defer")
    tags = re.findall(r"<div\b[^>]*\bdata-app=[^>]*>", body)
    models = re.findall(r'\bdata-model="([\w-]+)"', "".join(tags))
    app.env.dl_models.update(models)  # type: ignore[attr-defined]


def _write_models(app: Sphinx, error: Exception | None) -> None:
    """The weights of the models that the pages sample, made from the shipped checkpoints."""
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, "_static", FOLDER, "models")
    earlier = {path.stem for path in folder.glob("*.js")}
    for name in sorted(app.env.dl_models | earlier):  # type: ignore[attr-defined]
        source = ROOT / "diffusion_lib" / "checkpoints" / f"{name}.safetensors"
        if not source.is_file():
            logger.warning("There is no shipped model %r for the page to sample.", name)
            continue
        target = folder / f"{name}.js"
        made_from = [source, WEB / "__init__.py"]
        if target.is_file() and all(
            path.stat().st_mtime <= target.stat().st_mtime for path in made_from
        ):
            continue
        sys.path.insert(0, str(ROOT))
        from diffusion_lib import web

        web.export(name, target)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(
        AppNode,
        html=(_open, _close),
        **dict.fromkeys(("latex", "text", "man", "texinfo"), (_as_content, _as_content)),
    )
    for name, one in APPS.items():
        kind = type(f"{name.title()}App", (AppDirective,), {"app": name})
        kind.option_spec = one.options
        app.add_directive(one.directive, kind)
    app.connect("builder-inited", _write_scripts)
    app.connect("html-page-context", _use)
    app.connect("build-finished", _write_models)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
