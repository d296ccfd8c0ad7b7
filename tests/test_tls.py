"""Certificates, good and bad: what redis-py accepts and refuses with Python's ``ssl``, and what the engine does."""

from __future__ import annotations

import logging
import shutil
import ssl
import subprocess
from dataclasses import dataclass, field

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec
from redis.backoff import NoBackoff
from redis.retry import Retry

from redlock import Redlock
from redlock._redlock import close_unused
from support.certificates import CLIENT, SERVE, SERVER, SIGN, Made, intermediate, leaf, make, root
from support.locks import TTL
from support.servers import wait_until
from support.tls import Authority

pytestmark = pytest.mark.once

FLAGS = [ssl.VerifyFlags.VERIFY_X509_STRICT, ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN]
# Contexts as Python makes them: before 3.13, and since.
MODES = {"old": {"ssl_exclude_verify_flags": FLAGS}, "new": {"ssl_include_verify_flags": FLAGS}}


@dataclass
class Case:
    """What a server shows and what its client trusts."""

    server: Made
    trusted: list[Made]
    sent: list[Made] = field(default_factory=list)
    # What is said where the engine refuses and OpenSSL does not.
    refused: str = ""


def under(end: Made, **changes: object) -> Case:
    """A server directly under a root."""
    return Case(leaf(end, **changes), [end])


def through(between: Made, *trusted: Made) -> Case:
    """A server that shows its intermediate."""
    return Case(leaf(between), list(trusted), [between])


def cases() -> dict[str, Case]:
    """By what is special about them."""
    good, other_key = root(), ec.generate_private_key(ec.SECP256R1())
    below = intermediate(good)
    own = leaf(None, ca=True, uses=())
    plain = leaf(None, ca=False)
    issued = leaf(good)
    p521 = root(curve=ec.SECP521R1())
    return {
        "nothing": under(good),
        "another root": Case(leaf(root("another")), [good]),
        "another root of the same name": Case(leaf(root()), [good]),
        "intermediate": through(below, good),
        "an expired root": under(root(days=(-9, -1))),
        "a root of tomorrow": under(root(days=(1, 9))),
        "a renewed root beside the expired one": Case(
            leaf(good), [make("root", key=good.key, ca=True, uses=SIGN, days=(-9, -1)), good]
        ),
        "a root that is no CA": under(root(ca=False, uses=())),
        "a root without basic constraints": under(root(ca=None, uses=())),
        "a root without basic constraints that may sign": under(root(ca=None)),
        "a root whose basic constraints are not critical": under(root(critical=False)),
        "a root without key usage": under(root(uses=())),
        "a root that may not sign": under(root(uses=SERVE)),
        "a root without key ids": under(root(key_ids=False)),
        "a root for clients": under(root(purposes=CLIENT)),
        "a root for servers": under(root(purposes=SERVER)),
        "a root with an unknown critical extension": under(root(unknown=True)),
        "a root that allows no intermediate": through(intermediate(short := root(path_length=0), path_length=0), short),
        "a root that names another key as its signer": under(root(signed_by=other_key)),
        "a root of version 1": under(root(version=1)),
        "a root with P-521": Case(leaf(p521), [p521], refused="not supported (P-521"),
        "a server's certificate as a root": Case(leaf(issued, names=["localhost"]), [issued]),
        "an intermediate without its root": through(below, below),
        "an intermediate without its root, not shown": Case(leaf(below), [below]),
        "an intermediate with its root, not shown": Case(leaf(below), [below, good]),
        "an intermediate that may not sign": through(intermediate(good, uses=SERVE), good),
        "an intermediate without key usage": through(intermediate(good, uses=()), good),
        "an intermediate that is no CA": through(intermediate(good, ca=False), good),
        "an intermediate without basic constraints": through(intermediate(good, ca=None), good),
        "an expired intermediate": through(intermediate(good, days=(-9, -1)), good),
        "an expired intermediate as a root": through(old := intermediate(good, days=(-9, -1)), old),
        "an intermediate for clients": through(intermediate(good, purposes=CLIENT), good),
        "expired": under(good, days=(-9, -1)),
        "for clients": under(good, purposes=CLIENT),
        "for servers": under(good, purposes=SERVER),
        "may only sign": under(good, uses=SIGN),
        "unknown critical extension": under(good, unknown=True),
        "no key ids": under(good, key_ids=False),
        "another name": under(good, names=["elsewhere.example"]),
        "common name only": Case(leaf(good, names=()), [good], refused="a common name is not looked at"),
        "version 1": Case(leaf(good, version=1), [good], refused="X.509 version 1"),
        "version 1, self-made": Case(mine := leaf(None, version=1), [mine], refused="X.509 version 1"),
        "P-521": under(good, curve=ec.SECP521R1()),
        "a CA's": Case(leaf(good, ca=True, uses=SIGN | SERVE), [good], refused="it is a CA's"),
        "self-made": Case(own, [own]),
        "self-made, no CA": Case(plain, [plain]),
        "self-made, may sign": Case(both := leaf(None, uses=SIGN | SERVE), [both]),
        "self-made, expired": Case(late := leaf(None, days=(-9, -1)), [late]),
        "self-made, for clients": Case(wrong := leaf(None, purposes=CLIENT), [wrong]),
        "self-made, unknown": Case(leaf(None, ca=True), [own]),
        "itself trusted": Case(issued, [issued]),
    }


