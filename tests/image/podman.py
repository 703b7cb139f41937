"""podman with a storage of its own, so that no image of the machine is seen, and none is left behind.

Containers get what a restricted pod gets: no capability, no way to new privileges, nothing to write to. They have no
network but their own loopback, and no control group: both would have to be made for them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.integration.server import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
COMPILER = tuple(f"--volume=/usr/{name}:/usr/{name}:ro" for name in ("bin", "include", "lib"))
"""This machine's compiler, headers and shell, for builds on a base that has none."""

RESTRICTED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
"""Lower than anywhere: podman would raise them, which not every root may."""
CONTAINED = ("--cgroups=disabled", "--network=none", *LIMITS, *RESTRICTED)

ROOM = 4 << 30
_numbers = itertools.count()


class Podman:
    """The program, a directory for all that it keeps, and a mount namespace for all that it mounts.

    The namespace has a second use: crun refuses machines that have control groups of both versions, and whoever asks
    for none may as well not see the second.
    """

    def __init__(self) -> None:
        # Not in pytest's directory: the sockets in it have long names, and no address has more than 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="refork-podman-", dir=_in_memory()))
        # The namespace lives as long as this process, which holds the other end of the line, however it ends.
        hide = "umount /sys/fs/cgroup/unified 2>/dev/null; echo; exec cat"
        self._namespace = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", hide], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._namespace.stdout is not None
        self._namespace.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.do("rm", "--all", "--force", "--time", "0")
        self._namespace.communicate()
        shutil.rmtree(self.directory)

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line for it."""
        enter = ("nsenter", f"--mount=/proc/{self._namespace.pid}/ns/mnt", f"--wdns={os.getcwd()}")
        keep = (f"--root={self.directory}/storage", f"--runroot={self.directory}/run")
        return [*enter, "podman", *keep, "--cgroup-manager=cgroupfs", "--events-backend=none", *map(str, words)]

    def do(self, *words: str | Path, seconds: float = 300, **run: Any) -> str:
        """Run it and return what it prints.

        Raises:
            AssertionError: it failed; says how.
        """
        done = subprocess.run(self.command(*words), check=False, capture_output=True, text=True, timeout=seconds, **run)
        assert done.returncode == 0, f"podman {' '.join(map(str, words))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def import_tree(self, root: Path, name: str) -> None:
        """Make an image of a directory, with the settings that the images' own bases have."""
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            self.do("import", "--change", f"ENV {path}", "--change", 'CMD ["python3"]', "-", name, stdin=tar.stdout)

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what an image says of itself."""
        (found,) = json.loads(self.do("image", "inspect", image))
        return dict(found)

    def build(self, image: str, context: Path, *options: str) -> None:
        """Build an image, with the network and the compiler of the machine."""
        self.do("build", "--isolation=chroot", "--network=host", *COMPILER, *options, "--tag", image, context)

    def run(self, image: str, *arguments: str, entrypoint: str = "") -> str:
        """Run a restricted container to its end, and return what it says on standard output."""
        instead = (f"--entrypoint={entrypoint}",) if entrypoint else ()
        return self.do("run", "--rm", *CONTAINED, *instead, image, *arguments)

    @contextlib.contextmanager
    def started(self, image: str, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[Container]:
        """Start a restricted container; whatever becomes of it, it is gone afterwards."""
        name = f"c{next(_numbers)}"
        words = ("run", f"--name={name}", *CONTAINED, *options, image, *arguments)
        log = self.directory / f"{name}.log"
        with log.open("wb") as file, subprocess.Popen(self.command(*words), stdout=file, stderr=file) as process:
            try:
                yield Container(self, name, log, process)
            finally:
                self.do("rm", "--force", "--time=0", name)

    @contextlib.contextmanager
    def tree(self, image: str) -> Iterator[Path]:
        """Mount an image's file system, and return where it can be seen from out here."""
        inside = self.do("image", "mount", image).strip()
        yield Path(f"/proc/{self._namespace.pid}/root{inside}")
        self.do("image", "umount", image)


@dataclass(frozen=True, slots=True)
class Container:
    """One that was started."""

    podman: Podman
    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def says(self, pattern: str) -> None:
        """Wait until a pattern is in its log."""

        def look() -> bool:
            assert self.process.poll() is None, f"ended before {pattern!r}\n{self.log.read_text()}"
            return re.search(pattern, self.log.read_text()) is not None

        until(look, what=f"{pattern!r} in the log of {self.name}")

    def do(self, *command: str) -> str:
        """Run a command in it, as `kubectl exec` does, and return what it says on standard output."""
        return self.podman.do("exec", self.name, *command)

    def get(self, path: str = "/") -> str:
        """Ask the server in it for a page."""
        ask = (
            f"from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8000{path}').read().decode(), end='')"
        )
        return self.do("python3", "-c", ask)

    def stop(self) -> int:
        """Send SIGTERM to its first process and return the exit status."""
        self.podman.do("kill", "--signal=TERM", self.name)
        return self.process.wait(PATIENCE)


def _in_memory() -> str | None:
    """Return where layers, which are written twice and deleted soon, need no disk; None if there is no room."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > ROOM else None
