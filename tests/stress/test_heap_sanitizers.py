"""The C half under AddressSanitizer and UndefinedBehaviorSanitizer.

The extension is compiled once more, instrumented, into a directory of its own, and an ordinary interpreter runs a
workload with the sanitizers' runtime loaded before anything else. Leaks are not looked for: to leak is what sealing is.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from refork import heap

PACKAGE = Path(heap.__file__).parent
FLAGS = ("-O1", "-g", "-fPIC", "-shared", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")

pytestmark = pytest.mark.skipif(bool(heap.capability()), reason=f"cannot seal here: {heap.capability()}")

WORKLOAD = """
import array, asyncio, collections, gc, os, re, sys, threading, weakref
from refork import _heap, heap
assert os.path.dirname(_heap.__file__) == sys.argv[1], _heap.__file__

class Plain:
    def __init__(self, n): self.n, self.s, self.d = n + 10**6, f"s{n}", {"k": n + 10**6}
class Slots:
    __slots__ = ("a", "__weakref__")
class Closing:
    def __del__(self): pass

def generator():
    for n in range(30):
        if n % 7 == 3: heap.seal()
        yield n, str(n)

def grow(kept):
    kept["plain"] = [Plain(n) for n in range(5000)]
    kept["types"] = [type(f"T{n}", (Plain,), {"x": n}) for n in range(50)]
    kept["misc"] = [Slots(), Closing(), generator(), re.compile("(a)(?P<b>b)"), array.array("d", [1.0] * 100),
                    collections.OrderedDict(a=1), collections.deque([1, [2]]), frozenset(map(str, range(100))),
                    memoryview(bytearray(10)), weakref.ref(kept["plain"][0]), open(os.devnull), threading.Lock()]
    kept["deep"] = deep = []
    for _ in range(200_000): deep.append(deep := [])
    kept["tuple"] = tuple(generator())
    exec("def f(a, *, b=(1, (2.5, 'x'))): return [lambda: (a, b), {'k': 123456789}]", kept)
    kept["f"](1)

def grow_arrays(kept):
    try:
        import numpy
    except ImportError:
        return
    objects = numpy.array([["a" + str(n), n + 10**6, None] for n in range(1000)], dtype=object)
    kept["arrays"] = [objects, objects[::-3, ::2], objects.T, numpy.empty((3, 0), dtype=object),
                      numpy.empty((), dtype=object), numpy.empty(5, dtype=object), numpy.arange(5.0),
                      numpy.array(["2024"], dtype="datetime64[D]"), numpy.matrix([[1, 2]]),
                      numpy.zeros(3, dtype=[("x", object), ("y", int)])]

kept = {}
for generation in range(4):
    grow(kept)
    grow_arrays(kept)
    report = heap.seal()
    assert report.sealed and report.total_objects > 10_000, report
    if "arrays" in kept:
        assert heap.is_sealed(kept["arrays"][0][7, 0])
    kept["misc"].clear()
    gc.collect()
    if pid := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
        break
print("done")
"""


def compilers() -> list[str]:
    return [name for name in ("gcc", "clang") if shutil.which(name)]


def runtime_of(compiler: str) -> str | None:
    """Return the path of the sanitizer runtime to load first, if it is installed."""
    name = "libasan.so" if compiler == "gcc" else f"libclang_rt.asan-{os.uname().machine}.so"
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = done.stdout.strip()
    return path if Path(path).is_absolute() else None


def build(compiler: str, target: Path) -> Path:
    """Make an instrumented copy of as much of the package as sealing needs."""
    package = target / "refork"
    package.mkdir()
    for name in ("__init__.py", "heap.py"):
        shutil.copy(PACKAGE / name, package)
    output = package / f"_heap{sysconfig.get_config_var('EXT_SUFFIX')}"
    shared = ["-shared-libsan"] if compiler == "clang" else []
    includes = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    files = [str(PACKAGE / "_heap.c"), "-o", str(output)]
    subprocess.run([compiler, *FLAGS, *shared, "-fsanitize=address,undefined", *includes, *files], check=True)
    return package


@pytest.mark.parametrize("allocator", ["malloc", "pymalloc"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_sanitizers_find_nothing(compiler: str, allocator: str, tmp_path: Path) -> None:
    """Four generations of odd objects, and neither a bad access nor undefined behaviour in the extension."""
    if not (PACKAGE / "_heap.c").exists():
        pytest.skip("the installed package carries no C source")
    if compiler not in compilers():
        pytest.skip(f"{compiler} is not installed")
    if (runtime := runtime_of(compiler)) is None:
        pytest.skip(f"{compiler} has no sanitizer runtime installed")
    package = build(compiler, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WORKLOAD, str(package)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONMALLOC": allocator,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.stderr == ""
    assert (done.returncode, done.stdout.count("done")) == (0, 5)  # the first process and four descendants
