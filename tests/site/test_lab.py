"""The 2-D lab: its mathematics is the library's, and both hands can work it."""

import re
from functools import partial

import numpy as np
import playground
import pytest
import torch

from diffusion_lib import noise, samplers, toy

PAGE = playground.PAGE
APP = playground.selector("lab")
MIXTURE = toy.GaussianMixture(
    [0.5, 0.3, 0.2], [[-1.5, 0.8], [1.5, 1.1], [0.4, -1.5]], [0.35, 0.2, 0.3]
)
AS_JSON = {
    "weights": MIXTURE.weights.tolist(),
    "means": MIXTURE.means.tolist(),
    "stds": MIXTURE.stds.tolist(),
}
SAMPLERS = {"ddpm": samplers.ddpm, "ddim": samplers.ddim, "heun": samplers.heun}


opened = partial(playground.opened, "lab")
wait_for = partial(playground.wait_for, "lab")


@pytest.fixture(scope="module")
def page_with_lab(site, browser):
    yield from playground.shared_page("lab", site, browser)


@pytest.fixture
def lab(page_with_lab):
    return playground.renewed("lab", page_with_lab)


def in_page(lab, script, argument=None):
    return lab.evaluate(f"(e, argument) => ({script})(DiffusionLab.math, argument)", argument)


def table(lab):
    """The cells of the table, without marks and units: rows of mode, weight, reached, spread,
    reached."""
    rows = lab.locator("tbody tr").all()
    return [
        [float(re.sub(r"[\s%↑↓]", "", cell)) for cell in row.locator("th, td").all_inner_texts()]
        for row in rows
    ]


def picture(lab):
    script = """c => c.toDataURL()"""
    return lab.locator(".dl-plane").evaluate(script)


@pytest.mark.parametrize("t", [0, 1, 150, 600, 1000])
def test_density_score_and_denoiser_are_the_librarys(lab, t):
    points = torch.randn((200, 2), generator=torch.Generator().manual_seed(t)).double() * 1.5
    shown = in_page(
        lab,
        """(math, [mixture, points, t]) => {
            const field = math.exact(mixture, math.level(math.schedule("linear", 1000), t));
            return points.map(([x, y]) =>
                [field.logDensity(x, y), ...field.score(x, y), ...field.denoise(x, y)]);
        }""",
        [AS_JSON, points.tolist(), t],
    )
    level = noise.linear()(torch.tensor(t))
    right = torch.cat(
        [MIXTURE.log_prob(points, level)[:, None], MIXTURE.score(points, level),
         MIXTURE(points, level)], 1,
    )  # fmt: skip
    scale = right.abs().amax(0, keepdim=True).expand_as(right).numpy()
    # Relative to the field: one coordinate of an arrow may happen to be 0.
    np.testing.assert_array_less(np.abs(np.array(shown) - right.numpy()), 1e-9 * scale)


@pytest.mark.parametrize("steps", [1, 7, 16, 40])
@pytest.mark.parametrize("name", SAMPLERS)
def test_walks_are_the_librarys(lab, name, steps):
    levels = noise.linear().levels(steps)
    start = samplers.start(
        (50, 2), levels[0], torch.Generator().manual_seed(3), dtype=torch.float64
    )
    walk = SAMPLERS[name](MIXTURE, start, levels, generator=torch.Generator().manual_seed(4))
    right = [start, *(now.x for now in walk)]
    generator = torch.Generator().manual_seed(4)
    fresh = [samplers.randn_like(start, generator).flatten().tolist() for _ in range(steps)]
    shown = in_page(
        lab,
        """(math, {name, mixture, steps, start, fresh}) => math.walk({
            sampler: name, mixture, start,
            grid: math.levels(math.schedule("linear", 1000), steps),
            noise: k => fresh[k],
        }).map(state => [...state])""",
        {
            "name": name, "mixture": AS_JSON, "steps": steps,
            "start": start.flatten().tolist(), "fresh": fresh,
        },
    )  # fmt: skip
    right = torch.stack(right).flatten(1).numpy()
    np.testing.assert_allclose(np.array(shown), right, rtol=1e-9, atol=1e-9)


