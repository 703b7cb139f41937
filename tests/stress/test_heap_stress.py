"""Generations of a process that uses the libraries people use, seals, forks, and seals again.

Each generation is a child of the one before, as molds are. In each, every library does some work with objects that
earlier generations sealed and with new ones; results must not change and nobody may complain at exit. The libraries
were chosen for what they do to reference counts: compiled by hand (orjson), by Cython (pandas, lxml), by PyO3 for the
stable ABI (cryptography), with caches and weak references of their own (SQLAlchemy), with validators (pydantic).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refork import heap

LIBRARIES = ("pydantic", "pandas", "lxml.etree", "sqlalchemy", "cryptography.fernet", "orjson")
GENERATIONS = 4
SOURCES = os.pathsep.join([str(Path(heap.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])

pytestmark = pytest.mark.skipif(bool(heap.capability()), reason=f"cannot seal here: {heap.capability()}")

PRELUDE = """
import gc, os, sys, threading, types
from refork import heap

def load(name, source):
    '''Run one library's part as a module of its own and hand back what it does in each round.'''
    module = sys.modules[name] = types.ModuleType(name)
    exec(source, module.__dict__)
    return module.use

def generations(left, use, *, rounds=3):
    '''Use, seal, fork, and let the child do the same; every process must say the same and exit with 0.'''
    expected = use(0)
    report = heap.seal()
    assert report.sealed, report
    before = report.total_objects
    while True:
        for round in range(rounds):
            got = use(round + 1)
            assert got == expected, (left, got, expected)
        gc.collect()
        if not left:
            break
        left -= 1
        report = heap.seal()
        assert report.sealed and report.total_objects >= before, report
        before = report.total_objects
        pid = os.fork()
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a generation failed"
            break
    sys.stdout.flush()
"""

USES = {
    "pydantic": """
from pydantic import BaseModel, Field, ValidationError
class Line(BaseModel):
    sku: str
    count: int = Field(gt=0)
class Order(BaseModel):
    id: int
    lines: list[Line]
    note: str | None = None
orders = []
def use(round):
    made = [Order(id=i, lines=[Line(sku=f"s{j}", count=j + 1) for j in range(5)]) for i in range(200)]
    orders.extend(made[:50])
    text = made[7].model_dump_json()
    again = Order.model_validate_json(text)
    class Local(BaseModel):
        order: Order
    try:
        Local(order={"id": "x", "lines": []})
    except ValidationError as error:
        count = error.error_count()
    orders[0].note = f"round {round}"
    return text, again == made[7], count, Local(order=again).model_dump()["order"]["lines"][3]["count"]
""",
    "pandas": """
import numpy, pandas
kept = []
objects = numpy.array([f"object {i}" for i in range(1000)] + [None, 1.5], dtype=object)
frame = pandas.DataFrame({"k": [f"k{i % 7}" for i in range(5000)], "v": range(5000), "o": [object] * 5000})
index = pandas.MultiIndex.from_product([list("abc"), range(10)])
def use(round):
    sums = frame.groupby("k")["v"].sum().to_dict()
    wide = frame.assign(w=frame["v"] * 2).merge(frame[["k"]].drop_duplicates(), on="k").head(100)
    kept.append(wide.copy())
    objects[round] = "".join(["new ", "object"])
    text = wide.to_csv(index=False)
    series = pandas.Series(range(30), index=index).loc["b"].tolist()
    dates = pandas.date_range("2024-01-01", periods=5, tz="UTC").strftime("%d").tolist()
    return sums, hash(text) == hash(text), len(text), series, dates, sum(len(str(o)) for o in objects[500:])
""",
    "lxml.etree": """
from lxml import etree, objectify
source = "<root>" + "".join(f"<item n='{i}'><name>n{i}</name></item>" for i in range(500)) + "</root>"
kept = etree.fromstring(source)
proxies = list(kept)
style = etree.XSLT(etree.XML('''<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:template match="/"><n><xsl:value-of select="count(//item)"/></n></xsl:template></xsl:stylesheet>'''))
def use(round):
    tree = etree.fromstring(source)
    names = tree.xpath("//item[@n > 490]/name/text()")
    moved = etree.SubElement(proxies[3], "extra")
    moved.text = "x"
    tree.append(moved)
    other = objectify.fromstring("<a><b>1</b></a>")
    try:
        etree.fromstring("<broken>")
    except etree.XMLSyntaxError as error:
        message = error.msg
    return [str(n) for n in names], len(tree), str(style(kept)), int(other.b), message, proxies[3].get("n")
""",
    "sqlalchemy": """
from sqlalchemy import ForeignKey, String, create_engine, select, func
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import StaticPool
class Base(DeclarativeBase): pass
class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(30))
    posts: Mapped[list["Post"]] = relationship(back_populates="user")
class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship(back_populates="posts")
warm = []
def use(round):
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(name=f"u{i}", posts=[Post() for _ in range(3)]) for i in range(50)])
        session.commit()
        counts = session.execute(select(User.name, func.count(Post.id)).join(Post).group_by(User.name)).all()
        user = session.scalars(select(User).where(User.name == "u7")).one()
        posts = [post.user.name for post in user.posts]
        session.delete(user.posts[0])
        session.commit()
        session.expunge_all()
        warm.append(session.scalars(select(User)).all()[:10])
    engine.dispose()
    return sorted(map(tuple, counts)), posts, [user.name for user in warm[0]]
""",
    "cryptography.fernet": """
