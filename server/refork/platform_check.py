# ruff: noqa: ANN001, ANN201, UP032 - older Pythons must be able to read this module, to be told that they are old
"""Say in one line that this machine cannot run refork, before an import fails with twenty.

The module is written for every Python since 2.7, and imports only what all of them have.
"""

import sys

OLDEST = (3, 12)


def obstacle(version, platform):
    # type: (tuple[int, ...], str) -> str
    """Return why refork cannot run on such a Python and platform, with what to do; nothing if it can."""
    if tuple(version[:2]) < OLDEST:
        return (
            "Python {}.{} or newer is needed, this is {}: install one, and refork with it (its sealed heap needs the "
            "immortal objects of PEP 683)".format(OLDEST[0], OLDEST[1], ".".join(str(part) for part in version[:3]))
        )
    if not platform.startswith("linux"):
        return (
            "Linux is needed, this is {}: run it in a container or a virtual machine, or use gunicorn here, which "
            "takes the same application and most of the same configuration".format(platform)
        )
    return ""


def require():
    # type: () -> None
    """End the process, with one line on standard error, where refork cannot run."""
    reason = obstacle(tuple(sys.version_info[:3]), sys.platform)
    if reason:
        sys.stderr.write("refork: error: " + reason + "\n")
        sys.exit(1)
