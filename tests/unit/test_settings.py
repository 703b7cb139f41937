"""What refork can be told: read right, refused with a sentence, and written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config
from gunicorn.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

from docs.reference import settings as reference
from refork import settings
from refork.configuration import ReforkConfig
from refork.refusals import REFUSED, check, is_set, settle

DOCS = Path(__file__).parents[2] / "docs"
OURS = [setting for setting in KNOWN_SETTINGS if setting.section in {settings.SECTION, settings.HOOKS_SECTION}]
COUNTS = st.lists(st.integers(min_value=1, max_value=10**15), min_size=1, max_size=8)
ONE_ARGUMENT = ("before_promote", "after_mold_fork", "after_promote", "before_worker_fork", "after_worker_fork")


def configured(**values: Any) -> Config:
    """Make a configuration as gunicorn does."""
    cfg = ReforkConfig()
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


def refusal(**values: Any) -> str:
    """Return what `check` says against these values."""
    with pytest.raises(ConfigError) as caught:
        check(configured(**values))
    return str(caught.value)


# --- refork_after -----------------------------------------------------------------------------------------------------


@given(COUNTS)
def test_a_schedule_is_the_same_as_text_as_list_and_as_tuple(counts: list[int]) -> None:
    """However it is written, the state machine sees a tuple of ints."""
    expected = tuple(counts)
    assert settings.parse_schedule(",".join(map(str, counts))) == expected
    assert settings.parse_schedule(" , ".join(map(str, counts))) == expected
    assert settings.parse_schedule(counts) == expected
    assert settings.parse_schedule([str(count) for count in counts]) == expected


@given(COUNTS)
def test_a_schedule_that_was_read_can_be_read_again(counts: list[int]) -> None:
    """A configuration copies its values through the validators."""
    once = settings.parse_schedule(counts)
    assert settings.parse_schedule(once) == once


@pytest.mark.parametrize("never", ["0", 0, [0], (), [], " 0 "])
def test_nought_and_nothing_mean_never(never: object) -> None:
    """The empty schedule is how the state machine knows that it is not to refork by itself."""
    assert settings.parse_schedule(never) == ()


@given(COUNTS, st.integers(min_value=0))
def test_nought_stands_alone(counts: list[int], position: int) -> None:
    """Within a schedule it could mean two things, so it means neither."""
    position %= len(counts) + 1
    with pytest.raises(ValueError, match="0 stands alone"):
        settings.parse_schedule([*counts[:position], 0, *counts[position:]])


@given(
    st.one_of(
        st.text(alphabet=st.characters(exclude_characters="0123456789")),
        st.integers(max_value=-1),
        st.floats(),
        st.booleans(),
        st.none(),
        st.lists(st.one_of(st.floats(), st.booleans(), st.none(), st.integers(max_value=-1)), min_size=1),
    )
)
def test_what_is_no_schedule_is_refused_with_how_to_write_one(value: object) -> None:
    """No type gets through by accident, and no exception but the one with the sentence comes out."""
    with pytest.raises(ValueError, match="like 50,100,1000"):
        settings.parse_schedule(value)


@pytest.mark.parametrize("value", ["1_000", "+5", "-5", "5.0", "1e3", "٣", "1,,2", ",", "1,", "9" * 5000])
def test_what_only_int_takes_for_a_number_is_refused(value: str) -> None:
    """A typo must not become a number of requests."""
    with pytest.raises(ValueError, match="no schedule"):
        settings.parse_schedule(value)


# --- refork_gain ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", (0, 0.0)),
        (0, (0, 0.0)),
        ("1000", (1000, 0.0)),
        ("200M", (200 * 1024**2, 0.0)),
        (" 1.5g ", (1024**3 * 3 // 2, 0.0)),
        ("64KiB", (64 * 1024, 0.0)),
        ("2MB", (2 * 1024**2, 0.0)),
        ("512Mi", (512 * 1024**2, 0.0)),
        ("20%", (0, 0.2)),
        ("0%", (0, 0.0)),
        ("100%", (0, 1.0)),
    ],
)
def test_an_amount_is_bytes_or_a_share(text: object, amount: tuple[int, float]) -> None:
    """Units are powers of 1024, however they are written, as for the limits that they are compared with."""
    assert settings.parse_amount(text) == amount
    kept = configured(refork_gain=text).refork_gain
    assert settings.parse_amount(kept) == amount


@pytest.mark.parametrize(
    "value", ["", "M", "-1", "200 M", "101%", "20 %", "1e9", "20%M", "KiB", "1Bi", None, True, 0.2, [200]]
)
def test_what_is_no_amount_is_refused_with_how_to_write_one(value: object) -> None:
    """A typo must not become a limit that is never reached, or always."""
    with pytest.raises(ValueError, match="like 200M"):
        configured(refork_gain=value)


# --- the others -------------------------------------------------------------------------------------------------------


def test_the_defaults_are_what_the_server_works_with() -> None:
    """Types and values, as the monitor reads them."""
    cfg = configured()
    seen = {setting.name: cfg.settings[setting.name].get() for setting in OURS if setting.section == settings.SECTION}
    assert seen == {
        "refork_after": (1000,),
        "refork_gain": "0",
        "refork_sustained": 60.0,
        "refork_cooldown": 600.0,
        "refork_surge": 1,
        "refork_max_unavailable": 0,
        "spawn_timeout": 60.0,
        "promote_timeout": 60.0,
        "canary_seconds": 2.0,
        "drain_seconds": 2.0,
        "max_generations": 0,
        "max_sealed_growth": 0.5,
        "max_worker_age": 0.0,
        "max_worker_memory": "0",
        "seal": True,
        "lifespan_keep": False,
        "fork_safety": "refuse",
        "fork_safety_allow": [],
        "check_fork_safety": False,
        "check_requests": "",
        "control_bind": "",
        "control_tcp": "",
        "control_token_file": "",
        "control_service_accounts": (),
        "control_jwks": "",
        "control_issuer": "",
        "control_certfile": "",
        "control_keyfile": "",
        "control_client_ca": "",
        "control_plaintext": False,
        "refork_min_interval": 1.0,
        "metrics_bind": "",
    }


@pytest.mark.parametrize("value", ["", "deny", "Refuse", True, None])
def test_a_policy_of_fork_safety_is_one_of_three(value: object) -> None:
    """The sentence names them."""
    with pytest.raises(ValueError, match="write refuse, warn or allow"):
        configured(fork_safety=value)


def test_what_is_allowed_to_be_forked_is_named_by_its_kind() -> None:
    """A list, or one; and nothing that would silently allow nothing."""
    assert configured(fork_safety_allow="thread:a").fork_safety_allow == ["thread:a"]
    assert configured(fork_safety_allow=["module:a", "address:h:1"]).fork_safety_allow == ["module:a", "address:h:1"]
    for wrong in ("ticker", "thread:", "process:x", 3):
        with pytest.raises(ValueError, match="write thread:NAME"):
            configured(fork_safety_allow=[wrong])


@pytest.mark.parametrize("name", ["refork_surge", "refork_max_unavailable", "max_generations"])
@pytest.mark.parametrize("value", [-1, "-1", "two", 1.5, True, None, ""])
def test_a_number_that_is_none_is_refused(name: str, value: object) -> None:
    """The sentence says what would have been one."""
    with pytest.raises(ValueError, match="write a whole number"):
        configured(**{name: value})


def test_a_surge_of_none_would_never_roll() -> None:
    """One replacement at a time is the least."""
    with pytest.raises(ValueError, match="1 or more"):
        configured(refork_surge=0)
    assert configured(refork_max_unavailable=0, max_generations="7").max_generations == 7


@pytest.mark.parametrize("name", ["spawn_timeout", "promote_timeout", "canary_seconds", "drain_seconds"])
@pytest.mark.parametrize("value", [-1, "-0.5", "soon", float("nan"), float("inf"), True, None, "", 10**400])
def test_a_duration_that_is_none_is_refused(name: str, value: object) -> None:
    """Neither nan nor infinity ever passes, so a deadline is a moment in time."""
    with pytest.raises(ValueError, match="write a number of seconds"):
        configured(**{name: value})


@pytest.mark.parametrize(
    ("name", "allowed"), [("spawn_timeout", False), ("promote_timeout", False), ("canary_seconds", True)]
)
def test_no_time_at_all_is_a_canary_but_no_timeout(*, name: str, allowed: bool) -> None:
    """A timeout of 0 would fail everything; a canary of 0 is a choice."""
    if allowed:
        assert getattr(configured(**{name: "0"}), name) == 0
        return
    with pytest.raises(ValueError, match="more than 0"):
        configured(**{name: 0})


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("", ""),
        (None, ""),
        ("auto", ""),
        ("none", "none"),
        ("unix:@mine", "unix:@mine"),
        ("@mine", "unix:@mine"),
        ("/run/refork.sock", "unix:/run/refork.sock"),
    ],
)
def test_the_control_endpoint_is_a_unix_socket_or_none(value: object, seen: str) -> None:
    """Empty stands for the name with the monitor's pid."""
    assert configured(control_bind=value).control_bind == seen