CASES = cases()
CASES["P-521"].refused = "its key is P-521"


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text


def written(path, *texts):
    path.write_text("".join(texts))
    return path


@pytest.fixture
def served(masters, fronts, tmp_path):
    """A server with the certificate of a case; its place, and the server behind."""

    def serve(case):
        pem = written(tmp_path / "server.pem", case.server.key_pem, case.server.pem, *(each.pem for each in case.sent))
        (server,) = masters(1)
        return {"host": "localhost", "port": fronts(server, pem).port, "ssl": True}

    return serve


def redis_py_accepts(place):
    client = redis.Redis(**place, socket_timeout=20, retry=Retry(NoBackoff(), 0))
    try:
        return client.ping()
    except redis.ConnectionError:
        return False
    finally:
        client.close()


def engine_accepts(place):
    dlm = Redlock([place], 1)
    assert dlm._masters.engine is not None
    lock = dlm.lock("r", TTL)
    if lock:
        dlm.unlock(lock)
    return bool(lock)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_a_certificate_is_judged_as_redis_py_judges(served, tmp_path, said, name, mode):
    case = CASES[name]
    ca_file = written(tmp_path / "ca.pem", *(each.pem for each in case.trusted))
    place = {**served(case), **MODES[mode], "ssl_ca_certs": str(ca_file)}
    theirs, ours = redis_py_accepts(place), engine_accepts(place)
    if ours != theirs:
        assert theirs
        assert case.refused
        assert case.refused in said()


UNUSUAL = ["version 1", "P-521", "common name only", "another name", "expired", "a CA's", "unknown critical extension"]


@pytest.mark.parametrize("name", UNUSUAL)
def test_any_certificate_is_accepted_where_none_is_verified(served, name):
    place = {**served(CASES[name]), "ssl_cert_reqs": "none"}
    assert redis_py_accepts(place)
    assert engine_accepts(place)


@pytest.mark.parametrize("mode", MODES)
def test_common_names_matter_only_where_names_are_checked(served, tmp_path, mode):
    case = CASES["common name only"]
    ca_file = written(tmp_path / "ca.pem", case.trusted[0].pem)
    place = {**served(case), **MODES[mode], "ssl_ca_certs": str(ca_file), "ssl_check_hostname": False}
    assert redis_py_accepts(place)
    assert engine_accepts(place)


CURES = {
    "an expired root": "ca.pem, is not trusted: it has expired",
    "a root that is no CA": "do not say CA:TRUE",
    "an intermediate without its root": "the root that has signed it is missing",
    "common name only": "extfile <(printf 'subjectAltName=DNS:localhost')",
    "version 1": "extfile <(printf 'subjectAltName=DNS:localhost')",
    "a CA's": r"extfile <(printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost')",
    "P-521": "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
    "a root with P-521": "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
}


CURES_OF_STRICT = {
    "a root without key usage": "openssl req -x509 ... -addext keyUsage=critical,keyCertSign",
    "a root whose basic constraints are not critical": "not critical",
    "a root without key ids": "no subjectKeyIdentifier",
    "no key ids": "no authorityKeyIdentifier",
}


@pytest.mark.parametrize("name", CURES_OF_STRICT)
def test_the_log_says_where_a_strict_context_is_stricter(served, tmp_path, said, name):
    case = CASES[name]
    ca_file = written(tmp_path / "ca.pem", *(each.pem for each in case.trusted))
    assert not engine_accepts({**served(case), **MODES["new"], "ssl_ca_certs": str(ca_file)})
    assert CURES_OF_STRICT[name] in said()


@pytest.mark.parametrize("name", CURES)
def test_the_log_says_what_is_wrong_and_what_cures_it(served, tmp_path, said, name):
    case = CASES[name]
    ca_file = written(tmp_path / "ca.pem", *(each.pem for each in case.trusted))
    assert not engine_accepts({**served(case), **MODES["old"], "ssl_ca_certs": str(ca_file)})
    assert CURES[name] in said()


def test_stray_files_in_a_directory_of_cas_are_not_trusted(served, tmp_path, said):
    good = root()
    directory = tmp_path / "cas"
    directory.mkdir()
    place = {**served(under(good)), "ssl_ca_path": str(directory)}
    written(directory / "ca.pem", good.pem)
    assert not redis_py_accepts(place)
    with pytest.raises(Warning, match="openssl rehash"):
        Redlock([place])
    written(directory / "0a1b2c3d.0", root("another").pem)
    assert not redis_py_accepts(place)
    assert not engine_accepts(place)
    assert "UnknownIssuer" in said()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to name the files")
