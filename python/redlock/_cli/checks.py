"""The doctor's judgement: from facts to findings. Nothing is asked here."""

from __future__ import annotations

import statistics
from collections import defaultdict
from datetime import date
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

from redlock._cli.durations import shown
from redlock._cli.facts import RELEASING, percentile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal

    from redlock._cli.facts import Facts

    Level = Literal["ok", "unknown", "warning", "wrong"]

# What a round waits for a master that keeps silent; see docs/design.md.
PATIENCE_MS = 500
CLOCK_WARNING_MS, CLOCK_WRONG_MS = 1_000, 60_000  # fencing tokens bear less than a minute
# The last day with fixes. Redis: https://endoflife.date/redis; Valkey: three years from the first release of a minor
# version (https://valkey.io/topics/releases). Versions that are not listed: those before are over, those after not.
END_OF_LIFE = {
    "Redis": {
        "6.2": date(2025, 2, 28),
        "7.0": date(2024, 7, 29),
        "7.2": date(2026, 2, 28),
        "7.4": date(2026, 11, 30),
    },
    "Valkey": {
        "7.2": date(2027, 4, 16),
        "8.0": date(2027, 9, 15),
        "8.1": date(2028, 3, 31),
        "9.0": date(2028, 10, 21),
    },
}


class Finding(NamedTuple):
    """Something the doctor has to say.

    Attributes:
        check: which check found it; what `--ignore` takes.
        level: how bad it is.
        master: whose it is; ``None`` if it is about all.
        what: it is.
        why: that matters.
        remedy: what to do.
    """

    check: str
    level: Level
    master: str | None
    what: str
    why: str = ""
    remedy: str = ""


class Case(NamedTuple):
    """What is judged."""

    masters: Sequence[Facts]
    ttl_ms: int
    today: date

    @property
    def asked(self) -> list[Facts]:
        """The masters that could be asked."""
        return [each for each in self.masters if each.error is None]


class Check(NamedTuple):
    """One question to the facts.

    Attributes:
        title: what is so if it finds nothing.
        find: what it finds.
        needs: of each master: nothing but its URL, that it answers, or its INFO.
    """

    title: str
    find: Callable[[Case], Iterator[Finding]]
    needs: Literal["url", "answer", "info"] = "answer"


def judge(masters: Sequence[Facts], options: argparse.Namespace) -> list[Finding]:
    """All findings, the worst first; one that says so for each check that found nothing."""
    case = Case(masters, options.ttl, date.today())  # noqa: DTZ011 - of where the command runs
    findings = []
    for name, check in CHECKS.items():
        if name not in options.ignore and (case.asked or check.needs == "url"):
            findings += _findings(name, check, case)
    order: list[Level] = ["wrong", "warning", "unknown", "ok"]
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _findings(name: str, check: Check, case: Case) -> list[Finding]:
    blind = [each for each in case.asked if check.needs == "info" and each.info is None]
    found = [*check.find(case), *(_unknown(name, each, "INFO is not allowed") for each in blind)]
    return found or [Finding(name, "ok", None, check.title)]


def _reachable(case: Case) -> Iterator[Finding]:
    for each in case.masters:
        if each.error is not None:
            yield Finding(
                "reach",
                "wrong",
                each.name,
                f"cannot be asked: {each.error}",
                "a master that does not answer has no vote; the others must agree the more",
                "start it, open the network to it, or correct its URL and login",
            )


def _count(case: Case) -> Iterator[Finding]:
    count = len(case.masters)
    why = f"a quorum is {count // 2 + 1} of {count}: {(count - 1) // 2} may fail"
    if count < 3:  # noqa: PLR2004
        yield Finding("count", "warning", None, f"{count} of at least 3 masters", why, "use 3 or 5 masters")
    elif count % 2 == 0:
        yield Finding(
            "count",
            "warning",
            None,
            f"an even number of masters: {count}",
            f"{why}, as of {count - 1}; and two contenders can get one half each",
            f"use {count - 1} or {count + 1}, changing one at a time",
        )


def _distinct(case: Case) -> Iterator[Finding]:
    by_run: dict[str, list[str]] = defaultdict(list)
    for each in case.asked:
        run = (each.info or {}).get("run_id")
        if run:
            by_run[str(run)].append(each.name)
    for names in by_run.values():
        if len(names) > 1:
            yield Finding(
                "same-server",
                "wrong",
                None,
                f"one server under {len(names)} names: {', '.join(names)}",
                "it has several votes: less than a majority of servers can grant a lock",
                "list each server once, with one database",
            )


def _machines(case: Case) -> Iterator[Finding]:
    by_host: dict[str, list[str]] = defaultdict(list)
    for each in case.masters:
        by_host["unix domain sockets" if each.host is None else each.host].append(each.name)
    for host, names in by_host.items():
        if len(names) > 1 and not all(each.by_sentinels for each in case.masters if each.name in names):
            yield Finding(
                "same-machine",
                "warning",
                None,
                f"{len(names)} masters on one machine: {host}",
                "they fail together",
                "put each master on a machine, rack or zone of its own",
            )


