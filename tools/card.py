"""Draw the picture that stands beside a shared link: `book/_static/card.png`, 1200 x 630.

python tools/card.py        needs requirements-site.txt and Chromium
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "book" / "_static"
# As if it lay in book/_static.
CARD = """<!doctype html><style>
  body { margin: 0; width: 1200px; height: 630px; box-sizing: border-box; padding: 60px;
    background: #fbfaf6; color: #1c2050; font: 30px/1.4 "Liberation Sans", Arial, sans-serif;
    display: grid; grid-template-columns: 1fr 560px; gap: 44px; align-items: center; }
  h1 { font-size: 64px; line-height: 1.1; margin: 32px 0 24px; letter-spacing: -0.02em; }
  p { margin: 0; color: #555b6b; }
  .logo { width: 300px; }
  .digits { width: 560px; }
</style>
<div><img class="logo" src="logo.svg"><h1>Diffusion Models, Interactively</h1>
<p>Every formula derived, programmed, and checked against an exact answer.</p></div>
<img class="digits" src="samples_digits.webp">"""


def main() -> None:
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from tools.screenshots import FLAGS, chromium, served

    with served(STATIC) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 630})
        address = f"{base}/card.html"
        page.route(address, lambda route: route.fulfill(body=CARD, content_type="text/html"))
        page.goto(address)
        shot = page.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(STATIC / "card.png", optimize=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
