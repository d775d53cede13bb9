"""The forward-process explorer: its mathematics is the library's, and both hands can work it."""

import re
from functools import partial

import numpy as np
import playground
import pytest
import torch

from diffusion_lib import data, noise, widgets
from tools import app_pictures

PAGE = playground.PAGE
APP = playground.selector("explorer")
NAMES = ("linear", "quadratic", "cosine", "sigmoid")


opened = partial(playground.opened, "explorer")
wait_for = partial(playground.wait_for, "explorer")


@pytest.fixture(scope="module")
def page_with_explorer(site, browser):
    yield from playground.shared_page("explorer", site, browser)


@pytest.fixture
def explorer(page_with_explorer):
    return playground.renewed("explorer", page_with_explorer)


def in_page(explorer, script, argument=None):
    """The value of a JavaScript function of (DiffusionExplorer.math, argument)."""
    call = f"(element, argument) => ({script})(DiffusionExplorer.math, argument)"
    return explorer.evaluate(call, argument)


def pixels(explorer, index):
    """What a canvas shows: (H, W, 4)."""
    shown = explorer.locator(".dl-panels canvas").nth(index)
    values, w, h = shown.evaluate(
        """c => [[...c.getContext("2d").getImageData(0, 0, c.width, c.height).data],
                 c.width, c.height]"""
    )
    return np.array(values).reshape(h, w, 4)


def test_schedules_are_the_librarys(explorer):
    script = "(math, [name, T]) => [...math.schedule(name, T)]"
    for name in NAMES:
        for T in (1000, 50):
            ours = noise.make_schedule({"name": name, "T": T}).alpha_bars.numpy()
            np.testing.assert_allclose(in_page(explorer, script, [name, T]), ours, rtol=1e-9)


def test_snr_is_the_librarys(explorer):
    script = """(math, name) => Array.from({length: 1000}, (_, i) => {
        const level = math.level(math.schedule(name, 1000), i + 1);
        return [math.snr(level), math.logSnr(level)];
    })"""
    for name in NAMES:
        level = noise.make_schedule({"name": name})(torch.arange(1, 1001))
        shown = np.array(in_page(explorer, script, name))
        np.testing.assert_allclose(shown[:, 0], level.snr.numpy(), rtol=1e-9)
        np.testing.assert_allclose(shown[:, 1], level.log_snr.numpy(), rtol=1e-9, atol=1e-12)


def test_clean_data_has_infinite_snr(explorer):
    script = "math => String(math.snr(math.level(math.schedule('linear', 1000), 0)))"
    assert in_page(explorer, script) == "Infinity"