@pytest.mark.parametrize("value", ["127.0.0.1:9000", ":9000", "unix:relative", "unix:", 9000])
def test_the_control_endpoint_has_no_tcp(value: object) -> None:
    """Who may command is what the kernel says about the peer, which it says of unix sockets only."""
    with pytest.raises((ValueError, TypeError), match="none"):
        configured(control_bind=value)


@pytest.mark.parametrize(
    ("value", "seen"), [("", ""), ("none", ""), (":9090", ":9090"), ("::1:9", None), (9090, None), ("x", None)]
)
def test_metrics_are_served_at_an_address_or_not_at_all(value: object, seen: str | None) -> None:
    """The sentence about a wrong address shows right ones."""
    if seen is not None:
        assert configured(metrics_bind=value).metrics_bind == seen
        return
    with pytest.raises((ValueError, TypeError), match="write"):
        configured(metrics_bind=value)


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_a_hook_takes_one_argument(name: str) -> None:
    """gunicorn's own validator sees to it, so that a hook cannot fail at three in the morning for its signature."""
    assert getattr(configured(), name)(object()) is None
    with pytest.raises(TypeError, match="arity of: 1"):
        configured(**{name: lambda: None})
    with pytest.raises(TypeError, match="not callable"):
        configured(**{name: 3})


