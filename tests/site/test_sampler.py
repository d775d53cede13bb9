"""The sampler in the page: it draws what PyTorch draws, by mouse and keyboard, and it degrades."""

import base64
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import watched
from playwright.sync_api import Page, expect

from benchmarks.site import busy_seconds
from diffusion_lib import (
    Denoiser,
    UNet,
    UNetConfig,
    cfg,
    clip,
    cosine,
    ddim,
    edm,
    flow,
    linear,
    load_pretrained,
    rescale_zero_terminal_snr,
    sample,
    web,
    widgets,
)

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
RUN_AXE = """async () => (await axe.run(".dl-app", {resultTypes: ["violations"]})).violations
  .flatMap((rule) => rule.nodes.map((node) => `${rule.id} (${rule.impact}): ${node.html}`))"""
# What a row of pictures shows.
PIXELS = """(e) => [...e.querySelectorAll("canvas")].map((c) => c.toDataURL()).join()"""
# Samples of a model that is handed over as base64 text; [] for `module`: plain JavaScript.
DRAW = """async ([file, options, plain]) => {
  const runtime = globalThis.DiffusionApps.runtime();
  const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
  const model = runtime.makeModel(bytes.buffer, plain ? null : await runtime.compileKernel());
  return Array.from(await model.sample(options, () => {}, () => true));
}"""


# The pages that promise one; the first is opened where any will do.
PAGES = ("book/index", "book/playground", "notebooks/05_sampling")


@pytest.fixture(scope="session")
def name() -> str:
    """The lightest page with a sampler of digits16."""
    return PAGES[0]


def app(page: Page):
    return page.locator(".dl-app[data-app=sampler]").first


def start(site, page: Page, name: str):
    """Open the page and scroll to the sampler; returns it once its controls are there."""
    site.open(page, name)
    app(page).scroll_into_view_if_needed()
    expect(app(page).get_by_role("button", name="Draw", exact=True)).to_be_visible()
    return app(page)


def drawn(sampler):
    """Wait until it stands still."""
    expect(sampler).to_have_attribute("data-state", "ready", timeout=60_000)
    return sampler.get_by_role("status").text_content()


def listen(page: Page) -> None:
    """Keep the samples of the next drawing in `window.got`."""
    page.evaluate(
        """() => document.querySelector(".dl-app[data-app=sampler]").addEventListener(
        "dl-samples", ({detail}) => (window.got = {...detail, samples: [...detail.samples]}))"""
    )


def got(page: Page) -> dict:
    page.wait_for_function("window.got", timeout=60_000)
    return page.evaluate("(() => { const it = window.got; window.got = null; return it; })()")


def five_steps(page: Page, sampler):
    """Walk with the slider of steps from 1 to 5; returns it."""
    steps = sampler.get_by_role("slider", name="steps", exact=True)
    steps.focus()
    for key in ("Home", *["ArrowRight"] * 4):
        page.keyboard.press(key)
    return steps


def by_torch(denoiser: Denoiser, options: dict) -> np.ndarray:
    """The same drawing by the library."""
    labels, guided = options["labels"], denoiser
    if denoiser.classes is not None and options["guidance"] != 1:
        guided = cfg(guided, options["guidance"])
    if options["clip"]:
        guided = clip(guided)
    return sample(
        guided,
        (len(labels), *denoiser.image_shape),
        denoiser.schedule.levels(options["steps"]),
        sampler=partial(ddim, eta=options["eta"]),
        cond=labels if denoiser.classes is not None else None,
        seed=options["seed"],
    ).numpy()


def by_page(page: Page, denoiser: Denoiser, options: dict, dtype=torch.float32, plain=False):
    file = base64.b64encode(web.contents(denoiser, dtype)).decode()
    values = page.evaluate(DRAW, [file, options, plain])
    return np.array(values).reshape(-1, *denoiser.image_shape)


def asked(**changes) -> dict:
    return {
        "labels": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "steps": 10, "eta": 0.0, "guidance": 1.0,
        "clip": True, "seed": 3, **changes,
    }  # fmt: skip


def random_model(config: UNetConfig, shape, schedule, kind) -> Denoiser:
    """A net whose every number counts; in a fresh one many are 0 or 1."""
    torch.manual_seed(0)
    net = UNet(config)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return Denoiser(net, schedule, kind, classes=config.classes, image_shape=shape).eval()