def test_a_step_cut_short_ends_on_the_grid(lab):
    """What is drawn between two levels is the sampler's own step to there."""
    shown = in_page(
        lab,
        """(math, mixture) => {
            const table = math.schedule("linear", 1000), at = t => math.level(table, t);
            const x = [0.3, -1.1, 1.2, 0.4], z = [0.1, 0.2, -0.3, 1];
            return ["ddpm", "ddim", "heun"].map(name => [900, 899, 400].map(t =>
                [...math.advance(name, mixture, x, at(900), at(t), z)]));
        }""",
        AS_JSON,
    )
    for same, near, far in shown:
        np.testing.assert_allclose(same, [0.3, -1.1, 1.2, 0.4], rtol=1e-12)
        assert 0 < np.abs(np.subtract(near, same)).max() < 0.25
        assert np.abs(np.subtract(far, same)).max() > 0.25


def test_statistics(lab):
    points = MIXTURE.sample(4000, torch.Generator().manual_seed(0))[0]
    shown = in_page(
        lab,
        """(math, [mixture, points]) => {
            const found = math.reached(mixture, points);
            return {weights: [...found.weights], stds: [...found.stds],
                    covariance: math.covariance(points), exact: math.exactCovariance(mixture),
                    errors: math.errors(mixture, points)};
        }""",
        [AS_JSON, points.flatten().tolist()],
    )
    clean = noise.linear()(torch.tensor(0))
    posterior = MIXTURE._posterior(points, clean, None)
    squares = (points[:, None] - MIXTURE.means).square().sum(-1) / 2
    np.testing.assert_allclose(shown["weights"], posterior.mean(0), rtol=1e-9)
    stds = ((posterior * squares).sum(0) / posterior.sum(0)).sqrt()
    np.testing.assert_allclose(shown["stds"], stds, rtol=1e-9)
    # Exact samples show the mixture's own numbers.
    np.testing.assert_allclose(shown["weights"], MIXTURE.weights, atol=4 * 0.5 / 4000**0.5)
    np.testing.assert_allclose(shown["stds"], MIXTURE.stds, rtol=0.05)
    mine = torch.cov(points.T, correction=0)
    np.testing.assert_allclose(shown["covariance"], [mine[0, 0], mine[0, 1], mine[1, 1]], rtol=1e-9)
    mean = MIXTURE.weights @ MIXTURE.means
    spread = (MIXTURE.weights * MIXTURE.stds**2).sum() * torch.eye(2).double()
    exact = (MIXTURE.weights * MIXTURE.means.T) @ MIXTURE.means + spread - torch.outer(mean, mean)
    right = [exact[0, 0], exact[0, 1], exact[1, 1]]
    np.testing.assert_allclose(shown["exact"], right, rtol=1e-9)
    error = torch.linalg.norm(mine - exact) / torch.linalg.norm(exact)
    assert abs(shown["errors"]["covariance"] - error) < 1e-9
    off = (posterior.mean(0) - MIXTURE.weights).abs().sum() / 2
    assert abs(shown["errors"]["weights"] - off) < 1e-9


def test_exact_samples(lab):
    script = "(math, m) => [...math.sample(m, 20000, 5)]"
    points = np.array(in_page(lab, script, AS_JSON)).reshape(-1, 2)
    right = MIXTURE.sample(20_000, torch.Generator().manual_seed(1))[0].numpy()
    np.testing.assert_allclose(points.mean(0), right.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(points.T), np.cov(right.T), atol=0.06)


def test_mixtures_offered(lab):
    three, ring = in_page(lab, "math => [math.MIXTURES.three(), math.MIXTURES.ring()]")
    assert three == AS_JSON
    ours = toy.ring()
    np.testing.assert_allclose(ring["means"], ours.means, atol=1e-12)
    np.testing.assert_allclose(ring["stds"], ours.stds)


