"""Build what runs in the page: the kernel, from C to WebAssembly, and each app's one script.

    python diffusion_lib/web/build.py             compiles kernel.c to kernel.wasm
    python diffusion_lib/web/build.py --missing   Debian's names of what a rebuild to the byte needs
                                                  and this machine lacks; nothing where all is there

Needs clang and lld (Debian: apt-get install clang lld). Only after an edit of kernel.c: the built
kernel is committed, and carries the hash of what it was made from and the version of its compiler.
tests/site builds it again with that version and compares every byte. Nothing here imports the rest
of the library.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

WEB = Path(__file__).resolve().parent
SOURCE, KERNEL = WEB / "kernel.c", WEB / "kernel.wasm"
FLAGS = [
    "--target=wasm32", "-O3", "-msimd128", "-ffreestanding", "-fno-builtin", "-nostdlib", "-Wall",
    "-Wextra", "-Werror", "-Wl,--no-entry", "-Wl,--import-memory", "-Wl,--export-dynamic",
    "-Wl,--strip-all", "-Wl,-z,stack-size=4096",
]  # fmt: skip

SHARED = ("apps.css", "loader.js")  # on each page that holds an app
# App -> the files that its script is joined from.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "sampler": ("runtime.js", "sampler.js"),
    "explorer": ("kit.js", "pictures.js", "explorer.js"),
    "lab": ("kit.js", "lab.js"),
}


def is_there(app: str) -> bool:
    """Whether all of an app's sources exist."""
    return all((WEB / name).is_file() for name in SCRIPTS[app])


def script(app: str) -> str:
    """An app as one classic script, with `KERNEL`, the kernel in deflated base64, if it asks.

    Comment lines and indentation are left out; sources hold no text in which they would matter.
    """
    text = "\n".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS[app])
    text = re.sub(r"^\s*//.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[ \t]+|\n(?=\n)", "", text, flags=re.MULTILINE)
    kernel = ""
    if "KERNEL" in text:
        deflated = zlib.compress(KERNEL.read_bytes(), 9)
        kernel = f'const KERNEL = "{base64.b64encode(deflated).decode()}";\n'
    return f'(() => {{\n"use strict";\n{kernel}{text}}})();\n'


def source_hash() -> str:
    """Changes when the kernel's source or its compiler flags do."""
    return hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS]).encode()).hexdigest()


def clang() -> tuple[str, str] | None:
    """The compiler's path and version ("14.0.6"); None where it or its linker is not there.

    Of several, the one of the version that built the committed kernel.
    """
    path = shutil.which(f"clang-{_major()}") or shutil.which("clang")
    if path is None:
        return None
    linker = subprocess.run([path, "-print-prog-name=wasm-ld"], capture_output=True, text=True)
    if shutil.which(linker.stdout.strip()) is None:
        return None
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+\.\d+\.\d+)", version.stdout)
    return (path, found[1]) if found else None


def missing() -> list[str]:
    """Debian's packages of the compiler that built the committed kernel, unless it is there."""
    compiler = clang()
    if compiler is not None and compiler[1].split(".")[0] == _major():
        return []
    return [f"clang-{_major()}", f"lld-{_major()}"]


def compile_kernel() -> bytes:
    """The kernel as WebAssembly, with a section that names its source and compiler.

    Raises:
        SystemExit: no compiler, or it refused the source.
    """
    compiler = clang()
    if compiler is None:
        raise SystemExit("No clang with wasm-ld found. On Debian: apt-get install clang lld")
    path, version = compiler
    out = WEB / ".kernel.wasm.tmp"
    try:
        run = subprocess.run([path, *FLAGS, "-o", str(out), str(SOURCE)], text=True)
        if run.returncode:
            raise SystemExit("The kernel could not be compiled; see above.")
        return out.read_bytes() + _section("source", f"clang {version} {source_hash()}".encode())
    finally:
        out.unlink(missing_ok=True)


def _section(name: str, content: bytes) -> bytes:
    """A custom section of a WebAssembly file, which engines skip."""
    body = bytes([len(name)]) + name.encode() + content
    assert len(body) < 128  # one byte holds the length
    return bytes([0, len(body)]) + body


def made_from(kernel: bytes) -> tuple[str, str]:
    """(clang's version, hash of the source and flags) that a kernel says it was made from."""
    _, version, source = kernel[kernel.rindex(b"\x06sourceclang ") + 7 :].decode().split()
    return version, source


def _major() -> str:
    """Of the version of clang that built the committed kernel: "14"."""
    return made_from(KERNEL.read_bytes())[0].split(".")[0]


if __name__ == "__main__":
    if sys.argv[1:] == ["--missing"]:
        print(*missing())
        sys.exit(0)
    KERNEL.write_bytes(compile_kernel())
    print(f"{KERNEL.name}: {KERNEL.stat().st_size:,} bytes from {SOURCE.name}")
    sys.exit(0)