@pytest.fixture(scope="module")
def loaded(browser, site, name) -> Page:
    """A page whose sampler has loaded, for asking its runtime."""
    with watched(browser, site) as open_one:
        page = open_one(reduced_motion="reduce")
        drawn(start(site, page, name))
        yield page


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(
    "options",
    [
        asked(),
        asked(guidance=3.0, clip=False),
        asked(eta=1.0, guidance=2.0),
        asked(eta=0.5, guidance=0.0, labels=[-1, 5], steps=7),
        asked(eta=1.0, steps=50, labels=[7, 7], seed=2**32 - 1),
    ],
    ids=["ddim", "guided", "ddpm guided", "unconditional", "50 steps"],
)
def test_draws_what_pytorch_draws(loaded, options):
    denoiser = load_pretrained("digits16")
    here, there = by_page(loaded, denoiser, options), by_torch(denoiser, options)
    assert np.abs(here - there).max() <= 1e-4
    assert there.std() > 0.3


@pytest.mark.parametrize("plain", [False, True], ids=["wasm", "javascript"])
@pytest.mark.parametrize(
    ("config", "shape", "schedule", "kind"),
    [
        pytest.param(
            UNetConfig(channels=(16, 24, 32), blocks=2, attention=(1, 2), heads=4, groups=4,
                       classes=3, conditioning="scale_shift"),
            (1, 28, 28), cosine(), "v", id="28 x 28"),
        pytest.param(UNetConfig(image_channels=3, channels=(8, 16), heads=2), (3, 12, 20), flow(),
                     "flow", id="colour"),
        pytest.param(UNetConfig(channels=(16, 16), middle_attention=False, classes=3), (1, 4, 4),
                     edm(), "edm", id="edm"),
        pytest.param(UNetConfig(channels=(8, 16, 24), classes=3), (1, 8, 8),
                     rescale_zero_terminal_snr(linear(100)), "x0", id="x0"),
        # 9 numbers: torch draws fewer than 16 in another way
        pytest.param(UNetConfig(channels=(8,), classes=3), (1, 1, 3), linear(), "x0", id="tiny"),
    ],
)  # fmt: skip
def test_other_models_plug_in(loaded, config, shape, schedule, kind, plain):
    denoiser = random_model(config, shape, schedule, kind)
    labels = [0, 2, 1] if config.classes else [-1] * 3
    options = asked(labels=labels, steps=6, eta=0.7, guidance=2.0, clip=False)
    here, there = by_page(loaded, denoiser, options, plain=plain), by_torch(denoiser, options)
    assert np.abs(here - there).max() <= 1e-4
    assert np.abs(there).max() > 0.1


def test_half_precision_draws_nearly_the_same(loaded):
    """The shipped weights are float16 already; this net's are not."""
    config = UNetConfig(channels=(24, 48, 64), classes=10)
    denoiser = random_model(config, (1, 16, 16), linear(), "eps")
    options = asked(guidance=2.0, eta=1.0, steps=20)
    here, there = by_page(loaded, denoiser, options, torch.float16), by_torch(denoiser, options)
    rms = np.sqrt(np.square(here - there).mean())
    assert 1e-7 < rms <= 5e-3


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_random_numbers_are_torchs(loaded, seed):
    sizes = [3, 16, 20, 5, 37, 2, 1, 2560]  # fewer than 16, a multiple of 16, and neither
    generator = torch.Generator().manual_seed(seed)
    there = np.concatenate([torch.randn(n, generator=generator).numpy() for n in sizes])
    here = loaded.evaluate(
        """([seed, sizes]) => {
          const generator = new (DiffusionApps.runtime().Generator)(seed);
          return sizes.flatMap((n) => Array.from(generator.randn(n)));
        }""",
        [seed, sizes],
    )
    assert np.abs(np.array(here) - there).max() <= 1e-6


# ------------------------------------------------------------------------------------ use


@pytest.mark.parametrize("name", PAGES)
def test_stands_where_it_is_promised(site, name):
    html = (site.folder / f"{name}.html").read_text(encoding="utf-8")
    assert re.search(r'<div class="dl-app" data-app="sampler"[^>]*data-model="digits16"', html)


