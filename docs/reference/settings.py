"""The settings of the server, from the texts of the settings themselves.

What is not in a setting's class is here: what refork makes of gunicorn's settings. A test fails when there is one, of
whichever gunicorn is installed, that nobody has decided on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.config import KNOWN_SETTINGS

from refork import settings
from refork.refusals import REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator

REMARKS = {
    "preload_app": "Accepted, and always so: the application is loaded in a mold before any worker is forked.",
    "reuse_port": "The flag is set on the sockets that the monitor opens, which all workers share.",
    "worker_tmp_dir": "Accepted, and nothing is written there: heartbeats are in shared memory, in no file.",
    "control_socket_disable": "Accepted: gunicorn's control socket does not exist here. See `control_bind`.",
    "max_requests": (
        "A worker that ends by it is replaced from the mold. It must have served `refork_after` requests before, or "
        "there is no refork by count."
    ),
    "workers": "1 to 1024.",
    "worker_class": (
        "`sync`, `gthread`, `asgi` and `uvicorn_worker.UvicornWorker` refork. Any other class is served, and reforked "
        "if it comes back cleanly from a graceful stop; if it does not, the log and the status say so."
    ),
    "asgi_lifespan": "Shutdown runs at promotion and startup in each new worker, unless `lifespan_keep` is set.",
    "graceful_timeout": "`promote_timeout` must exceed it, and `drain_seconds` must not.",
    "timeout": "The monitor reads the heartbeats of workers. One that drains has `graceful_timeout` instead.",
    "proc_name": "Part of the monitor's title and of syslog lines. Workers and molds have titles of their own.",
    "user": "Molds and workers have these rights, before the application is loaded. The monitor keeps its own.",
    "group": "As for `user`.",
    "initgroups": "As for `user`.",
    "umask": "As in gunicorn: for the files of unix sockets. The application keeps the umask it would have had.",
    "raw_env": "Set in molds, before the application is loaded.",
    "chdir": "As in gunicorn. A relative path, like that of `config`, starts where `refork` was started.",
    "config": "Run by the monitor, again on HUP, and by each mold that loads the application. See [HOOKS](HOOKS.md).",
    "pre_exec": "Called in the monitor before it executes a mold that loads the application. USR2 does nothing.",
    "statsd_host": "Workers report requests. The number of workers is in refork's own metrics, see `metrics_bind`.",
}
"""What is to be known about settings that are accepted."""

_NAMES = """
    wsgi_app check_config print_config http_protocols http2_cleartext http2_max_concurrent_streams
    http2_initial_window_size http2_max_frame_size http2_max_header_list_size accesslog
    disable_redirect_access_to_syslog access_log_format errorlog loglevel capture_output logger_class logconfig
    logconfig_dict logconfig_json syslog_addr syslog syslog_prefix syslog_facility enable_stdio_inheritance
    dogstatsd_tags statsd_prefix default_proc_name keyfile certfile ssl_version cert_reqs ca_certs
    suppress_ragged_eofs do_handshake_on_connect ciphers limit_request_line limit_request_fields
    limit_request_field_size sendfile daemon pidfile tmp_upload_dir secure_scheme_headers forwarded_allow_ips
    pythonpath paste proxy_protocol proxy_allow_ips protocol uwsgi_allow_ips raw_paste_global_conf
    permit_obsolete_folding strip_header_spaces permit_unconventional_http_method
    permit_unconventional_http_version casefold_http_method forwarder_headers header_map root_path bind backlog
    threads worker_connections max_requests_jitter keepalive asgi_loop asgi_disconnect_grace_period
    websocket_max_message_size http_parser on_starting on_reload when_ready pre_fork post_fork post_worker_init
    worker_int worker_abort pre_request post_request child_exit worker_exit nworkers_changed on_exit ssl_context
"""

AS_THEY_ARE = tuple(_NAMES.split())
"""What means here what it means there."""

_HEAD = """\
# Settings

<!-- Written by `python -m docs.generate` from the settings themselves. Edit those. -->

Everything that gunicorn can be told, refork can be told in the same words: on the command line, in the configuration
file (`gunicorn.conf.py`, or what `--config` names), in the environment variable `GUNICORN_CMD_ARGS`. The command line
wins over the environment, which wins over the file. refork's own settings work in the same three places.

`refork --print-config` shows them all with their values; `refork --check-config` says whether it would serve.
"""

_GUNICORNS = """\
## gunicorn's settings

### With something to know

These are accepted, and this is what refork makes of them.

| setting | in refork |
|---|---|
"""

_REFUSED = """\

### Refused

Nothing that is set is ignored. When one of these differs from gunicorn's default, refork says so and does not start.

| setting | what to do instead |
|---|---|
"""

_UNCHANGED = """\

### As they are

These mean in refork what they mean in gunicorn (some are not in every version of it). For the hooks among them,
[HOOKS](HOOKS.md) tells which process calls them.

"""


def page() -> str:
    """Write the page."""
    parts = [_HEAD]
    for section in (settings.SECTION, settings.HOOKS_SECTION):
        title = "refork's settings" if section == settings.SECTION else "refork's hooks"
        parts.append(f"\n## {title}\n")
        parts += [_entry(setting) for setting in KNOWN_SETTINGS if setting.section == section]
    parts.append(f"\n{_GUNICORNS}")
    parts += [f"| `{name}` | {remark} |\n" for name, remark in sorted(REMARKS.items())]
    parts.append(_REFUSED)
    parts += _refused()
    parts.append(_UNCHANGED)
    parts.append(", ".join(f"`{name}`" for name in sorted(AS_THEY_ARE)) + ".\n")
    return "".join(parts)


def _entry(setting: Any) -> str:
    lines = [f"\n### {setting.name}\n"]
    if setting.cli:
        flag = f"{setting.cli[0]} {setting.meta or ''}".strip()
        lines.append(f"`{flag}`, default `{setting.default!r}`\n")
    return "\n".join([*lines, setting.desc, ""])


def _refused() -> Iterator[str]:
    for sentence in dict.fromkeys(REFUSED.values()):
        names = ", ".join(f"`{name}`" for name, reason in REFUSED.items() if reason == sentence)
        yield f"| {names} | {sentence}. |\n"