def test_the_hook_after_a_refork_takes_the_server_and_the_outcome() -> None:
    """It is the only one with two arguments."""
    assert configured().after_refork(object(), "succeeded") is None
    with pytest.raises(TypeError, match="arity of: 2"):
        configured(after_refork=lambda outcome: outcome)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("reload", True, "HUP"),
        ("reload_engine", "poll", "HUP"),
        ("reload_extra_files", [__file__], "HUP"),
        ("spew", True, "after_worker_fork"),
        ("dirty_apps", ["app:Dirty"], "dirty workers"),
        ("dirty_workers", 1, "dirty workers"),
        ("dirty_timeout", 1, "dirty workers"),
        ("dirty_threads", 2, "dirty workers"),
        ("dirty_graceful_timeout", 1, "dirty workers"),
        ("on_dirty_starting", lambda _arbiter: None, "dirty workers"),
        ("dirty_post_fork", lambda _arbiter, _worker: None, "dirty workers"),
        ("dirty_worker_init", lambda _worker: None, "dirty workers"),
        ("dirty_worker_exit", lambda _arbiter, _worker: None, "dirty workers"),
        ("control_socket", "/tmp/other.ctl", "reforkctl"),
        ("control_socket_mode", 0o660, "reforkctl"),
        ("enable_backlog_metric", True, "ss -lt"),
    ],
)
def test_what_refork_does_not_offer_is_refused_with_what_to_do_instead(name: str, value: object, told: str) -> None:
    """Somebody who sets it relies on it."""
    assert told in refusal(**{name: value})