def test_draws_on_every_page_that_has_one(opened):
    for sampler in opened.locator(".dl-app[data-app=sampler]").all():
        sampler.scroll_into_view_if_needed()
        button = sampler.get_by_role("button", name="Draw", exact=True)
        button.click()
        expect(sampler.get_by_role("status")).to_have_text(re.compile("^Drawn"), timeout=60_000)
        rows = sampler.get_by_role("img").locator("visible=true")
        assert rows.count() == 2 and rows.first.locator("canvas").count() == 10


def test_draws_by_itself_what_its_controls_say(site, page, name):
    sampler = start(site, page, name)
    assert drawn(sampler).startswith("Drawn in ")
    listen(page)
    sampler.get_by_role("button", name="Draw", exact=True).click()
    request = got(page)
    assert str(request["seed"]) == sampler.get_by_label("seed", exact=True).input_value()
    there = by_torch(load_pretrained("digits16"), request)
    assert np.abs(np.array(request["samples"]).reshape(there.shape) - there).max() <= 1e-4


def test_by_keyboard(site, new_page, name):
    page = new_page(reduced_motion="reduce")  # draws at once, without showing each step
    sampler = start(site, page, name)
    assert drawn(sampler).startswith("Drawn in ")
    listen(page)
    steps = five_steps(page, sampler)
    outline = steps.evaluate("(e) => getComputedStyle(e).outlineStyle")
    assert outline == "solid"  # focus is seen
    first = got(page)
    assert first["steps"] == 5 and steps.get_attribute("aria-valuetext") == "5"

    sampler.get_by_role("combobox", name="Class").focus()
    page.keyboard.press("7")
    assert got(page)["labels"] == [7] * 10
    sampler.get_by_role("slider", name="Guidance scale").focus()
    page.keyboard.press("ArrowRight")
    assert got(page)["guidance"] == first["guidance"] + 0.5
    sampler.get_by_role("combobox", name="Sampler").focus()
    page.keyboard.press("ArrowDown")
    assert got(page)["eta"] == 1
    assert sampler.get_by_role("slider", name="Fresh noise").is_disabled()
    sampler.get_by_role("button", name="Next seed").focus()
    page.keyboard.press("Enter")
    last = got(page)
    assert last["seed"] == first["seed"] + 1 and last["steps"] == 5
    there = by_torch(load_pretrained("digits16"), last)
    assert np.abs(np.array(last["samples"]).reshape(there.shape) - there).max() <= 1e-4


def test_by_mouse(site, new_page, name):
    page = new_page(reduced_motion="reduce")
    sampler = start(site, page, name)
    drawn(sampler)
    listen(page)
    sampler.get_by_role("button", name="Draw", exact=True).click()
    first = got(page)
    held = sampler.get_by_role("img").first
    pictures = [held.evaluate(PIXELS)]

    # Pull the handle from where it is to the left.
    steps = sampler.get_by_role("slider", name="steps", exact=True)
    steps.scroll_into_view_if_needed()
    box, at = steps.bounding_box(), int(steps.input_value()) / int(steps.get_attribute("max"))
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8 + at * (box["width"] - 16), y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], y, steps=5)
    page.mouse.up()
    request = got(page)
    assert first["steps"] == 20 and 2 <= request["steps"] <= 7
    pictures.append(held.evaluate(PIXELS))

    # The list of a select is the system's, out of a test's reach. This lets the page draw it.
    page.add_style_tag(content="select, ::picker(select) { appearance: base-select }")
    for label, option, key, chosen in (
        ("class", "7", "labels", [7] * 10),
        ("sampler", "DDPM", "eta", 1),
    ):
        select = sampler.get_by_role("combobox", name=label)
        select.click()
        select.get_by_role("option", name=option, exact=True).click()
        request = got(page)
        assert request[key] == chosen
        pictures.append(held.evaluate(PIXELS))
    assert len(set(pictures)) == 4
    there = by_torch(load_pretrained("digits16"), request)
    assert np.abs(np.array(request["samples"]).reshape(there.shape) - there).max() <= 1e-4


