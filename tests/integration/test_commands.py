"""Commands to a real server: carried out once, not too often, kept for a while, and told to those who listen."""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.server import Server, free_port, until
from tests.integration.steered import ask
from tests.integration.test_events import Stream

if TYPE_CHECKING:
    from tests.integration.conftest import Serve

ENDED = {"succeeded", "failed"}


def command(server: Server, name: str, **body: Any) -> tuple[int, Any]:
    """Give a command: the status and the answer."""
    status, answer, _ = ask(server.control, "POST", f"/v1/{name}", body=json.dumps(body).encode())
    return status, answer


def operation(server: Server, identity: str) -> Any:
    """Look at an operation until it has ended."""

    def look() -> Any:
        status, answer, _ = ask(server.control, "GET", f"/v1/operations/{identity}")
        assert status == 200
        return answer if answer["outcome"] in ENDED else None

    return until(look, what=f"operation {identity} to end")


def test_the_same_request_id_reforks_once(serve: Serve) -> None:
    """However often, at whichever moment, from however many clients at once."""
    server = serve("--refork-min-interval", "0")
    answers: list[tuple[int, Any]] = []
    clients = [
        threading.Thread(target=lambda: answers.append(command(server, "refork", request_id="deploy-7")))
        for _ in range(8)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(answers) == 8
    assert {status for status, _ in answers} == {202}
    identities = {answer["operation"] for _, answer in answers}
    assert len(identities) == 1
    assert operation(server, identities.pop())["outcome"] == "succeeded"
    again = command(server, "refork", request_id="deploy-7")
    assert again == answers[0]
    assert server.wait_steady().generation == 1


def test_operations_are_kept_after_others_have_ended(serve: Serve) -> None:
    """With who began them, how they went, and why they were asked for."""
    server = serve("--refork-min-interval", "0")
    _, first = command(server, "refork", reason="memory", request_id="a")
    operation(server, first["operation"])
    _, second = command(server, "rebase", reason="deploy")
    operation(server, second["operation"])
    _, third = command(server, "workers", count=3, reason="peak")
    found = [operation(server, answer["operation"]) for answer in (first, second, third)]
    assert [(one["kind"], one["asked"], one["outcome"]) for one in found] == [
        ("refork", "memory", "succeeded"),
        ("rebase", "deploy", "succeeded"),
        ("workers", "peak", "succeeded"),
    ]
    assert (found[0]["request_id"], found[0]["trigger"]) == ("a", "command")
    assert server.status().ready == 3


def test_commands_that_come_too_soon_are_told_when_to_come_again(serve: Serve) -> None:
    """429 with Retry-After, and reforkctl obeys; a signal is not a command."""
    server = serve("--refork-min-interval", "3")
    _, first = command(server, "refork")
    operation(server, first["operation"])
    status, answer, headers = ask(server.control, "POST", "/v1/refork")
    assert (status, "3 s must lie between them" in answer["error"]) == (429, True)
    assert 1 <= int(headers["Retry-After"]) <= 3
    assert server.ctl("refork", "--wait").returncode == 0
    assert server.status().generation == 2


def test_while_one_rollout_goes_on_another_is_refused(serve: Serve) -> None:
    """409, whatever the interval; and the number of workers may change all the same."""
    server = serve("--canary-seconds", "20", "--refork-min-interval", "60")
    assert command(server, "refork")[0] == 202
    for name in ("refork", "rebase"):
        status, answer = command(server, name)
        assert (status, "is under way" in answer["error"]) == (409, True)
    assert command(server, "workers", count=3)[0] == 202


def test_a_resize_that_is_overtaken_says_so(serve: Serve) -> None:
    """By another number, before there were so many."""
    server = serve("--refork-min-interval", "0")
    _, first = command(server, "workers", count=8)
    _, second = command(server, "workers", count=1)
    overtaken, last = operation(server, first["operation"]), operation(server, second["operation"])
    assert (overtaken["outcome"], overtaken["reason"]) == ("failed", f"overtaken by {second['operation']}")
    assert last["outcome"] == "succeeded"
    assert server.status().ready == 1


def test_the_log_says_who_and_why(serve: Serve) -> None:
    """One line a command, and nobody's text breaks it."""
    server = serve()
    command(server, "refork", reason='new "prices"\nanswer=202 operation=forged', request_id="a:1")
    who = f"uid={os.geteuid()} pid={os.getpid()}"
    why = re.escape(r'why="new \"prices\"\nanswer=202 operation=forged"')
    server.wait_log(rf"command=refork request_id=a:1 {why} {who} answer=202 operation=\d+$")


def test_a_listener_hears_a_refork_from_its_beginning_to_its_end(serve: Serve) -> None:
    """Phases in their order, workers that come and go, the rollout, and the status every now and then."""
    port = free_port()
    server = serve("--metrics-bind", f"127.0.0.1:{port}")
    with closing(Stream(f"127.0.0.1:{port}")) as stream:
        name, status = stream.next()
        assert (name, status["generation"]) == ("status", 0)
        assert command(server, "refork")[0] == 202
        heard: list[tuple[str, Any]] = []
        while not heard or heard[-1][0] != "rollout":
            heard.append(stream.next())
        while heard[-1][0] != "status":
            heard.append(stream.next())
    phases = [event["phase"] for name, event in heard if name == "phase"]
    assert phases[:6] == ["surge", "draining", "sealing", "canary", "rolling", "retiring"]
    changes = [(event["change"], event["generation"]) for name, event in heard if name == "worker"]
    assert changes.count(("ready", 1)) == 2
    rollout = next(event for name, event in heard if name == "rollout")
    assert (rollout["outcome"], rollout["generation"]) == ("succeeded", 1)
    assert heard[-1][1]["generation"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--control-tcp", ":0"), "nothing would tell who asks"),
        (("--control-tcp", ":0", "--control-token-file", "tokens"), "others could read and repeat what passes there"),
        (("--control-token-file", "tokens"), "--control-token-file is for commands over TCP"),
        (("--control-tcp", "127.0.0.1:0", "--control-token-file", "none"), "none cannot be read"),
        (("--control-tcp", "unix:/x", "--control-token-file", "tokens"), "write HOST:PORT"),
        (("--control-tcp", ":0", "--control-service-accounts", "default:default"), "is no service account"),
        (("--control-jwks", "http://x/keys"), "keys that come unencrypted prove nothing"),
    ],
)
def test_a_door_that_would_be_open_is_refused_at_start(serve: Serve, words: tuple[str, ...], says: str) -> None:
    """One sentence, and nothing is served."""
    server = serve(*words, steady=False)
    assert server.wait() in {1, 2}
    assert says in server.log()
    assert "worker[0]" not in server.log()


def test_the_door_over_tcp_opens_once_there_is_a_token(serve: Serve) -> None:
    """A real server, a real token file; what is told there is done."""
    port = free_port()
    words = ("--control-tcp", f"127.0.0.1:{port}", "--control-token-file", "../tokens")
    server = serve(*words, steady=False)
    assert server.wait() == 1
    (server.directory.parent / "tokens").write_text("t" * 40)
    server = serve(*words)
    shown = {"Authorization": f"Bearer {'t' * 40}"}
    assert ask(f"127.0.0.1:{port}", "POST", "/v1/workers", body=b'{"count": 3}')[0] == 401
    assert ask(f"127.0.0.1:{port}", "POST", "/v1/workers", body=b'{"count": 3}', headers=shown)[0] == 202
    until(lambda: server.status().ready == 3, what="three workers")