from cryptography import x509
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
key = Fernet.generate_key()
fernet = Fernet(key)
curve = ec.generate_private_key(ec.SECP256R1())
ed = ed25519.Ed25519PrivateKey.generate()
gcm = AESGCM(b"k" * 32)
token = fernet.encrypt(b"kept")
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stress")])
def use(round):
    for _ in range(200):
        signature = curve.sign(b"data", ec.ECDSA(hashes.SHA256()))
        curve.public_key().verify(signature, b"data", ec.ECDSA(hashes.SHA256()))
        ed.public_key().verify(ed.sign(b"d"), b"d")
        box = gcm.encrypt(b"n" * 12, b"text", None)
    try:
        fernet.decrypt(b"nonsense")
    except InvalidToken:
        caught = True
    pem = curve.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(curve, hashes.SHA256())
    return fernet.decrypt(token), box, caught, pem, request.is_signature_valid, request.subject == name
""",
    "orjson": """
import datetime, orjson, uuid
kept = orjson.loads(b'{"a": [1, 2.5, "text", null, true], "b": {"c": "d"}}')
def use(round):
    value = [{"id": i, "name": f"n{i}", "at": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)} for i in range(500)]
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    again = orjson.loads(text)
    kept.setdefault("rounds", []).append(again[:20])
    try:
        orjson.loads(b"{")
    except orjson.JSONDecodeError as error:
        message = str(error)
    return text[:100], again[499]["name"], message, kept["a"], orjson.dumps(kept["b"])
""",
}


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, with the package under test in reach."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        env={**os.environ, "PYTHONPATH": SOURCES, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def script_for(*libraries: str) -> str:
    """Write a script that puts several libraries through the generations, one beside the other in each process."""
    loads = ", ".join(f"load({library.replace('.', '_') + '_part'!r}, {USES[library]!r})" for library in libraries)
    return f"{PRELUDE}\nuses = [{loads}]\ngenerations({GENERATIONS}, lambda round: [use(round) for use in uses])"


def needs(*libraries: str) -> None:
    """Skip, and say which library is missing."""
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed: pip install --group stress")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_works_through_generations_of_sealed_heaps(library: str) -> None:
    """Use, seal, fork, four times over: same results, no fault, nothing said at exit."""
    needs(library)
    done = run(script_for(library))
    assert (done.returncode, done.stderr) == (0, "")


def test_all_of_them_work_in_one_process() -> None:
    """As in an application, with one heap for all."""
    needs(*LIBRARIES)
    done = run(script_for(*LIBRARIES))
    assert (done.returncode, done.stderr) == (0, "")


def test_all_of_them_work_with_a_checking_allocator() -> None:
    """PYTHONMALLOC=debug notices writes beyond, and use after, what was allocated."""
    needs(*LIBRARIES)
    done = run(script_for(*LIBRARIES), PYTHONMALLOC="debug")
    assert (done.returncode, done.stderr) == (0, "")


THREADS = (
    PRELUDE
    + """
import json, re, queue
jobs, done = queue.Queue(), queue.Queue()
shared = {f"key {n}": [n, str(n), {"n": n}] for n in range(5000)}
def work():
    while (job := jobs.get()) is not None:
        rows = [tuple(x * 2 for x in range(job % 20)) for _ in range(200)]
        text = json.dumps([shared[f"key {n}"] for n in range(job, job + 50)])
        done.put(len(re.sub(r"[0-9]", "", text)) >= 0 and sum(map(len, rows)) == 200 * (job % 20))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for number in range(400):
    jobs.put(number)
    if number % 40 == 0:
        assert heap.seal().sealed
for thread in threads: jobs.put(None)
for thread in threads: thread.join()
assert all(done.get() for _ in range(400))
"""
)


def test_busy_threads_notice_nothing() -> None:
    """Ten times in a row the heap is sealed under eight working threads."""
    done = run(THREADS)
    assert (done.returncode, done.stderr) == (0, "")


GARBAGE = (
    PRELUDE
    + """
class Node:
    def __init__(self, left): self.left, self.me = left, self
import asyncio, collections, contextvars, dataclasses, decimal, enum, functools, itertools, types
var = contextvars.ContextVar("var", default=None)
@functools.lru_cache(maxsize=64)
def cached(n): return [n, str(n)]
async def step(n):
    await asyncio.sleep(0)
    var.set([n])
    return n
async def main(): return sum(await asyncio.gather(*(step(n) for n in range(200))))
kept = collections.deque(maxlen=1000)
def use(round):
    chain = None
    for n in range(20000): chain = Node(chain)
    kept.extend(Node(n) for n in range(500))
    Color = enum.Enum("Color", ["RED", "BLUE"])
    Point = dataclasses.make_dataclass("Point", ["x", "y"], frozen=True)
    pairs = list(zip(range(10), itertools.combinations(range(6), 2)))
    namespace = {}
    exec("def f(a, b=[1, 2], *, c='x'): return [a, *b, c]", namespace)
    total = asyncio.run(main())
    hits = sum(cached(n % 100)[0] for n in range(500))
    return (total, hits, Color.RED.name, repr(Point(1, decimal.Decimal(2))), len(pairs), namespace["f"](3),
            sum(n.left for n in itertools.islice(kept, 100)))
generations(8, use)
"""
)


def test_the_interpreters_own_machinery_works_through_generations() -> None:
    """Cycles, caches, event loops, context variables, classes and code made at run time."""
    done = run(GARBAGE)
    assert (done.returncode, done.stderr) == (0, "")