def test_steps_can_be_looked_at_again(site, page, name):
    sampler = start(site, page, name)
    drawn(sampler)
    rows = sampler.get_by_role("img")
    end = [row.evaluate(PIXELS) for row in rows.all()]
    assert len(end) == 2 and end[0] == end[1]  # clean, and its own estimate
    assert "finished" in rows.first.get_attribute("aria-label")

    way = sampler.get_by_role("slider", name="step", exact=True)
    way.focus()
    page.keyboard.press("Home")
    held, guess = (row.evaluate(PIXELS) for row in rows.all())
    assert held != end[0] and guess != held
    assert "pure noise" in rows.first.get_attribute("aria-label")
    assert way.get_attribute("aria-valuetext").startswith("0 of ")

    sampler.get_by_label("Show the time of each step").check()
    expect(sampler.get_by_text(re.compile(r"[\d.]+ ms a step on average"))).to_be_visible()


def test_stops(site, new_page, name):
    page = new_page(reduced_motion="reduce")
    sampler = start(site, page, name)
    drawn(sampler)
    steps = sampler.get_by_role("slider", name="steps", exact=True)
    steps.focus()
    page.keyboard.press("End")  # as many as there are
    expect(sampler).to_have_attribute("data-state", "drawing")
    sampler.get_by_role("button", name="Stop").click()
    stopped = re.compile(r"Stopped after step \d+ of 1000")
    expect(sampler.get_by_role("status")).to_have_text(stopped)
    expect(sampler.get_by_role("button", name="Stop")).to_be_disabled()


def test_page_stays_responsive_and_fast(site, page, name):
    """10 pictures in 20 guided steps within 2 s; meanwhile the page answers at once."""
    sampler = start(site, page, name)
    drawn(sampler)
    listen(page)
    seconds, busy, gaps = [], [], []
    for _ in range(3):  # the best of three: other programs may be at work
        page.evaluate(
            """() => { window.gap = 0; let last = performance.now();
              window.beat = setInterval(() => { const now = performance.now();
                window.gap = Math.max(window.gap, now - last); last = now; }, 10); }"""
        )
        began, used = time.perf_counter(), busy_seconds()
        sampler.get_by_role("button", name="Next seed").click()
        request = got(page)
        seconds.append(time.perf_counter() - began)
        busy.append(busy_seconds() - used)
        gaps.append(page.evaluate("clearInterval(window.beat), window.gap"))
    assert request["steps"] == 20 and request["guidance"] not in (0, 1)
    # Where other programs hold the processors, count the time that the page had of them: two
    # seconds of two.
    assert min(seconds) <= 2 or min(busy) <= 4, (seconds, busy)
    assert min(gaps) <= 150


def test_is_accessible_and_fits_a_phone(site, new_page, name):
    page = new_page(viewport={"width": 360, "height": 740}, color_scheme="light")
    sampler = start(site, page, name)
    drawn(sampler)
    sampler.get_by_label("Show the time of each step").check()
    root = "document.scrollingElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    page.add_script_tag(path=AXE)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function("(t) => document.documentElement.dataset.theme === t", arg=theme)
        assert page.evaluate(RUN_AXE) == []


def test_less_motion(site, new_page, name):
    """Nothing flickers: noise, then the result."""
    page = new_page(reduced_motion="reduce")
    sampler = start(site, page, name)
    drawn(sampler)
    page.evaluate(
        """() => { window.painted = 0;
          const paint = CanvasRenderingContext2D.prototype.putImageData;
          CanvasRenderingContext2D.prototype.putImageData = function (...all) {
            window.painted++; return paint.apply(this, all); }; }"""
    )
    sampler.get_by_role("button", name="Draw", exact=True).click()
    expect(sampler.get_by_role("status")).to_have_text(re.compile("^Drawn"), timeout=60_000)
    assert page.evaluate("window.painted") == 2 * 20


# ------------------------------------------------------------------------------------ weight


def test_loads_when_seen_and_only_there(site, page, name, pages):
    asked_for = page.watch.requests
    page.set_viewport_size({"width": 1280, "height": 300})
    site.open(page, name)
    far = app(page).bounding_box()["y"] > 600
    if far:
        page.wait_for_timeout(300)
        assert not [url for url in asked_for if "/apps/sampler.js" in url or "/models/" in url]
    app(page).scroll_into_view_if_needed()
    drawn(app(page))
    assert len([url for url in asked_for if "/apps/models/digits16.js" in url]) == 1

    html = {one: (site.folder / f"{one}.html").read_text() for one in pages}
    asked_for.clear()
    site.open(page, next(one for one in pages if 'data-app="' not in html[one]))
    assert not [url for url in asked_for if "/apps/" in url]


