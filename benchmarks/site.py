"""What the built site weighs, and how soon its first page can be used.

    python benchmarks/site.py [FOLDER]      (_build/html unless another is named)

Every page is opened once with an empty cache; what it asked for until it was drawn is counted, in
bytes as stored and as a web server sends them (gzip for text). The budget of 1.5 MB a page is one
of bytes as sent. The programs in the page, which come when they are near, are counted apart. The
first page is then opened five times with the processor slowed four times, and the median is taken.
Its sampler, at full speed, then draws its ten digits five times in twenty guided steps: the seconds
from the press of the button to the last picture, and the processor seconds of all the page's
threads (budget: 2 s on 2 cores). Run it while nothing else runs. Writes results/site.json.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".html", ".css", ".js", ".svg", ".json", ".wasm"}  # what GitHub Pages compresses
KINDS = {
    **dict.fromkeys([".png", ".webp", ".svg", ".jpg", ".gif"], "pictures"),
    **dict.fromkeys([".woff", ".woff2", ".ttf"], "fonts"),
    ".html": "html",
    ".css": "css",
    ".js": "scripts",
}
SLOWER, RUNS = 4, 5
FIRST_PAGE = "book/index"
# Usable: the largest thing at the top has been painted, and the scripts behind buttons have run.
TIMES = """() => new Promise((done) => {
  new PerformanceObserver((list) => {
    const page = performance.getEntriesByType("navigation")[0];
    const painted = list.getEntries().at(-1).startTime;
    const scripts = page.domContentLoadedEventEnd;
    const first = performance.getEntriesByName("first-contentful-paint")[0].startTime;
    done({first_paint: first, usable: Math.max(painted, scripts), loaded: page.loadEventEnd});
  }).observe({type: "largest-contentful-paint", buffered: true});
})"""


DRAWN = """document.querySelector(".dl-app[data-app=sampler]").dataset.state === "ready" """
DRAW = """() => new Promise((done) => {
  const app = document.querySelector(".dl-app[data-app=sampler]"), start = performance.now();
  app.addEventListener("dl-samples", ({detail}) => done({pictures: detail.labels.length,
    steps: detail.steps, guidance: detail.guidance, ms: performance.now() - start}), {once: true});
  app.querySelector("[aria-label='Next seed']").click();
})"""


@functools.cache
def sizes(path: Path) -> tuple[int, int]:
    """Bytes of a file as stored, and as sent."""
    content = path.read_bytes()
    return len(content), len(gzip.compress(content)) if path.suffix in TEXT else len(content)


def weigh(requests: list[str], base: str, folder: Path) -> dict[str, Any]:
    """What a page's requests come to, all together and by kind."""
    files = {Path(folder, unquote(urlsplit(url).path).lstrip("/"))
             for url in requests if url.startswith(base + "/")}  # fmt: skip
    apps = {path for path in files if "/_static/apps/" in path.as_posix()}
    weight: dict[str, Any] = {"stored": 0, "sent": 0, "sent_by_kind": {}}
    for path in files - apps:
        stored, sent = sizes(path)
        weight["stored"] += stored
        weight["sent"] += sent
        kind = KINDS.get(path.suffix, "other")
        weight["sent_by_kind"][kind] = weight["sent_by_kind"].get(kind, 0) + sent
    weight["apps_sent"] = sum(sizes(path)[1] for path in apps)
    return weight


def weights(browser: Browser, base: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The weight of every page, as it is when it is opened and not yet scrolled."""
    from tools import screenshots

    result = {}
    for name in screenshots.built_pages(folder):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        requests: list[str] = []
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.goto(f"{base}/{name}.html", wait_until="load")
        page.evaluate(screenshots.READY)
        page.wait_for_load_state("networkidle")
        result[name] = weigh(requests, base, folder)
        page.close()
    return result


def times(page: Page, address: str) -> dict[str, float]:
    """Milliseconds from the request to the first paint, to a usable page, to the last file."""
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.goto(address, wait_until="load")
    page.wait_for_timeout(500)  # a larger thing may still be painted
    return page.evaluate(TIMES)


def busy_seconds() -> float:
    """Processor time that the pages of this program's browser have used, over all their threads."""
    total, parents, renderers = 0, {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            parents[int(process.name)] = int(fields[1])
            if b"--type=renderer" in (process / "cmdline").read_bytes():
                renderers[int(process.name)] = int(fields[11]) + int(fields[12])
    for pid, ticks in renderers.items():
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        total += ticks if pid == os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")


def drawing(browser: Browser, address: str) -> dict[str, Any]:
    """How long the first page's sampler takes for its ten pictures, and on how many threads."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address, wait_until="load")
    sampler = page.locator(".dl-app[data-app=sampler]").first
    sampler.scroll_into_view_if_needed()
    page.wait_for_function(DRAWN)
    asked: dict[str, Any] = {}
    seconds, busy = [], []
    for _ in range(RUNS):
        used = busy_seconds()
        asked = page.evaluate(DRAW)
        seconds.append(asked.pop("ms") / 1000)
        busy.append(busy_seconds() - used)
    threads = len(page.workers)
    page.close()
    return asked | {
        "runs": RUNS,
        "threads": threads,
        "seconds": round(statistics.median(seconds), 2),
        "processor_seconds": round(statistics.median(busy), 2),
    }


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from machine import machine

    from tools import screenshots

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "html").resolve()
    with screenshots.served(folder) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=screenshots.chromium(), args=screenshots.FLAGS
        )
        runs = []
        for _ in range(RUNS):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            runs.append(times(page, f"{base}/{FIRST_PAGE}.html"))
            page.close()
        sampler = drawing(browser, f"{base}/{FIRST_PAGE}.html")
        load = round(os.getloadavg()[0], 1)  # above the number of cores, the times are too long
        result = {
            "machine": machine()
            | {"browser": f"Chromium {browser.version}", "cores": os.cpu_count(), "load": load},
            "first_page_ms": {
                "slower": SLOWER,
                "runs": RUNS,
                **{key: round(statistics.median(run[key] for run in runs)) for key in runs[0]},
            },
            "sampler": sampler,
            "bytes": weights(browser, base, folder),
        }
        browser.close()
    path = Path(__file__).parent / "results" / "site.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("first page, ms:", result["first_page_ms"])
    print("sampler:", result["sampler"])
    print(f"{'page':32}{'stored kB':>10}{'sent kB':>10}{'apps kB':>10}")
    for name, row in result["bytes"].items():
        cells = (row[key] / 1000 for key in ("stored", "sent", "apps_sent"))
        print(f"{name:32}" + "".join(f"{cell:10.0f}" for cell in cells))


if __name__ == "__main__":
    main()
