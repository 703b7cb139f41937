"""refork: serve Python web applications from a warm, sealed mold.

The package is a server (``refork.cli``), its control client (``refork.ctl``) and one function that is useful alone:
``refork.heap.seal()``. Nothing is imported here, so that a worker pays only for what it uses.
"""

__version__ = "0.1.0"