def test_steps_by_keyboard_change_the_verdict(lab):
    slider = lab.get_by_role("slider", name="steps")
    slider.focus()
    slider.press("Home")
    wait_for(lab, "steps", 1)
    assert slider.get_attribute("aria-valuetext") == "1"
    # In one step every particle lands on the mean of the data.
    assert "covariance by 100%" in lab.locator(".dl-verdict").inner_text()
    assert [row[2] for row in table(lab)][0] > 99
    slider.press("End")
    wait_for(lab, "steps", 100)
    for _, wanted, got, *_ in table(lab):
        assert abs(wanted - got) < 5


def test_what_the_page_says(lab):
    lab.get_by_role("radio", name="two, 80 to 20").click()
    lab.get_by_role("slider", name="steps").fill("2")
    wait_for(lab, "steps", 3)
    lab.page.wait_for_function(f"document.querySelectorAll('{APP} tbody tr').length === 2")
    first = table(lab)[0]
    assert first[1] == 80 and round(first[2]) == 88
    assert "↑" in lab.locator("tbody").inner_text()

    lab.get_by_role("radio", name="three modes").click()
    off = {}
    for name, steps in (("DDIM", 10), ("ODE, Heun", 5)):
        lab.get_by_role("radio", name=name).click()
        lab.get_by_role("slider", name="steps").fill(str([1, 2, 3, 4, 5, 6, 8, 10].index(steps)))
        wait_for(lab, "steps", steps)
        verdict = lab.locator(".dl-verdict").inner_text()
        off[name] = float(re.search(r"covariance by ([\d.]+)%", verdict)[1])
    assert off["ODE, Heun"] < 0.4 * off["DDIM"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_by_keyboard(lab, name):
    lab.get_by_role("radio", name="DDPM").focus()
    presses = list(SAMPLERS).index(name)
    lab.page.keyboard.press("Space")
    for _ in range(presses):
        lab.page.keyboard.press("ArrowRight")
    wait_for(lab, "sampler", name)


def test_modes_by_keyboard(lab):
    handle = lab.locator(".dl-handles button").nth(1)
    before = table(lab)
    words = lab.locator('[aria-live="polite"]').evaluate_handle("e => (e.textContent = '', e)")
    handle.focus()
    lab.page.keyboard.press("ArrowLeft")
    lab.page.keyboard.press("Shift+ArrowDown")
    lab.page.wait_for_function("e => e.textContent.includes('Weights off by')", arg=words)
    name = handle.get_attribute("aria-label")
    assert "x 1.40" in name and "y 0.60" in name
    assert table(lab) != before
    # Weight and spread belong to the mode that has the focus.
    weight = lab.get_by_role("slider", name="weight")
    assert weight.input_value() == "0.3"
    weight.focus()
    weight.press("End")
    playground.painted(lab.page)
    assert table(lab)[1][1] == pytest.approx(100 / 1.7, abs=0.06)
    spread = lab.get_by_role("slider", name="spread")
    spread.focus()
    spread.press("ArrowRight")
    playground.painted(lab.page)
    assert table(lab)[1][3] == 0.25


def test_modes_by_mouse(lab):
    handle = lab.locator(".dl-handles button").first
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    mouse = lab.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 80, box["y"] + 60, steps=5)
    mouse.up()
    x, y = map(float, re.findall(r"[xy] (-?[\d.]+)", handle.get_attribute("aria-label")))
    assert x > -1.2 and y < 0.6
    after = handle.bounding_box()
    assert after["x"] - box["x"] == pytest.approx(80 - box["width"] / 2, abs=3)


def test_add_and_remove_modes(lab):
    lab.get_by_role("button", name="Add a mode").press("Enter")
    handles = lab.locator(".dl-handles button")
    assert handles.count() == 4
    assert handles.nth(3).evaluate("e => e === document.activeElement")
    for left in (3, 2, 1):
        lab.get_by_role("button", name="Remove it").click()
        assert handles.count() == left
    assert lab.get_by_role("button", name="Remove it").is_disabled()