def test_every_refusal_is_tested_and_exists() -> None:
    """A setting that was renamed by gunicorn would be refused no more."""
    assert set(REFUSED) <= {setting.name for setting in KNOWN_SETTINGS}


def test_all_reasons_are_given_at_once_and_one_sentence_once() -> None:
    """Nobody should have to start a server five times to learn five things."""
    said = refusal(reload=True, reload_engine="poll", spew=True, workers=0)
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        "--reload, --reload-engine",
        "--spew",
        "--workers 0",
    ]


def test_what_is_always_so_may_be_set() -> None:
    """Words that say what refork does anyway are no reason to stop."""
    check(configured(preload_app=True, control_socket_disable=True, reuse_port=True, pre_exec=lambda _server: None))


def test_a_setting_at_its_default_is_not_set() -> None:
    """A configuration file that spells out gunicorn's defaults is served."""
    cfg = configured(reload=False, dirty_workers=0, dirty_timeout=300, control_socket_mode=0o600)
    assert not any(is_set(cfg, name) for name in REFUSED)
    assert not is_set(cfg, "a_setting_of_another_version")
    check(cfg)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"promote_timeout": 20}, "--promote-timeout (20 s) must exceed --graceful-timeout (30 s)"),
        ({"drain_seconds": 31}, "--drain-seconds (31 s) cannot exceed --graceful-timeout (30 s)"),
        ({"workers": 0}, "1 to 1024 workers"),
        ({"workers": 5000}, "1 to 1024 workers"),
        ({"worker_class": "gaiohttp"}, "there is no such worker class; use one of asgi, gevent"),
        ({"lifespan_keep": True}, "--lifespan-keep is for ASGI"),
        ({"lifespan_keep": True, "threads": 4}, "'gthread' serves WSGI"),
        ({"raw_env": ["NAME"]}, "write NAME=VALUE"),
        ({"bind": "host:http"}, "--bind: 'http' is not a valid port number"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], told: str) -> None:
    """The sentence names both sides."""
    assert told in refusal(**values)


@pytest.mark.parametrize("name", ["asgi", "uvicorn_worker.UvicornWorker", "package.module.Custom"])
def test_a_lifespan_can_be_kept_by_what_may_serve_asgi(name: str) -> None:
    """A class that is not known is not loaded to be asked: it may import the application."""
    check(configured(lifespan_keep=True, worker_class=name))


@pytest.mark.parametrize("graceful", [0, 1, 30, 60, 600])
def test_our_defaults_give_way_to_what_is_set_for_gunicorn(graceful: int) -> None:
    """A configuration that has served with gunicorn is served."""
    cfg = configured(graceful_timeout=graceful)
    settle(cfg)
    check(cfg)
    assert cfg.promote_timeout > graceful >= cfg.drain_seconds or graceful == cfg.drain_seconds == 0


# --- what is written down ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", OURS, ids=lambda setting: setting.name)
def test_every_setting_of_ours_is_documented(setting: Any) -> None:
    """With its name, its flag and more than one sentence."""
    page = (DOCS / "SETTINGS.md").read_text()
    assert f"### {setting.name}\n" in page
    assert all(flag in page for flag in setting.cli or ())
    assert setting.desc.count("\n\n") >= 1
    assert len(setting.short) <= 120


def test_every_setting_of_gunicorn_is_decided_upon_once() -> None:
    """A new version may bring one that means nothing here: then it is to be refused."""
    decided = [*reference.REMARKS, *reference.AS_THEY_ARE, *REFUSED]
    known = {setting.name for setting in KNOWN_SETTINGS if setting not in OURS}
    assert len(decided) == len(set(decided))
    assert known - set(decided) == set()


@pytest.mark.parametrize(
    "name", [s.name for s in KNOWN_SETTINGS if s.section in {"Server Hooks", settings.HOOKS_SECTION}]
)
def test_every_hook_is_documented(name: str) -> None:
    """Which process runs it is what one has to know."""
    assert f"| `{name}(" in (DOCS / "HOOKS.md").read_text()
