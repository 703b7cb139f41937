"""A Flask application whose word index is built at the first request that wants it."""

import functools
import os
from collections import defaultdict

from flask import Flask, Response, jsonify

WORDS = int(os.environ.get("INDEX_WORDS", "50000"))

app = Flask(__name__)


@functools.cache
def index() -> dict[str, list[int]]:
    """Where each word occurs: expensive to build, only read afterwards."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number in range(WORDS):
        found[f"word{number % (WORDS // 5 + 1)}"].append(number)
    return dict(found)


@app.get("/")
def places() -> Response:
    """How large the index is."""
    return jsonify(words=len(index()), places=sum(map(len, index().values())))


@app.get("/words/<word>")
def word(word: str) -> Response:
    """Where one word occurs."""
    return jsonify(word=word, places=index().get(word, []))


@app.get("/health")
def health() -> Response:
    """Answer without touching the index."""
    return jsonify(status="ok", warm=index.cache_info().currsize > 0)


@app.after_request
def sign(response: Response) -> Response:
    """Say which worker answered."""
    response.headers["X-Worker-Pid"] = str(os.getpid())
    return response