def test_a_directory_of_cas_is_read_as_openssl_names_it(served, tmp_path):
    good = root()
    directory = tmp_path / "cas"
    directory.mkdir()
    written(directory / "ca.pem", good.pem)
    subprocess.run(["openssl", "rehash", str(directory)], check=True)
    place = {**served(under(good)), "ssl_ca_path": str(directory)}
    assert redis_py_accepts(place)
    assert engine_accepts(place)


@pytest.mark.parametrize("form", ["text", "bytes"])
def test_cas_are_given_as_text_or_as_bytes(served, form):
    good, other = root(), root("another")
    data = other.pem + good.pem if form == "text" else other.der + good.der
    place = {**served(under(good)), "ssl_ca_data": data}
    assert redis_py_accepts(place)
    assert engine_accepts(place)


# -- files that change -------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """Puts an authority's files where programs look for them, as cert-manager does."""
    where = tmp_path / "mounted"
    where.mkdir()

    def mount(authority):
        for source, name in [
            (authority.ca, "ca.pem"),
            (authority.client, "tls.crt"),
            (authority.client_key, "tls.key"),
        ]:
            shutil.copyfile(source, where / "new")
            (where / "new").replace(where / name)
        return where

    return mount


def mutual(front, where):
    return {
        "host": front.host,
        "port": front.port,
        "ssl": True,
        "ssl_ca_certs": str(where / "ca.pem"),
        "ssl_certfile": str(where / "tls.crt"),
        "ssl_keyfile": str(where / "tls.key"),
    }


def test_certificates_replaced_on_disk_are_used_by_the_next_connection(masters, fronts, mounted, tmp_path):
    first, second = (Authority(made(tmp_path / name)) for name in ("first", "second"))
    (server,) = masters(1)
    front = fronts(server, first.server, client_ca=first.ca)
    dlm = Redlock([mutual(front, mounted(first))], 20, 0.1)
    dlm.unlock(locked(dlm))
    mounted(second)
    front.restart(second.server, client_ca=second.ca)
    dlm.unlock(locked(dlm))


@pytest.mark.parametrize("name", ["ca.pem", "tls.crt", "tls.key"])
def test_a_file_broken_later_is_an_error_of_the_connection(masters, fronts, mounted, authority, said, name):
    (server,) = masters(1)
    front = fronts(server, authority.server, client_ca=authority.ca)
    where = mounted(authority)
    one = Redlock([mutual(front, where)], 5, 0.1)
    close_unused(used_too=True)
    other = Redlock([mutual(front, where)], 5, 0.1)
    (where / name).unlink()
    assert one.lock("r", TTL) is False
    assert f"{where / name}: cannot be read" in said()
    (where / name).write_text("-----BEGIN CERTIFICATE-----\n")
    assert other.lock("r", TTL) is False
    assert f"{where / name}: expected" in said()
    assert front.accepted == 0
    mounted(authority)
    for dlm in (one, other):
        dlm.unlock(locked(dlm))


def test_a_client_may_show_a_certificate_of_version_1(masters, fronts, tmp_path, authority):
    """As `openssl x509 -req` makes it where it is not told of extensions."""
    clients = root()
    shown = make("client", clients, version=1)
    where = written(tmp_path / "client.pem", shown.key_pem, shown.pem)
    (server,) = masters(1)
    front = fronts(server, authority.server, client_ca=written(tmp_path / "clients.pem", clients.pem))
    place = {"host": front.host, "port": front.port, "ssl": True, "ssl_ca_certs": str(authority.ca)}
    assert not engine_accepts(place)
    place["ssl_certfile"] = str(where)
    assert redis_py_accepts(place)
    assert engine_accepts(place)


def test_a_lease_is_renewed_over_tls(masters, fronts, mounted, authority):
    """By a thread with a small stack, which makes connections of its own."""
    (server,) = masters(1)
    front = fronts(server, authority.server, client_ca=authority.ca)
    dlm = Redlock([mutual(front, mounted(authority))])
    with dlm.acquire("r", 2000, auto_extend=True) as lease:
        wait_until(lambda: dlm.stats().extended > 1)
        lease.ensure()


def made(directory):
    directory.mkdir()
    return directory


def locked(dlm):
    lock = dlm.lock("r", TTL)
    assert lock
    return lock


def test_what_cannot_be_used_is_refused_at_once(tmp_path):
    nothing = str(written(tmp_path / "nothing.pem", "nothing"))
    for name in ("ssl_ca_certs", "ssl_certfile"):
        with pytest.raises(Warning, match="expected well-formed PEM certificates"):
            Redlock([{"host": "h", "ssl": True, name: nothing}])
    with pytest.raises(Warning, match="PEM or DER"):
        Redlock([{"host": "h", "ssl": True, "ssl_ca_data": b"nothing"}])
