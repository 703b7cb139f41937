"""The one thing pyproject.toml cannot say: the native modules are optional.

Without a compiler the package still installs, serves, and falls back to ``gc.freeze()``; ``refork.heap`` says so.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[Extension(f"refork.{name}", [f"server/refork/{name}.c"], optional=True) for name in ("_heap", "_fork")]
)
