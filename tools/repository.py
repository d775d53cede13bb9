"""The book's public address: one setting, the same everywhere.

    python tools/repository.py set https://github.com/OWNER/NAME
    python tools/repository.py check

`repository.url` in `_config.yml` is the setting. Colab links, the notebooks' setup cell, pip and
git lines and the addresses of the site follow from it. `set` rewrites them all and `check` proves
that they agree. Only the standard library is used, so both run before anything is installed.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "_config.yml"
SKIPPED_FOLDERS = {".git", ".venv", "_build", "build", "node_modules", "runs", "vendor"}
CACHE = re.compile(r"_cache$|__pycache__|\.ipynb_checkpoints|\.egg-info$")
TEXT_SUFFIXES = {
    *("", ".cff", ".cfg", ".css", ".html", ".ipynb", ".js", ".json"),
    *(".md", ".py", ".svg", ".toml", ".txt", ".yaml", ".yml"),
}


@dataclass(frozen=True)
class Address:
    """A GitHub repository and what follows from it."""

    owner: str
    name: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        match = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+?)(?:\.git)?/?", url.strip())
        if match is None:
            raise SystemExit(
                f"{url!r} is not the address of a GitHub repository. "
                "Write it as https://github.com/OWNER/NAME."
            )
        return cls(*match.groups())

    @property
    def slug(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def url(self) -> str:
        return f"https://github.com/{self.slug}"

    @property
    def pages(self) -> str:
        """The site's address on GitHub Pages."""
        host = f"{self.owner.lower()}.github.io"
        return f"https://{host}/" if self.name.lower() == host else f"https://{host}/{self.name}/"


@dataclass(frozen=True)
class Place:
    """A kind of line that must name our repository: group `at` of `pattern` equals `expected`."""

    what: str
    pattern: str
    expected: str
    files: str = "*"  # matched against the path below the root


def places(address: Address) -> list[Place]:
    """Every kind of line that names the repository, wherever it is written."""
    slug, pages = r"(?P<at>[\w-]+/[\w.-]*[\w-])", r"[\"']?(?P<at>https://[^\s\"']+)"
    name = re.escape(address.name)
    end = r"(?![\w-]|\.\w)"
    return [
        Place("Colab link", rf"colab\.research\.google\.com/github/{slug}", address.slug),
        Place("address to clone", rf"git clone (?:-\S+ )*https://github\.com/{slug}", address.slug),
        Place("address to install", rf"git\+https://github\.com/{slug}", address.slug),
        Place("archive", rf"https://github\.com/{slug}(?=/archive/)", address.slug),
        Place("setup cell", rf"REPOSITORY = \\?\"https://github\.com/{slug}", address.slug),
        Place("owner of the repository", rf"github\.com/(?P<at>[\w-]+/{name}){end}", address.slug),
        Place("owner of the site", rf"https://(?P<at>[\w-]+)\.github\.io/{name}{end}",
              address.owner.lower()),
        Place("site's address", rf"^\s*(?:baseurl|ogp_site_url): {pages}", address.pages, CONFIG),
        Place("homepage", rf"^Homepage = {pages}", address.pages, "pyproject.toml"),
        Place("package link", rf"^\w+ = \"https://github\.com/{slug}", address.slug,
              "pyproject.toml"),
        Place("repository", rf"^repository-code: {pages}", address.url, "CITATION.cff"),
        Place("homepage", rf"^url: {pages}", address.pages, "CITATION.cff"),
    ]  # fmt: skip


def text_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Every text file that belongs to the project, with its text."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in SKIPPED_FOLDERS and not CACHE.search(name)
        )
        for path in (Path(folder, name) for name in sorted(names)):
            if path.suffix in TEXT_SUFFIXES:
                try:
                    yield path, path.read_bytes().decode()  # bytes: line ends stay as they are
                except UnicodeDecodeError:
                    continue  # not text after all


def configured(root: Path) -> Address:
    """The address that `_config.yml` sets."""
    text = (root / CONFIG).read_text(encoding="utf-8")
    match = re.search(r"^repository:\s*\n(?:[ \t#].*\n)*?[ \t]+url: *[\"']?([^\s\"']+)", text, re.M)
    if match is None:
        raise SystemExit(f"{CONFIG} has no `url` under `repository`. Add the repository's address.")
    return Address.parse(match[1])


def replace_group(text: str, place: Place) -> str:
    """`text` with every mention of this kind set right."""

    def corrected(match: re.Match[str]) -> str:
        start, end = (at - match.start() for at in match.span("at"))
        return match[0][:start] + place.expected + match[0][end:]

    return re.sub(place.pattern, corrected, text, flags=re.M)


def set_address(root: Path, new: Address) -> list[Path]:
    """Write `new` over the present address, and over any stray one; returns the changed files."""
    old, changed = configured(root), []
    renames = [(old.slug, new.slug), (old.pages.rstrip("/"), new.pages.rstrip("/"))]
    for path, text in text_files(root):
        result = text
        for before, after in renames:
            result = re.sub(rf"(?<![\w.-]){re.escape(before)}(?![\w-])", after, result)
        for place in places(new):
            if path.relative_to(root).match(place.files):
                result = replace_group(result, place)
        if result != text:
            path.write_bytes(result.encode())
            changed.append(path)
    return changed


def problems(root: Path) -> list[str]:
    """Each place that disagrees with `_config.yml`, or lacks an address that it must have."""
    address, found = configured(root), []
    for path, text in text_files(root):
        name = path.relative_to(root)
        for place in places(address):
            if not name.match(place.files):
                continue
            for match in re.finditer(place.pattern, text, re.M):
                if match["at"] != place.expected:
                    line = text.count("\n", 0, match.start("at")) + 1
                    found.append(f"{name}:{line}: {place.what} {match['at']}, not {place.expected}")
    branch = re.search(r"^[ \t]+branch: *(\S+)", (root / CONFIG).read_text(encoding="utf-8"), re.M)
    tree = f"{address.slug}/blob/{branch[1] if branch else 'main'}"
    required = {
        CONFIG: [f"baseurl: {address.pages}"],
        "README.md": [f"git clone {address.url}"],
        "pyproject.toml": [f'Repository = "{address.url}"'],
        "tools/setup_cell.py": [f'REPOSITORY = "{address.url}"'],
    }
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        name = notebook.relative_to(root).as_posix()
        required[name] = [
            f"colab.research.google.com/github/{tree}/{name}",
            f'REPOSITORY = \\"{address.url}\\"',
        ]
    for name, wanted in required.items():
        text = (root / name).read_text(encoding="utf-8") if (root / name).exists() else ""
        found += [f"{name}: does not contain {item}" for item in wanted if item not in text]
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    setter = commands.add_parser("set", help="write a new address everywhere")
    setter.add_argument("url", help="https://github.com/OWNER/NAME")
    commands.add_parser("check", help="prove that every mention agrees with _config.yml")
    options = parser.parse_args(arguments)
    if options.command == "set":
        for path in set_address(root, Address.parse(options.url)):
            print(f"changed {path.relative_to(root)}")
    found = problems(root)
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        address = configured(root)
        print(f"The book's address is {address.url}, its site {address.pages}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
