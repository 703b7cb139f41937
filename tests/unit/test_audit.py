"""The judgement: which facts make a fork unsafe, what is allowed, and what each finding says."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork.audit import (
    Connection,
    Descriptor,
    Facts,
    Finding,
    Kind,
    NativeThread,
    Policy,
    Thread,
    findings,
    sentences,
)

NOTHING = Policy()

ONE_OF_EACH = {
    Kind.MARK: Facts(marks=("a dongle",)),
    Kind.SECTION: Facts(sections=("the index",)),
    Kind.LOOP: Facts(loops=1),
    Kind.THREAD: Facts(threads=(Thread("ticker", "shop.background"),)),
    Kind.NATIVE_THREAD: Facts(native=(NativeThread("worker-0"),)),
    Kind.CONNECTION: Facts(connections=(Connection(7, "10.0.0.9", 5432),)),
    Kind.DATABASE: Facts(databases=(Descriptor(8, "/srv/data.db"),)),
    Kind.DESCRIPTOR: Facts(kernel=(Descriptor(9, "eventpoll"),)),
    Kind.PIPE: Facts(pipes=(Descriptor(10, "pipe"),)),
    Kind.DEVICE: Facts(devices=(Descriptor(11, "/dev/nvidia0"),)),
    Kind.POOL: Facts(children=("ForkPoolWorker-1",)),
    Kind.LOCK: Facts(locks=("the import lock of shop",)),
}


def only(facts: Facts, *allowed: str) -> Finding:
    """The one finding there is."""
    (finding,) = findings(facts, Policy(allowed=allowed))
    return finding


def test_every_kind_of_fact_is_tried_here() -> None:
    """A new one has to be put on the list above."""
    assert set(ONE_OF_EACH) == set(Kind)


def test_no_facts_no_findings() -> None:
    """Modules alone are no reason to refuse: most of them do no harm until they are used."""
    assert findings(Facts(), NOTHING) == ()
    assert findings(Facts(modules=frozenset({"grpc", "torch", "numpy"})), NOTHING) == ()


@pytest.mark.parametrize("kind", list(ONE_OF_EACH))
def test_each_fact_is_one_finding_in_one_sentence(kind: Kind) -> None:
    """What it is, a colon, what to do."""
    finding = only(ONE_OF_EACH[kind])
    sentence = str(finding)
    assert finding.kind is kind
    assert "\n" not in sentence
    assert ": " in sentence
    assert not sentence.endswith(".")
    assert finding.what
    assert finding.do


@pytest.mark.parametrize("kind", [kind for kind in ONE_OF_EACH if only(ONE_OF_EACH[kind]).allow])
def test_the_entry_that_a_finding_offers_allows_it(kind: Kind) -> None:
    """Who follows the advice is not told the same again."""
    facts = ONE_OF_EACH[kind]
    allow = only(facts).allow
    assert f"fork_safety_allow = [{allow!r}]" in str(only(facts))
    assert findings(facts, Policy(allowed=(allow,))) == ()


def test_a_thread_is_named_with_the_module_of_what_it_runs() -> None:
    """That is where one has to look."""
    facts = Facts(threads=(Thread("ticker", "shop.background"),))
    assert str(only(facts)) == (
        "thread 'ticker' of shop.background is running: end it in before_promote and start it in after_worker_fork, "
        "or set fork_safety_allow = ['thread:ticker'] if that does no harm"
    )
    assert "is running an event loop" in str(only(Facts(threads=(Thread("aio", "shop", loop=True),))))
    assert "2 threads 'aio' are running" in str(only(Facts(threads=(Thread("aio"), Thread("aio")))))


def test_a_thread_that_nobody_has_named_is_allowed_by_its_module() -> None:
    """Its number is another one the next time."""
    assert only(Facts(threads=(Thread("Thread-7 (run)", "shop"),))).allow == "module:shop"
    assert only(Facts(threads=(Thread("Thread-7 (run)"),))).allow == "thread:Thread-7 (run)"


@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        ("thread:ticker", True),
        ("thread:tick*", True),
        ("thread:tock*", False),
        ("module:shop", True),
        ("module:shop.background", True),
        ("module:sho", False),
        ("module:shop.background.deeper", False),
        ("address:ticker", False),
    ],
)
def test_threads_are_allowed_by_name_and_by_module(entry: str, *, allowed: bool) -> None:
    """A package allows its modules; part of a name is no name."""
    facts = Facts(threads=(Thread("ticker", "shop.background"),))
    assert (findings(facts, Policy(allowed=(entry,))) == ()) is allowed


@pytest.mark.parametrize(
    ("connection", "entry", "allowed"),
    [
        (Connection(1, "10.0.0.9", 5432), "address:10.0.0.9", True),
        (Connection(1, "10.0.0.9", 5432), "address:10.0.0.9:5432", True),
        (Connection(1, "10.0.0.9", 5432), "address:10.0.0.9:5433", False),
        (Connection(1, "10.0.0.9", 5432), "address:10.0.0.90", False),
        (Connection(1, "::1", 6379), "address:::1", True),
        (Connection(1, "::1", 6379), "address:[::1]", True),
        (Connection(1, "::1", 6379), "address:[::1]:6379", True),
        (Connection(1, "::1", 6379), "address:[::1]:1", False),
        (Connection(1, "/run/db.sock", unix=True), "address:/run/db.sock", True),
        (Connection(1, "/run/db.sock", unix=True), "address:unix:/run/db.sock", True),
        (Connection(1, "/run/db.sock", unix=True), "address:/run", False),
        (Connection(1, "", unix=True), "address:", False),
    ],
)
def test_connections_are_allowed_by_address(connection: Connection, entry: str, *, allowed: bool) -> None:
    """A host, a host with a port, a path."""
    assert (findings(Facts(connections=(connection,)), Policy(allowed=(entry,))) == ()) is allowed


def test_connections_to_one_peer_are_one_finding() -> None:
    """With the descriptors, and what probably listens there."""
    facts = Facts(connections=(Connection(7, "10.0.0.9", 5432), Connection(9, "10.0.0.9", 5432)))
    assert only(facts).what == "2 connections to 10.0.0.9:5432 (PostgreSQL) are open (fd 7, fd 9)"


def test_a_native_thread_is_known_by_the_name_that_its_library_gives_it() -> None:
    """Then there is better advice than to look for it."""
    finding = only(Facts(native=(NativeThread("rdk:main"), NativeThread("rdk:main"))))
    assert finding.what == "2 threads 'rdk:main' of librdkafka are running"
    assert "producers" in finding.do
    assert findings(Facts(native=(NativeThread("rdk:main"),)), Policy(allowed=("module:confluent_kafka",))) == ()


def test_a_nameless_native_thread_makes_imported_libraries_suspects() -> None:
    """Those that are known to start threads; if all of them are allowed, so is the thread."""
    facts = Facts(native=(NativeThread(""),), modules=frozenset({"torch", "flask"}))
    assert only(facts).what == "1 native thread without a name, not started by Python, is running"
    assert only(facts).allow == "module:torch"
    assert "if it is of PyTorch, call torch.set_num_threads(1)" in str(only(facts))
    assert findings(facts, Policy(allowed=("module:torch",))) == ()
    both = dataclasses.replace(facts, modules=frozenset({"torch", "grpc"}))
    assert len(findings(both, Policy(allowed=("module:torch",)))) == 1


def test_what_is_written_fits_a_message() -> None:
    """However much there is, and however long."""
    many = tuple(Thread(f"thread-{number}", "m" * 1000) for number in range(100))
    written = sentences(findings(Facts(threads=many), NOTHING))
    assert written[-1] == "and 80 more"
    assert len(written) == 21
    assert sum(map(len, written)) < 10_000


@given(st.lists(st.text(max_size=12), max_size=6), st.lists(st.text(max_size=12), max_size=6))
def test_no_name_is_too_strange(names: list[str], allowed: list[str]) -> None:
    """Threads are named by people: a name is never a reason to fail."""
    facts = Facts(
        threads=tuple(Thread(name, name) for name in names),
        native=tuple(NativeThread(name) for name in names),
        connections=tuple(Connection(3, name, unix=True) for name in names),
    )
    found = findings(facts, Policy(allowed=tuple(allowed)))
    assert len(sentences(found)) == min(len(found), 21)
