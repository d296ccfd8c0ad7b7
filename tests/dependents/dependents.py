"""Packages of others, written for redlock-py, on this project's wheel: their own tests, or what they do all day.

Not collected with the other tests: `make test-dependents` names this file. It needs the wheel and PyPI.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_NETWORK = re.compile("NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|name resolution", re.IGNORECASE)
PACKAGES = [  # without what they depend on: that would bring redlock-py itself
    "Flask-Redlock==0.0.3",
    "tilecloud-chain==1.13.9",
    "tilecloud==1.6.6",
]
FIFO = "redlock-fifo==1.3.0"  # its source, which has the tests
FIFO_NEEDS = ["fakeredis==0.6.2", "mock==5.2.0", "PyHamcrest==2.1.0"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The oldest interpreter here, in an environment with the wheel and the packages."""
    wheels = list(ROOT.glob("target/wheels/*.whl"))
    assert len(wheels) == 1, f"expected one wheel in target/wheels: {wheels}"
    oldest = subprocess.run([ROOT / ".ci/pythons"], capture_output=True, text=True, check=True).stdout.split()[0]
    environment = tmp_path_factory.mktemp("dependents") / "env"
    subprocess.run([oldest, "-m", "venv", environment], check=True)
    found = environment / "bin/python"
    pip(found, "install", str(wheels[0]), *FIFO_NEEDS)
    pip(found, "install", "--no-deps", *PACKAGES)
    return found


def pip(python, *words):
    done = subprocess.run([python, "-m", "pip", *words, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode and NO_NETWORK.search(done.stderr):
        pytest.skip("PyPI cannot be reached")
    assert done.returncode == 0, done.stderr


def run(python, program, *words, cwd=None):
    done = subprocess.run(
        [python, "-W", "ignore", "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


FLASK = """
import sys
from types import SimpleNamespace
from flask_redlock import RedisLock

locks = RedisLock()
locks.init_app(SimpleNamespace(config={"REDIS_HOST": "127.0.0.1", "REDIS_PORT": int(sys.argv[1]), "REDIS_DB": 0}))
with locks.lock("r", 10_000) as lock:
    assert lock.resource == "r", lock
    assert locks.dlm.servers[0].get("r") == lock.key
    with locks.lock("r", 10_000, retry=2, interval=0.01) as second:
        assert second is False, second
with locks.lock("r", 10_000) as lock:
    assert lock
assert locks.dlm.servers[0].get("r") is None
"""


def test_flask_redlock(python, masters):
    assert run(python, FLASK, masters(1)[0].port) == (0, "")


# Only the module with the locks is loaded: the rest of the package needs a database and a renderer of maps.
TILES = """
import importlib.util, sys, threading, types

package = types.ModuleType("tilecloud_chain")
package.__path__ = list(importlib.util.find_spec("tilecloud_chain").submodule_search_locations)
generate = types.ModuleType("tilecloud_chain.generate")
generate.Generate = object
sys.modules.update({"tilecloud_chain": package, "tilecloud_chain.generate": generate})

import redis
from tilecloud import Tile, TileCoord
from tilecloud_chain.internal_mapcache import RedisStore

url = sys.argv[1]
tile = Tile(TileCoord(1, 2, 3), data=b"pixels", content_type="image/png", metadata={"layer": "roads"})
store, other = RedisStore(url, "tiles", 60), RedisStore(url, "tiles", 60)
client, entered, order = redis.Redis.from_url(url), threading.Event(), []

def wait():
    entered.set()
    with other.lock(tile):
        order.append("second")

with store.lock(tile):
    assert len(client.get("tiles_roads_1_2_3_l")) == 22
    thread = threading.Thread(target=wait)
    thread.start()
    entered.wait()
    thread.join(0.5)
    order.append("first")
    store.put_one(tile)
thread.join()
assert order == ["first", "second"], order
assert client.get("tiles_roads_1_2_3_l") is None
found = store.get_one(Tile(TileCoord(1, 2, 3), metadata={"layer": "roads"}))
assert (found.data, found.content_type) == (b"pixels", "image/png")
"""


def test_tilecloud_chain(python, masters):
    code, said = run(python, TILES, masters(1)[0].url)
    assert code == 0, said


# fakeredis of those days needs names that Python 3.10 has taken out of `collections`.
FIFO_TESTS = """
import collections, collections.abc, sys, unittest
vars(collections).update({name: getattr(collections.abc, name) for name in collections.abc.__all__})
sys.path.insert(0, ".")
unittest.TestCase.assertEquals = unittest.TestCase.assertEqual
result = unittest.main(module=None, argv=["fifo", *sys.argv[1:]], exit=False).result
print(f"RAN {result.testsRun}")
for test, _ in result.failures + result.errors:
    print("FAILED " + test.id())
"""

# They loop around `lock` without a pause of their own, and live on the one that redlock-py makes after its last try.
# Here there is none: it held up every caller that was refused.
PAUSE = {
    f"tests.test_fifo_redlock.FIFORedlockTest.{name}"
    for name in (
        "test_call_order_orchestrated",
        "test_call_order_orchestrated_with_unlock",
        "test_ephemeral_locks_use_the_ephemeral_ttl_while_regular_locks_have_requested_ttl",
    )
}


def fifo(python, source, *tests):
    """How many tests ran, and which failed."""
    _, said = run(python, FIFO_TESTS, *tests, cwd=source)
    ran = re.search(r"^RAN (\d+)$", said, re.MULTILINE)
    assert ran, said
    return int(ran[1]), set(re.findall(r"^FAILED (\S+)$", said, re.MULTILINE))


def test_redlock_fifo(python, tmp_path):
    pip(python, "download", "--no-deps", "--no-binary", ":all:", "--dest", str(tmp_path), FIFO)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    ran, failed = fifo(python, source, "tests.test_extendable_redlock", "tests.test_fifo_redlock")
    assert ran == 44
    # They sleep, and expect to be woken within 30 ms: on a busy machine it may take them several tries.
    for _ in range(4):
        if failed - PAUSE:
            failed = fifo(python, source, *(failed - PAUSE))[1]
    assert failed <= PAUSE
