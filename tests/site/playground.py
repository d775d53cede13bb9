"""What the tests of the playground's apps share: opening one, waiting for it, starting it anew."""

PAGE = "book/playground"


def selector(name):
    return f'[data-app="{name}"]'


def wait_for(name, app, key, value):
    """Until the app's element says data-KEY="VALUE"."""
    app.page.wait_for_function(
        "([app, key, value]) => document.querySelector(app).dataset[key] === value",
        arg=[selector(name), key, str(value)],
    )


def painted(page):
    """Until what was asked for is drawn: apps draw in the next frame."""
    page.evaluate("() => new Promise((d) => requestAnimationFrame(() => requestAnimationFrame(d)))")


def opened(name, site, page):
    """The app on its page, started."""
    site.open(page, PAGE)
    app = page.locator(selector(name))
    app.scroll_into_view_if_needed()
    wait_for(name, app, "seed", 0)
    return app


def shared_page(name, site, browser):
    """A page with the app, for the tests that need none of their own; no script may fail on it."""
    page = browser.new_page(color_scheme="light")
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    opened(name, site, page)
    yield page
    page.close()
    assert not errors


def renewed(name, page):
    """The app as the reader finds it, in a page that the tests share."""
    page.evaluate(
        """([app, name]) => {
            const old = document.querySelector(app), fresh = document.createElement("div");
            Object.assign(fresh, {className: old.className}).dataset.app = name;
            old.replaceWith(fresh);
            fresh.scrollIntoView();
            DiffusionApps[name](fresh, {});
        }""",
        [selector(name), name],
    )
    app = page.locator(selector(name))
    wait_for(name, app, "seed", 0)
    return app
