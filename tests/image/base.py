"""A base image out of this machine: its interpreter, the libraries that it links, and nothing else, not even a shell.

The images' own bases are in a registry, which is not always within reach. This one is laid out like them, with Python
in /usr/local, and is poorer: what runs on it needs nothing but Python and libc.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = Path(sys.base_prefix)
NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
STANDARD_LIBRARY = PREFIX / "lib" / NAME
LEFT_OUT = ("config-*", "ensurepip", "idlelib", "site-packages", "test", "tkinter", "turtledemo")
MERGED = ("bin", "lib", "lib64", "sbin")
EXPECTED = tuple(
    f"lib{name}"
    for name in ("dl.so.2", "gcc_s.so.1", "pthread.so.0", "resolv.so.2", "rt.so.1", "stdc++.so.6", "util.so.1")
)
"""What wheels for manylinux link and do not bring along (PEP 600), beside libc itself."""


def obstacle() -> str:
    """Return why no base can be made of this interpreter; nothing if it can."""
    if not (STANDARD_LIBRARY / "site-packages" / "pip").is_dir():
        return f"the interpreter in {PREFIX} has no pip of its own: use one of pyenv, uv or python.org"
    return ""


def make(root: Path) -> None:
    """Lay the base out in a directory."""
    for name in ("app", "etc", "tmp", "usr/include", *(f"usr/{name}" for name in MERGED)):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in MERGED:
        (root / name).symlink_to(f"usr/{name}")
    _copy_python(root / "usr/local")
    _copy_libraries(root)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/usr/sbin/nologin\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/ld.so.conf").write_text("/usr/local/lib\n")
    subprocess.run(["ldconfig", "-r", root], check=True)


def _copy_python(local: Path) -> None:
    library = local / "lib" / NAME
    shutil.copytree(STANDARD_LIBRARY, library, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for installed in (STANDARD_LIBRARY / "site-packages").glob("pip*"):
        shutil.copytree(installed, library / "site-packages" / installed.name)
    shutil.copytree(PREFIX / "include", local / "include")
    for shared in (PREFIX / "lib").glob("libpython*.so.*"):
        shutil.copy2(shared, local / "lib")
    (local / "bin").mkdir()
    shutil.copy2(PREFIX / "bin" / NAME, local / "bin")
    pip = local / "bin/pip"
    pip.write_text(f"#!/usr/local/bin/{NAME}\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n")
    pip.chmod(0o755)
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(NAME)


def _copy_libraries(root: Path) -> None:
    ours = [PREFIX / "bin" / NAME, *STANDARD_LIBRARY.glob("lib-dynload/*.so")]
    linked = _linked_by(ours)
    (libc,) = (library for library in linked if library.name.startswith("libc.so."))
    for library in sorted(linked | {libc.with_name(name) for name in EXPECTED}):
        if not library.is_relative_to(PREFIX):
            copy = root / library.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, copy)


def _linked_by(files: Iterable[Path]) -> set[Path]:
    listed = subprocess.run(["ldd", *files], check=True, capture_output=True, text=True).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)}
