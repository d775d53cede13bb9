"""Fetch the site's third-party scripts and fonts at pinned versions, or check the committed copies.

The book must open without a network, from a web server or from a folder, so what pages need lies
in ``book/_static/vendor``. ``VENDOR.json`` there records package, version, licence and the
SHA-256 of every file.

    python tools/vendor.py            fetch again (needs npm and a network) and rewrite VENDOR.json
    python tools/vendor.py --check    compare the committed files with VENDOR.json (offline)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "book" / "_static" / "vendor"
RECORD = VENDOR / "VENDOR.json"


@dataclass(frozen=True)
class Package:
    """One npm package: ``files`` maps patterns inside the package to folders under ``folder``."""

    folder: str
    name: str
    version: str
    why: str
    files: dict[str, str]


PACKAGES = [
    Package(
        "mathjax",
        "mathjax",
        "3.2.2",
        "draws the formulas; by parts, since the combined builds carry a menu of 430 kB",
        {
            "LICENSE": ".",
            "es5/startup.js": ".",
            "es5/core.js": ".",
            "es5/input/tex.js": "input",
            "es5/input/tex/extensions/a[cm]*.js": "input/tex/extensions",
            "es5/input/tex/extensions/[b-z]*.js": "input/tex/extensions",
            "es5/output/chtml.js": "output",
            "es5/output/chtml/fonts/tex.js": "output/chtml/fonts",
            "es5/a11y/assistive-mml.js": "a11y",
            "es5/output/chtml/fonts/woff-v2/*.woff": "output/chtml/fonts/woff-v2",
        },
    ),
    Package(
        "mermaid",
        "@mermaid-js/tiny",
        "11.17.2",
        "draws the diagrams; a classic script, since modules do not load from file://",
        {"LICENSE": ".", "dist/mermaid.tiny.js": "."},
    ),
]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(package: Package, scratch: Path) -> dict[str, object]:
    """Unpack the wanted files of one package into VENDOR; return its entry of the record."""
    packed = subprocess.run(
        ["npm", "pack", f"{package.name}@{package.version}", "--json"],
        cwd=scratch,
        check=True,
        capture_output=True,
        text=True,
    )
    about = json.loads(packed.stdout)[0]
    archive = scratch / about["filename"].replace("@", "").replace("/", "-")
    target = VENDOR / package.folder
    shutil.rmtree(target, ignore_errors=True)
    hashes: dict[str, str] = {}
    licence = "unknown"
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inside = member.name.removeprefix("package/")
            stream = tar.extractfile(member)
            if stream is None:
                continue
            if inside == "package.json":
                licence = json.load(stream)["license"]
            for pattern, folder in package.files.items():
                if fnmatch(inside, pattern):
                    path = target / folder / Path(inside).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(stream.read())
                    hashes[path.relative_to(VENDOR).as_posix()] = sha256(path)
    missing = [
        p for p in package.files if not any(fnmatch(Path(h).name, Path(p).name) for h in hashes)
    ]
    if missing:
        raise SystemExit(f"{package.name} {package.version} holds no {', '.join(missing)}")
    return {
        "package": package.name,
        "version": package.version,
        "licence": licence,
        "integrity": about["integrity"],
        "why": package.why,
        "sha256": dict(sorted(hashes.items())),
    }


def problems() -> list[str]:
    """Every way in which the files under VENDOR differ from the record."""
    record = json.loads(RECORD.read_text())
    pinned = {p.folder: (p.name, p.version) for p in PACKAGES}
    recorded = {k: (v["package"], v["version"]) for k, v in record.items()}
    found = [] if pinned == recorded else ["VENDOR.json does not match the versions pinned here"]
    expected = {f: h for entry in record.values() for f, h in entry["sha256"].items()}
    present = {p.relative_to(VENDOR).as_posix(): p for p in VENDOR.rglob("*") if p.is_file()}
    present.pop(RECORD.name, None)
    found += [f"{f}: missing" for f in sorted(expected.keys() - present.keys())]
    found += [f"{f}: not in VENDOR.json" for f in sorted(present.keys() - expected.keys())]
    found += [
        f"{f}: changed since it was fetched"
        for f in sorted(expected.keys() & present.keys())
        if sha256(present[f]) != expected[f]
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; fetch nothing")
    if not parser.parse_args().check:
        VENDOR.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            record = {p.folder: fetch(p, Path(scratch)) for p in PACKAGES}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    found = problems()
    print("\n".join(found) or f"{VENDOR.name}: every file is as recorded")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