def test_budgets(site):
    apps = site.folder / "_static" / "apps"
    assert (apps / "sampler.js").stat().st_size <= 40_000
    assert (apps / "loader.js").stat().st_size <= 2_048
    for model in (apps / "models").iterdir():
        assert model.stat().st_size <= 2_000_000


# ------------------------------------------------------------------------------------ fallbacks


def test_without_webassembly(site, new_page, name):
    # In the script, since one of the test's own would not reach into the Workers.
    script = (site.folder / "_static" / "apps" / "sampler.js").read_text()
    assert script.count("WebAssembly.compile(") == 1
    broken = script.replace("WebAssembly.compile(", "Promise.reject(")
    page = new_page(reduced_motion="reduce")
    page.route("**/apps/sampler.js*", lambda route: route.fulfill(body=broken))
    sampler = start(site, page, name)
    listen(page)
    five_steps(page, sampler)
    request = got(page)
    sampler.get_by_label("Show the time of each step").check()
    expect(sampler.get_by_text("in plain JavaScript")).to_be_visible()
    there = by_torch(load_pretrained("digits16"), request)
    assert np.abs(np.array(request["samples"]).reshape(there.shape) - there).max() <= 1e-4


def test_without_workers(site, new_page, name):
    page = new_page(reduced_motion="reduce")
    page.add_init_script("delete window.Worker")
    sampler = start(site, page, name)
    listen(page)
    five_steps(page, sampler)
    request = got(page)
    there = by_torch(load_pretrained("digits16"), request)
    assert np.abs(np.array(request["samples"]).reshape(there.shape) - there).max() <= 1e-4


@pytest.mark.allow(r"failed request: .*\.js")  # scripts named ahead of time, and not needed
def test_without_javascript(site, new_page, name):
    page = new_page(java_script_enabled=False)
    page.goto(site.url(name))
    picture = app(page).locator("img").first
    assert picture.get_attribute("alt")
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()


@pytest.mark.allow("digits16.js", "ERR_FAILED")
def test_without_weights(site, page, name):
    page.route("**/models/digits16.js*", lambda route: route.abort())
    site.open(page, name)
    app(page).scroll_into_view_if_needed()
    expect(app(page).get_by_role("status")).to_contain_text("The live model could not be loaded")
    expect(app(page).locator("img").first).to_be_visible()


@pytest.mark.allow("sampler.js", "ERR_FAILED")
def test_without_the_script(site, page, name):
    page.route("**/apps/sampler.js*", lambda route: route.abort())
    site.open(page, name)
    app(page).scroll_into_view_if_needed()
    expect(app(page).get_by_role("status")).to_contain_text("could not be loaded")
    expect(app(page).locator("img").first).to_be_visible()


# ------------------------------------------------------------------------------------ notebooks


def test_widget_of_a_live_notebook(page):
    """The anywidget module as a front end runs it: it draws, and gives back what it drew."""
    denoiser = random_model(
        UNetConfig(channels=(8, 16), classes=3), (1, 8, 8), linear(), "v"
    )  # fmt: skip
    widget = widgets.sampler(denoiser, label=1, steps=4, scale=2.0, seed=9)
    weights = base64.b64encode(widget.weights).decode()
    page.goto("about:blank")
    values = page.evaluate(
        """async ([module, weights, options]) => {
          const url = URL.createObjectURL(new Blob([module], {type: "text/javascript"}));
          const bytes = Uint8Array.from(atob(weights), (c) => c.charCodeAt(0));
          const state = {options, weights: new DataView(bytes.buffer)};
          const {default: widget} = await import(url);
          const el = document.body.appendChild(document.createElement("div"));
          return new Promise((done) => {
            let end;
            const model = {
              get: (name) => state[name],
              set: (name, value) => (state[name] = value),
              save_changes() { end(); done([...new Float32Array(state.drawn.buffer)]); },
            };
            end = widget.render({model, el});
          });
        }""",
        [widget._esm, weights, widget.options],
    )
    options = asked(labels=[1] * 10, steps=4, guidance=2.0, seed=9)
    there = by_torch(denoiser, options)
    assert np.abs(np.array(values).reshape(there.shape) - there).max() <= 1e-4
