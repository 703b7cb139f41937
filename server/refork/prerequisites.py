"""Whether what a configuration names is there: ports, certificates that fit their keys, places for logs.

gunicorn meets these when it needs them: a key that does not belong to its certificate, with every connection, and in
silence. Here they are met when the configuration is read: by ``--check-config``, at the start, and on HUP, after which
the old configuration serves on. Nothing is opened for good, and nothing is made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from refork.address import HIGHEST_PORT
from refork.errors import ConfigurationError
from refork.refusals import is_set

if TYPE_CHECKING:
    from collections.abc import Iterator


def verify(cfg: Any) -> None:
    """Make sure that what the configuration names can be used.

    Raises:
        ConfigurationError: it cannot; all reasons, one a line.
    """
    reasons = [*_about_addresses(cfg), *_about_files(cfg), *_about_logs(cfg)]
    if not reasons and cfg.is_ssl and not is_set(cfg, "ssl_context"):  # that hook may make a context of its own
        reasons = [*_about_tls(cfg)]
    if reasons:
        raise ConfigurationError("\n".join(reasons))


def _about_addresses(cfg: Any) -> Iterator[str]:
    for address in cfg.address:
        if isinstance(address, tuple) and not 0 <= address[1] <= HIGHEST_PORT:
            yield f"--bind: {address[1]} is no port: write one from 1 to {HIGHEST_PORT}, or 0 for any that is free"
        elif address == "":
            yield "--bind: 'unix:' names no file: write unix:PATH"


def _about_files(cfg: Any) -> Iterator[str]:
    for name in ("certfile", "keyfile", "ca_certs", "logconfig", "logconfig_json"):
        path = getattr(cfg, name)
        if path and not os.path.exists(path):
            yield f"{name} {path!r} does not exist: check {cfg.settings[name].cli[-1]}"


def _about_logs(cfg: Any) -> Iterator[str]:
    for name in ("errorlog", "accesslog"):
        path = getattr(cfg, name)
        if path and path != "-" and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            flag = cfg.settings[name].cli[-1]
            yield f"{name} {path!r}: the folder does not exist: create it, or choose another {flag}"


def _about_tls(cfg: Any) -> Iterator[str]:
    import ssl  # noqa: PLC0415 - only who serves it needs it

    from refork.tls import no_password  # noqa: PLC0415 - as above

    if not cfg.certfile:
        yield "--keyfile is of no use alone: set --certfile too"
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = f"certfile {cfg.certfile!r}" + (f" and keyfile {cfg.keyfile!r}" if cfg.keyfile else "")
    try:
        context.load_cert_chain(cfg.certfile, cfg.keyfile, password=no_password)
    except ValueError:
        yield f"the key of {pair} is encrypted, and nobody is there to be asked for its password: decrypt it"
    except OSError as error:
        yield f"{pair} cannot be used: {_reason(error)}; check --certfile and --keyfile"
    try:
        if cfg.ca_certs:
            context.load_verify_locations(cfg.ca_certs)
    except OSError as error:
        yield f"ca_certs {cfg.ca_certs!r} cannot be used: {_reason(error)}; check --ca-certs"
    try:
        if cfg.ciphers:
            context.set_ciphers(cfg.ciphers)
    except OSError as error:
        yield f"ciphers {cfg.ciphers!r} cannot be used: {_reason(error)}; check --ciphers"


def _reason(error: Exception) -> str:
    """Say why without OpenSSL's brackets: ``key values mismatch``."""
    known = getattr(error, "reason", None)
    if known:
        return str(known).replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error)