def test_play_pause_step_reset(lab):
    lab.get_by_role("button", name="Reset").click()
    wait_for(lab, "t", 1000)
    wait_for(lab, "step", 0)
    lab.get_by_role("button", name="Step").press("Enter")
    wait_for(lab, "t", 900)
    wait_for(lab, "step", 1)
    lab.get_by_role("button", name="Play").press("Enter")
    lab.page.wait_for_function(f"+document.querySelector('{APP}').dataset.t < 850")
    lab.get_by_role("button", name="Pause").click()
    wait_for(lab, "playing", "false")
    stopped = picture(lab)
    lab.page.wait_for_timeout(300)
    assert picture(lab) == stopped
    time = lab.get_by_role("slider", name="time t")
    time.fill("0")
    wait_for(lab, "step", 10)


def test_pauses_out_of_sight(lab):
    lab.get_by_role("button", name="Reset").click()
    wait_for(lab, "t", 1000)
    lab.get_by_role("button", name="Play").click()
    lab.page.wait_for_function(f"+document.querySelector('{APP}').dataset.t < 1000")
    lab.page.evaluate("scrollTo(0, 0)")
    wait_for(lab, "playing", "false")
    assert int(lab.get_attribute("data-t")) > 0  # it did not just come to its end


def test_nothing_moves_by_itself(lab):
    assert not lab.evaluate("() => matchMedia('(prefers-reduced-motion: reduce)').matches")
    playground.painted(lab.page)
    before = picture(lab)
    lab.page.wait_for_timeout(500)
    assert picture(lab) == before and lab.get_attribute("data-playing") != "true"


@pytest.fixture
def calm(page_with_lab):
    """The page of a reader who wants less motion."""
    page_with_lab.emulate_media(color_scheme="light", reduced_motion="reduce")
    yield
    page_with_lab.emulate_media(color_scheme="light", reduced_motion="no-preference")


def test_reduced_motion_goes_step_by_step(calm, lab):
    lab.get_by_role("button", name="Reset").click()
    wait_for(lab, "t", 1000)
    lab.get_by_role("button", name="Play").click()
    seen = lab.evaluate(
        """async e => { const seen = new Set();
            for (let i = 0; i < 90; i++) {
                seen.add(+e.dataset.t);
                await new Promise(requestAnimationFrame);
            }
            return [...seen]; }"""
    )
    assert len(seen) > 1 and all(t % 100 == 0 for t in seen)


def test_same_seed_same_run(lab):
    before = table(lab)
    lab.get_by_role("button", name="New noise").click()
    wait_for(lab, "seed", 1)
    assert table(lab) != before
    lab.evaluate("e => DiffusionApps.lab(e, {seed: '0'})")
    wait_for(lab, "seed", 0)
    assert table(lab) == before


def test_controls_have_names_and_the_plane_has_words(lab):
    for control in lab.locator("input, button").all():
        assert control.evaluate("e => e.labels?.length > 0 || e.textContent || e.ariaLabel")
    words = lab.locator(".dl-plane").get_attribute("aria-label")
    assert "3 modes" in words and "t = 0" in words and "DDIM" in words


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_follows_the_theme(lab, theme):
    before = picture(lab)
    lab.page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    playground.painted(lab.page)
    after = picture(lab)
    lab.page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert (after == before) == (theme == "light")


def test_phone(site, new_page):
    lab = opened(site, new_page(viewport={"width": 360, "height": 740}, has_touch=True))
    assert lab.evaluate("() => document.scrollingElement.scrollWidth") == 360
    assert lab.evaluate("e => e.scrollWidth <= e.clientWidth")


@pytest.mark.allow("failed request: .*/_static/")  # the theme preloads its scripts
def test_without_javascript_a_picture_stands_in(site, new_page):
    page = new_page(java_script_enabled=False)
    page.goto(site.url(PAGE))
    picture = page.locator(f"{APP} img")
    assert picture.get_attribute("alt")
    assert picture.evaluate("i => i.complete && i.naturalWidth > 0")


def test_scripts_stay_small(site):
    for name in ("explorer", "lab"):
        assert (site.folder / "_static" / "apps" / f"{name}.js").stat().st_size <= 25_000
