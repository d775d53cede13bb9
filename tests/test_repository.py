"""The public address is one setting, and the lists of packages agree with each other."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import notebooks, repository

ROOT = repository.ROOT
ELSEWHERE = repository.Address("Some-One", "another.name")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project's text, with one small notebook besides the real ones."""
    for path, text in repository.text_files(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(text.encode())
    address = repository.configured(tmp_path)
    page = f"{address.slug}/blob/main/notebooks/small.ipynb"
    link = f"[Open in Colab](https://colab.research.google.com/github/{page})"
    cells = [new_markdown_cell(link), new_code_cell(notebooks.setup_source())]
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "small.ipynb")
    return tmp_path


def test_project_agrees():
    assert repository.problems(ROOT) == []


def test_set_changes_every_mention(tree: Path, capsys: pytest.CaptureFixture[str]):
    old = repository.configured(tree)
    assert repository.main(["set", ELSEWHERE.url], root=tree) == 0
    assert repository.configured(tree) == ELSEWHERE
    assert "changed README.md" in capsys.readouterr().out
    for path, text in repository.text_files(tree):
        assert old.slug not in text, path
        assert old.pages.removeprefix("https://").rstrip("/") not in text, path
    config = (tree / "_config.yml").read_text()
    assert f"baseurl: {ELSEWHERE.pages}\n" in config


def test_set_and_back_restores_every_byte(tree: Path):
    before = {path: path.read_bytes() for path, _ in repository.text_files(tree)}
    old = repository.configured(tree)
    repository.set_address(tree, ELSEWHERE)
    repository.set_address(tree, old)
    assert {path: path.read_bytes() for path, _ in repository.text_files(tree)} == before


def test_set_leaves_stamps_valid(tree: Path, monkeypatch: pytest.MonkeyPatch):
    path = tree / "notebooks" / "small.ipynb"
    before = notebooks.code_hash(notebooks.read(path))
    repository.set_address(tree, ELSEWHERE)
    monkeypatch.setattr(notebooks, "SETUP", tree / "tools" / "setup_cell.py")
    changed = notebooks.read(path)
    assert ELSEWHERE.url in changed.cells[1].source
    assert changed.cells[1].source == notebooks.setup_source()
    assert notebooks.code_hash(changed) == before


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("README.md", "git clone {url}", "git clone {host}/a/b"),
        ("README.md", "github.com/{slug}", "github.com/stray/{name}"),
        ("tools/setup_cell.py", "github.com/{slug}", "github.com/a/b"),
        ("notebooks/small.ipynb", "/github/{slug}/blob", "/github/a/b/blob"),
        ("notebooks/small.ipynb", "notebooks/small.ipynb", "notebooks/other.ipynb"),
        ("notebooks/small.ipynb", 'REPOSITORY = \\"https://github.com/{slug}', 'REPOSITORY = \\"'),
        ("_config.yml", "baseurl: {pages}", "baseurl: https://a.github.io/b/"),
        ("_config.yml", "ogp_site_url: {pages}", "ogp_site_url: https://a.github.io/b/"),
        ("_config.yml", "url: https://github.com/{slug}", "url: https://github.com/a/b"),
        ("pyproject.toml", "github.com/{slug}/issues", "github.com/a/b/issues"),
        ("pyproject.toml", "{pages}", "https://a.github.io/b/"),
        (
            "CITATION.cff",
            "repository-code: https://github.com/{slug}",
            "repository-code: https://x",
        ),
    ],
)
def test_disagreement_is_found(tree: Path, name: str, before: str, after: str):
    address = repository.configured(tree)
    fill = {name: getattr(address, name) for name in ("slug", "name", "url", "pages")}
    fill["host"] = "https://github.com"
    path = tree / name
    text = path.read_text(encoding="utf-8")
    damaged = text.replace(before.format(**fill), after.format(**fill))
    assert damaged != text
    path.write_text(damaged, encoding="utf-8")
    assert repository.main(["check"], root=tree) == 1


def test_set_repairs_a_stray_address(tree: Path):
    path = tree / "README.md"
    path.write_text(path.read_text() + "\ngit clone https://github.com/" + "stray/place\n")
    assert repository.problems(tree) != []
    assert repository.main(["set", ELSEWHERE.url], root=tree) == 0
    assert "stray" not in path.read_text()


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a"]
)
def test_bad_address_is_refused(tree: Path, url: str):
    before = (tree / "_config.yml").read_text()
    with pytest.raises(SystemExit, match="is not the address of a GitHub repository"):
        repository.main(["set", url], root=tree)
    assert (tree / "_config.yml").read_text() == before


@pytest.mark.parametrize("url", ["https://github.com/Ann/b", "https://github.com/Ann/b.git/"])
def test_address_is_read(url: str):
    address = repository.Address.parse(url)
    assert address.url == "https://github.com/Ann/b"
    assert address.pages == "https://ann.github.io/b/"


def test_site_of_a_user_has_no_path():
    assert repository.Address("Ann", "ann.github.io").pages == "https://ann.github.io/"


def test_package_lists_agree():
    """What the library needs is in requirements.txt, with the same bounds."""
    text = (ROOT / "requirements.txt").read_text()
    listed = {line for line in text.splitlines() if line and not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) <= listed
    # Lower bounds only: an upper one would replace what Colab has. Jupyter Book 2 is another tool.
    bounded = [line for line in listed if not re.fullmatch(r"[\w-]+>=[\d.]+", line)]
    assert bounded == ["jupyter-book>=1.0.4,<2"]
