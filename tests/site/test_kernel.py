"""The kernel that pages run is built from its source: built again here, it has the same bytes."""

import os

import pytest

from diffusion_lib.web import build


@pytest.fixture(scope="module")
def compiler() -> str:
    """The version of a clang of the kind that built the committed kernel.

    `make test-site` installs it where it can. Without one a test says nothing: that is a failure
    where CI is set, and a skip on anybody's own machine.
    """
    missing = build.missing()
    if missing:
        version, _ = build.made_from(build.KERNEL.read_bytes())
        why = (
            f"The committed kernel came from clang {version}: apt-get install {' '.join(missing)}, "
            "or build it anew with the clang that is there: python diffusion_lib/web/build.py"
        )
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    return build.clang()[1]


def test_kernel_is_built_again_to_the_byte(compiler):
    there = build.KERNEL.read_bytes()
    version, _ = build.made_from(there)
    # Of a later patch of clang only the section that names it differs.
    there = there.replace(f"clang {version}".encode(), f"clang {compiler}".encode())
    assert build.compile_kernel() == there


def test_another_source_gives_another_kernel(compiler, monkeypatch, tmp_path):
    """Other code, that is, not only another hash in the section that names the source."""
    text = build.SOURCE.read_text(encoding="utf-8")
    changed = tmp_path / "kernel.c"
    changed.write_text(text.replace("1e-5f", "1e-6f"), encoding="utf-8")
    monkeypatch.setattr(build, "SOURCE", changed)
    section = len("clang  ") + len(compiler) + 64
    assert build.compile_kernel()[:-section] != build.KERNEL.read_bytes()[:-section]
