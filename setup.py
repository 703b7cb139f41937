"""The one thing pyproject.toml cannot say: the native module is optional.

Without a compiler the package still installs, serves, and falls back to ``gc.freeze()``; ``refork.heap`` says so.
"""

from setuptools import Extension, setup

setup(ext_modules=[Extension("refork._heap", ["server/refork/_heap.c"], optional=True)])