def test_noisy_picture_is_the_librarys(explorer):
    x0 = data.digits(16, "test").floats()[3].double().flatten()
    eps = torch.randn(256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    level = noise.cosine()(torch.tensor(400))
    shown = in_page(
        explorer,
        """(math, [x0, eps]) => math.addNoise(
            x0, eps, math.level(math.schedule("cosine", 1000), 400))""",
        [x0.tolist(), eps.tolist()],
    )
    np.testing.assert_allclose(shown, (level.signal * x0 + level.noise * eps).numpy(), rtol=1e-9)


def test_histogram_and_density(explorer):
    values = np.random.default_rng(0).normal(size=500)
    script = "(math, v) => [...math.histogram(v, -4, 4, 32)]"
    shown = in_page(explorer, script, values.tolist())
    assert shown == np.histogram(values, bins=32, range=(-4, 4))[0].tolist()
    x = torch.tensor([-2, 0, 0.7], dtype=torch.float64)
    density = in_page(explorer, "math => [-2, 0, 0.7].map(math.normalDensity)")
    right = torch.distributions.Normal(0.0, 1.0).log_prob(x).exp()
    np.testing.assert_allclose(density, right.numpy(), rtol=1e-9)


def test_noise_is_normal_and_a_seed_repeats_it(explorer):
    draw = "(math, seed) => [...math.noise(20000, seed)]"
    first, again, other = (np.array(in_page(explorer, draw, seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert abs(np.corrcoef(first, other)[0, 1]) < 4 / 20_000**0.5
    for moment, right, width in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((first**moment).mean() - right) < 4 * width / 20_000**0.5


def test_pictures_are_made_from_the_held_out_digits(site):
    assert app_pictures.PICTURES.read_text(encoding="utf-8") == app_pictures.pictures_script()


def test_first_picture_is_a_held_out_digit(explorer):
    shown = pixels(explorer, 0)[..., 0]
    digit = data.digits(16, "test").images[0, 0].numpy()
    paper, ink = 0xFB, 0x22
    assert shown.shape == (16, 16)
    np.testing.assert_allclose(shown, paper + digit / 255 * (ink - paper), atol=1)


def test_keyboard_moves_time(explorer):
    slider = explorer.get_by_role("slider", name="time t")
    slider.focus()
    slider.press("ArrowRight")
    wait_for(explorer, "t", 301)
    assert slider.get_attribute("aria-valuetext") == "301"
    slider.press("Home")
    wait_for(explorer, "t", 0)
    assert (pixels(explorer, 2) == pixels(explorer, 0)).all()  # x_0 is the clean picture
    slider.press("End")
    wait_for(explorer, "t", 1000)
    level = noise.linear()(torch.tensor(1000))
    values = explorer.locator(".dl-values").inner_text()
    assert f"{level.log_snr:.1f}".replace("-", "−") in values


def test_keyboard_picks_a_schedule(explorer):
    explorer.get_by_role("radio", name="linear").focus()
    explorer.page.keyboard.press("ArrowRight")
    wait_for(explorer, "schedule", "quadratic")
    ours = noise.quadratic()(torch.tensor(300))
    assert f"{ours.signal:.3f}" in explorer.locator(".dl-title").first.inner_text()
    status = explorer.locator('[aria-live="polite"]')
    explorer.page.wait_for_function(
        "e => e.textContent.includes('quadratic')", arg=status.element_handle()
    )
    assert f"{ours.snr:.3f}" in status.inner_text()


def test_mouse_picks_and_drags(explorer):
    explorer.get_by_role("radio", name="cosine").click()
    wait_for(explorer, "schedule", "cosine")
    curve = explorer.locator(".dl-drag").first
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    mouse = explorer.page.mouse
    mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 40)
    mouse.down()
    mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 40, steps=4)
    mouse.up()
    explorer.page.wait_for_function(f"+document.querySelector('{APP}').dataset.t > 600")
    assert explorer.get_by_role("slider", name="time t").input_value() == explorer.get_attribute(
        "data-t"
    )


def test_same_noise_while_time_moves_and_new_noise_on_demand(explorer):
    before = pixels(explorer, 1)
    explorer.get_by_role("slider", name="time t").fill("800")
    wait_for(explorer, "t", 800)
    assert (pixels(explorer, 1) == before).all()
    explorer.get_by_role("button", name="New noise").press("Enter")
    wait_for(explorer, "seed", 1)
    assert (pixels(explorer, 1) != before).any()


def test_draw_by_mouse(explorer):
    explorer.get_by_role("button", name="Clear, and draw").click()
    wait_for(explorer, "picture", "own")
    playground.painted(explorer.page)
    assert pixels(explorer, 0)[..., 0].min() == 0xFB  # bare paper
    pad = explorer.locator(".dl-pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    mouse = explorer.page.mouse
    mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    mouse.up()
    playground.painted(explorer.page)
    dark = pixels(explorer, 0)[..., 0] < 0x60
    assert dark[7:9, 4:12].any(0).all()  # a stroke without gaps from left to right
    assert not dark[:5].any() and not dark[11:].any()


def test_draw_by_keyboard(explorer):
    explorer.get_by_role("button", name="Clear, and draw").press("Enter")
    assert explorer.locator(".dl-pad").evaluate("e => e === document.activeElement")
    for key in ("ArrowRight", "Space", "ArrowRight", "ArrowRight", "Space", "ArrowDown"):
        explorer.page.keyboard.press(key)
    explorer.get_by_role("slider", name="time t").focus()  # the cursor goes with the focus
    playground.painted(explorer.page)
    shown = pixels(explorer, 0)[..., 0]
    assert shown[8, 8] == shown[8, 10] == 0x22 and shown[2, 2] == 0xFB
    explorer.locator(".dl-pad").focus()
    for key in ("ArrowLeft", "Delete"):
        explorer.page.keyboard.press(key)
    explorer.get_by_role("slider", name="time t").focus()
    playground.painted(explorer.page)
    assert pixels(explorer, 0)[8, 8, 0] == 0xFB


def test_controls_have_names_and_pictures_have_words(explorer):
    for control in explorer.locator("input, button").all():
        assert control.evaluate("e => e.labels?.length > 0 || e.textContent || e.ariaLabel")
    for canvas in explorer.locator("canvas").all():
        assert canvas.get_attribute("aria-label")
    explorer.get_by_role("slider", name="time t").fill("17")
    wait_for(explorer, "t", 17)
    histogram = explorer.get_by_role("img", name=re.compile("Histogram"))
    assert "variance" in histogram.get_attribute("aria-label")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_follows_the_theme(explorer, theme):
    script = "theme => document.documentElement.dataset.theme = theme"
    explorer.page.evaluate(script, theme)
    playground.painted(explorer.page)
    # The chosen curve is drawn in the theme's colour.
    drawn = explorer.evaluate(
        """e => {
            const colour = getComputedStyle(e).getPropertyValue("--app-order").trim();
            const [r, g, b] = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
            const c = e.querySelector(".dl-drag"), found = [0];
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            for (let i = 0; i < d.length; i += 4)
                if (d[i] === r && d[i + 1] === g && d[i + 2] === b && d[i + 3] === 255) found[0]++;
            return found[0];
        }"""
    )
    explorer.page.evaluate(script, "light")
    assert drawn > 50


def test_fits_a_phone_and_is_sharp(site, new_page):
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}
    explorer = opened(site, new_page(**phone, has_touch=True))
    plot = explorer.locator(".dl-plot").first
    assert plot.evaluate("c => Math.abs(c.width - 2 * c.clientWidth)") <= 1
    assert explorer.evaluate("() => document.scrollingElement.scrollWidth") == 360
    assert explorer.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_nothing_moves_by_itself(explorer):
    assert not explorer.evaluate("() => matchMedia('(prefers-reduced-motion: reduce)').matches")
    before = pixels(explorer, 2)
    explorer.page.wait_for_timeout(500)
    assert (pixels(explorer, 2) == before).all()


@pytest.mark.allow("failed request: .*/_static/")  # the theme preloads its scripts
def test_without_javascript_a_picture_stands_in(site, new_page):
    page = new_page(java_script_enabled=False)
    page.goto(site.url(PAGE))
    picture = page.locator(f"{APP} img")
    assert picture.get_attribute("alt")
    assert picture.evaluate("i => i.complete && i.naturalWidth > 0")


def test_what_the_page_says(explorer):
    """Cosine has the log SNR that linear has at t = 300 at t = 563, and at no time is it closer."""
    linear, cosine = noise.linear(), noise.cosine()
    gap = (cosine(torch.arange(1, 1001)).log_snr - linear(torch.tensor(300)).log_snr).abs()
    assert int(gap.argmin()) + 1 == 563 and gap.min() < 0.001
    assert "563" in explorer.page.locator("main").inner_text()


def test_live_in_a_notebook(new_page):
    """The widget's module, as a notebook loads it: no theme, no loader, an element of its own."""
    page = new_page()
    page.set_content("<style>body { margin: 0 }</style><div id=cell style='width: 600px'></div>")
    view = widgets.forward_explorer(t=123, schedule="sigmoid")
    page.add_style_tag(content=view._css)
    page.evaluate(
        """async ([module, options]) => {
            const url = URL.createObjectURL(new Blob([module], {type: "text/javascript"}));
            const { default: { render } } = await import(url);
            render({model: {get: name => ({options})[name]}, el: document.querySelector("#cell")});
        }""",
        [view._esm, view.options],
    )
    explorer = page.locator(APP)
    wait_for(explorer, "t", 123)
    wait_for(explorer, "schedule", "sigmoid")
    explorer.get_by_role("slider", name="time t").press("ArrowLeft")
    wait_for(explorer, "t", 122)
    assert explorer.evaluate("e => getComputedStyle(e.firstChild).backgroundColor") != (
        "rgba(0, 0, 0, 0)"
    )