def _role(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        if (each.info or {}).get("role") == "slave":
            yield Finding(
                "role",
                "wrong",
                each.name,
                "is a replica",
                "it gives no vote while it is read-only; writable, it would forget locks at the next resynchronization",
                "list its master, or make it one: REPLICAOF NO ONE",
            )


def _failover(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        info = each.info or {}
        replicas, cluster = int(info.get("connected_slaves", 0)), info.get("redis_mode") == "cluster"
        if not replicas:
            continue
        automatic = cluster or bool(each.sentinels) or each.by_sentinels
        how = "fails over by itself to" if automatic else "has"
        yield Finding(
            "failover",
            "warning",
            each.name,
            f"{how} {replicas} replica{'s' if replicas > 1 else ''}",
            "replication is asynchronous: a replica that is promoted may not have the lock, and grants it again",
            "do without replicas: other masters are the redundancy" + ("; turn the failover off" if automatic else ""),
        )


def _eviction(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        info = each.info or {}
        limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "noeviction"))
        if limit and policy != "noeviction":
            yield Finding(
                "eviction",
                "wrong",
                each.name,
                f"evicts keys when its memory is full: {policy}",
                "a lock is a key with an end to its life, like those that are evicted: it is granted again",
                "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
            )
        elif limit and int(info.get("used_memory", 0)) > limit * 0.9:
            yield Finding(
                "eviction",
                "warning",
                each.name,
                "its memory is nearly full",
                "when it is full, it grants no locks",
                "raise maxmemory, or move what else it holds",
            )


def _persistence(case: Case) -> Iterator[Finding]:
    otherwise = "or restart_guard=True in all clients"
    for each in case.asked:
        if each.info is None:
            continue
        if not int(each.info.get("aof_enabled", 0)):
            yield Finding(
                "persistence",
                "warning",
                each.name,
                "has no append-only file",
                "a restart forgets locks, or revives old ones from a snapshot, and others are granted them",
                f"appendonly yes and appendfsync always, {otherwise}",
            )
        elif (fsync := (each.config or {}).get("appendfsync")) is None:
            yield _unknown("persistence", each, "CONFIG is not allowed: how often its append-only file is written")
        elif fsync != "always":
            yield Finding(
                "persistence",
                "warning",
                each.name,
                f"writes its append-only file late: appendfsync {fsync}",
                "a power cut forgets the locks of the last seconds, and others are granted them",
                f"appendfsync always, {otherwise}",
            )


def _clocks(case: Case) -> Iterator[Finding]:
    told = [each for each in case.asked if each.offset_ms is not None]
    offsets = [(each.name, each.offset_ms or 0.0, each.offset_error_ms) for each in told]
    clocks = [("this machine", 0.0, 0.0), *offsets]
    middle = statistics.median(offset for _, offset, _ in clocks)
    for name, offset, error in clocks if offsets else []:
        off = abs(offset - middle) - error
        if off > CLOCK_WARNING_MS:
            yield Finding(
                "clock",
                "wrong" if off > CLOCK_WRONG_MS else "warning",
                name,
                f"its clock is {shown(abs(offset - middle))} {'ahead' if offset > middle else 'behind'}",
                "locks end by each master's own clock: when it is set right, by a step, they end early or late",
                "run an NTP client there that slews; clock_guard=True ignores masters whose clocks jump",
            )
    for each in case.asked:
        if each.offset_ms is None:
            yield _unknown("clock", each, "TIME is not allowed")


def _latency(case: Case) -> Iterator[Finding]:
    patience = min(case.ttl_ms / 2, PATIENCE_MS)
    for each in case.asked:
        p99 = percentile(each.round_trips_ms, 99)
        if p99 is None:
            yield _unknown("latency", each, "GET is not allowed")
        elif p99 > patience / 5:
            yield Finding(
                "latency",
                "wrong" if p99 > patience else "warning",
                each.name,
                f"is slow: p50 {shown(percentile(each.round_trips_ms, 50))}, p99 {shown(p99)}",
                f"a round waits {shown(patience)} for a master, for a TTL of {shown(case.ttl_ms)}; what it waits is "
                "lost from the validity",
                "put it nearer, look into its SLOWLOG, or use a longer TTL",
            )


class Right(NamedTuple):
    """What becomes of locks without one command; most are needed only where a script does the work."""

    why: str
    level: Level = "warning"
    by_script: bool = True


_RIGHTS = {
    "get": Right("a release by script fails", "wrong"),
    "del": Right("a release by script fails", "wrong"),
    "pexpire": Right("locks cannot be extended"),
    "evalsha": Right("each release sends its script"),
    "pttl": Right("who waits for a lock does not know how long to wait, and asks more often", by_script=False),
    "client|tracking": Right("who waits for a lock is not told that it is free, and asks more often", by_script=False),
}


def _rights(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        if each.denied is not None:
            for command, why, level in _missing(each, each.denied):
                remedy = (
                    "ACL SETUSER: +set +get +del +eval +evalsha +pexpire +pttl +client|tracking, on the locks' names"
                )
                yield Finding("rights", level, each.name, f"may not call {command}", why, remedy)
        elif each.trial != {}:
            yield _unknown("rights", each, "ACL DRYRUN is not allowed, or not there before Redis 7")


def _missing(each: Facts, denied: set[str]) -> Iterator[tuple[str, str, Level]]:
    ways = [way for way in RELEASING if way in (each.commands or RELEASING) and way not in denied]
    if "set" in denied:
        yield "SET", "it grants no locks", "wrong"
    if not ways:
        yield "any command that releases", "what is locked there could never be released: it grants nothing", "wrong"
    for command, right in _RIGHTS.items():
        if command in denied and not (right.by_script and ways[:1] != ["eval"]):
            yield command.upper().replace("|", " "), right.why, right.level


def _commands(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        if each.commands is None:
            if each.trial is None or not {"lock", "release"}.isdisjoint(each.trial):
                yield _unknown("commands", each, "COMMAND INFO is not allowed")
        elif not each.commands.intersection(RELEASING):
            yield Finding(
                "commands",
                "wrong",
                each.name,
                "has none of DELIFEQ, DELEX and EVAL",
                "what is locked there could never be released: such a master is not asked",
                "undo its rename-command, or use another server",
            )


_WHY_TRIED = {
    "lock": "it grants no locks",
    "extend": "leases cannot be kept: they end with the TTL",
    "inspect": "`status` and `locked` cannot tell",
    "release": "what is locked stays so until it ends",
}


def _trial(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        for step, said in (each.trial or {}).items():
            yield Finding(
                "trial",
                "wrong" if step in ("lock", "release") else "warning",
                each.name,
                f"{step} failed: {said}",
                _WHY_TRIED[step],
                "give the user the rights; --name, if they are for certain names only",
            )


def _versions(case: Case) -> Iterator[Finding]:
    for each in case.asked:
        if each.server is None:
            continue
        product, version = each.server
        end = end_of_life(product, version)
        if end is not None and end < case.today:
            yield Finding(
                "version",
                "warning",
                each.name,
                f"{product} {version} has no more fixes" + (f" since {end}" if end > date.min else ""),
                "its bugs and security holes stay",
                "upgrade; one master at a time, and each only after the longest TTL",
            )


def end_of_life(product: str, version: str) -> date | None:
    """The last day with fixes; ``None`` if that is not known, ``date.min`` if it is long ago."""
    known = END_OF_LIFE[product]
    release = ".".join(version.split(".")[:2])
    if release in known:
        return known[release]
    try:
        return date.min if _number(release) < min(map(_number, known)) else None
    except ValueError:
        return None


def _number(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def _encryption(case: Case) -> Iterator[Finding]:
    for each in case.masters:
        if each.tls is False:
            yield Finding(
                "tls",
                "wrong",
                each.name,
                "its certificate is not verified",
                "who is on the way can pretend to be it, and gets the password",
                "leave out ssl_cert_reqs and ssl_check_hostname; give your authority as ssl_ca_certs",
            )
        elif each.tls is None and each.is_remote:
            what = "the password goes there in the clear" if each.login else "no encryption, and no password"
            why = "who is on the way reads it" if each.login else "whoever reaches it can take and release every lock"
            yield Finding("tls", "warning", each.name, what, why, "rediss://, and a user of its own")


def _installed(_case: Case) -> Iterator[Finding]:
    for other in ("redlock-py", "redlock"):
        try:
            version = metadata.version(other)
        except metadata.PackageNotFoundError:
            continue
        yield Finding(
            "installed",
            "wrong",
            None,
            f"{other} {version} is installed, too",
            "both have a package `redlock`: files of either overwrite the other's",
            f"pip uninstall {other} redlock-rs; pip install redlock-rs",
        )


def _unknown(check: str, each: Facts, what: str) -> Finding:
    return Finding(
        check,
        "unknown",
        each.name,
        f"could not be checked: {what}",
        "",
        f"ask as a user that may, or look yourself and --ignore {check}",
    )


CHECKS = {
    "reach": Check("all masters answer", _reachable, "url"),
    "count": Check("a good number of masters", _count, "url"),
    "same-server": Check("all are different servers", _distinct, "info"),
    "same-machine": Check("all are on different machines", _machines, "url"),
    "role": Check("all are masters", _role, "info"),
    "failover": Check("no replica is promoted without its locks", _failover, "info"),
    "eviction": Check("no lock is evicted", _eviction, "info"),
    "persistence": Check("no restart forgets a lock", _persistence, "info"),
    "clock": Check("the clocks agree", _clocks),
    "latency": Check("all are quick enough", _latency),
    "rights": Check("the user may do all that locks need", _rights),
    "commands": Check("each can release what it locks", _commands),
    "trial": Check("a lock was taken, extended and released on each", _trial),
    "version": Check("all versions are maintained", _versions, "info"),
    "tls": Check("no password is in the clear", _encryption, "url"),
    "installed": Check("nothing else is called redlock here", _installed, "url"),
}
