//! A simulated Redis or Valkey: just the commands the engine uses.

use std::collections::{BTreeMap, BTreeSet};

use redlock::script::{EXTEND, PROLONG, UNLOCK, UnlockScript};

use super::fencing::Script;
use super::resp::{Protocol, Request, bulk, integer};
use super::time::{Clock, MS, Nanos, SECOND};

const OOM: &[u8] = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n";
const NOPERM: &[u8] = b"-NOPERM User caller has no permissions to run the 'client|tracking' command\r\n";

/// The planted bug's extension: it does not compare.
const REVIVE: &[u8] = b"redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) return ARGV[1]";

/// What kind of server it is: that decides how a lock is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Knows no `HELLO`, only RESP2.
    Redis5,
    /// `EVALSHA`.
    Redis7,
    /// `DELEX … IFEQ`.
    Redis8,
    /// `DELIFEQ`.
    Valkey9,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Redis5, Self::Redis7, Self::Redis8, Self::Valkey9];

    const fn name_and_version(self) -> (&'static str, &'static str) {
        match self {
            Self::Redis5 => ("redis", "5.0.14"),
            Self::Redis7 => ("redis", "7.2.4"),
            Self::Redis8 => ("redis", "8.4.0"),
            Self::Valkey9 => ("valkey", "9.0.1"),
        }
    }
}

/// What a command did, for the one who watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Did {
    /// `SET NX`, or the script that does it with a token: whether the key was set, and for how many milliseconds.
    Set { resource: Vec<u8>, key: Vec<u8>, granted: bool, ttl_ms: u64 },
    /// `GET`: the value there was.
    Got { resource: Vec<u8>, value: Option<Vec<u8>> },
    /// An extension with this key: what was found, and for how many milliseconds it is kept if that was it.
    Extended { resource: Vec<u8>, key: Vec<u8>, found: Option<Vec<u8>>, ttl_ms: u64 },
    /// A release with this key: whether it was there and is gone.
    Released { resource: Vec<u8>, key: Vec<u8>, gone: bool },
    /// Refused with an error.
    Refused,
    /// Nothing that matters to a lock.
    Other,
}

struct Stored {
    key: Vec<u8>,
    expires_at_ms: u64,
}

/// How long masters have been there when the world begins.
const LONG: Nanos = 1_000_000 * SECOND;

/// One master's data and manners. Whether it runs at all is the world's business.
pub struct Master {
    pub kind: Kind,
    pub clock: Clock,
    pub loading: bool,
    pub out_of_memory: bool,
    /// Whether it pushes to those who ask for it.
    pub tracks: bool,
    index: usize,
    starts: usize,
    started_at: Nanos,
    hash: Vec<u8>,
    store: BTreeMap<Vec<u8>, Stored>,
    /// What is cached, by its hash; none for the release.
    scripts: BTreeMap<Vec<u8>, Option<Script>>,
    changed: BTreeSet<Vec<u8>>,
}

impl Master {
    pub fn new(index: usize, kind: Kind, clock: Clock) -> Self {
        let hash = hash_of(UNLOCK.as_bytes());
        assert_eq!(UnlockScript::default(), UnlockScript::new(UNLOCK));
        let (store, scripts, changed) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let (loading, out_of_memory, tracks) = (false, false, true);
        let (starts, started_at) = (0, 0);
        Self { kind, clock, loading, out_of_memory, tracks, index, starts, started_at, hash, store, scripts, changed }
    }

    /// The key a resource is held with, if it is.
    pub fn holder(&self, resource: &[u8]) -> Option<&[u8]> {
        let stored = self.store.get(resource)?;
        (self.now_ms() < stored.expires_at_ms).then_some(&*stored.key)
    }

    /// How long a resource is held from now on, in milliseconds, if it is.
    pub fn left(&self, resource: &[u8]) -> Option<u64> {
        self.store.get(resource)?.expires_at_ms.checked_sub(self.now_ms()).filter(|&left| left > 0)
    }

    /// Start anew.
    pub fn restart(&mut self) {
        self.starts += 1;
        self.started_at = self.clock.shown();
    }

    fn uptime(&self) -> Nanos {
        let before = if self.starts == 0 { LONG } else { 0 };
        before + self.clock.shown().saturating_sub(self.started_at)
    }

    fn info_server(&self) -> String {
        let (run, uptime) = (format!("{}-{}", self.index, self.starts), self.uptime() / SECOND);
        format!("# Server\r\nrun_id:{run}\r\nuptime_in_seconds:{uptime}\r\n")
    }

    /// Lose all data, as a master without AOF does when it dies.
    pub fn forget(&mut self) {
        self.store.clear();
    }

    /// Lose the scripts, as every master does when it dies.
    pub fn flush_scripts(&mut self) {
        self.scripts.clear();
    }

    /// The names whose value or time to live was changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut self.changed)
    }

    /// `DEL`.
    pub fn delete_key(&mut self, name: &[u8]) -> bool {
        let removed = self.store.remove(name).is_some();
        if removed {
            self.changed.insert(name.to_vec());
        }
        removed
    }

    /// Delete a key that has expired: servers do so when they come across it.
    pub fn reap(&mut self, resource: &[u8]) {
        let has_expired = |stored: &Stored| stored.expires_at_ms <= self.now_ms();
        if self.store.get(resource).is_some_and(has_expired) {
            self.store.remove(resource);
            self.changed.insert(resource.to_vec());
        }
    }

    /// Until when a resource is held, in true time.
    pub fn held_until(&self, resource: &[u8]) -> Option<Nanos> {
        let expires_at = self.store.get(resource)?.expires_at_ms.checked_mul(MS)?;
        Some(self.clock.when_shown(expires_at))
    }

    fn now_ms(&self) -> u64 {
        self.clock.shown() / MS
    }

    /// Carry out one command: its reply, and what it did.
    pub fn execute(&mut self, request: &Request, protocol: &mut Protocol) -> (Vec<u8>, Did) {
        let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        if self.loading && !matches!(words[0], b"HELLO" | b"SELECT" | b"CLIENT" | b"INFO") {
            return (b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(), Did::Refused);
        }
        for word in &words {
            self.reap(word);
        }
        match *words.as_slice() {
            [b"CLIENT", b"TRACKING", ..] if !self.tracks => (NOPERM.to_vec(), Did::Refused),
            [b"HELLO", ..] if self.kind == Kind::Redis5 => unknown("HELLO"),
            [b"HELLO", ref rest @ ..] => (self.hello(rest, protocol), Did::Other),
            [b"INFO", b"server"] => (protocol.text(&self.info_server()), Did::Other),
            [b"INFO", b"persistence"] => (protocol.text("# Persistence\r\naof_enabled:0\r\n"), Did::Other),
            [b"CONFIG", b"GET", b"appendfsync"] => (protocol.map(&[("appendfsync", "everysec")]), Did::Other),
            [b"SELECT" | b"CLIENT", ..] => (b"+OK\r\n".to_vec(), Did::Other),
            [b"SET", resource, key, b"NX", b"PX", ttl_ms] => self.set(resource, key, number(ttl_ms), *protocol),
            [b"PING"] => (b"+PONG\r\n".to_vec(), Did::Other),
            [b"TIME"] => (self.time(), Did::Other),
            [b"PTTL", resource] => (self.pttl(resource), Did::Other),
            [b"GET", resource] => self.get(resource, *protocol),
            [b"SET", resource, key, b"IFEQ", _, b"GET", b"PX", ttl_ms]
                if matches!(self.kind, Kind::Redis8 | Kind::Valkey9) =>
            {
                if self.out_of_memory {
                    return (OOM.to_vec(), Did::Refused);
                }
                self.extend(resource, key, number(ttl_ms), *protocol)
            }
            [b"EVAL", text, b"1", resource, key, ttl_ms] if text == PROLONG.as_bytes() => {
                if self.holder(resource) == Some(key) && self.left(resource) >= Some(number(ttl_ms)) {
                    self.get(resource, *protocol)
                } else {
                    self.extend(resource, key, number(ttl_ms), *protocol)
                }
            }
            [b"EVAL", text, b"1", resource, key, ttl_ms] => {
                if text == REVIVE {
                    self.store(resource, key, number(ttl_ms));
                }
                assert!(text == EXTEND.as_bytes() || text == REVIVE, "a script this server has not learnt");
                self.extend(resource, key, number(ttl_ms), *protocol)
            }
            [b"DELIFEQ", resource, key] if self.kind == Kind::Valkey9 => self.release(resource, key),
            [b"DELEX", resource, b"IFEQ", key] if self.kind == Kind::Redis8 => self.release(resource, key),
            [b"EVAL", b"return 1", b"0"] => (integer(1), Did::Other),
            [b"EVAL", text, b"1", resource, key] => {
                if text == b"return redis.call('del', KEYS[1])" {
                    return self.delete(resource, key);
                }
                assert_eq!(text, UNLOCK.as_bytes(), "a script this server has not learnt");
                self.scripts.insert(self.hash.clone(), None);
                self.release(resource, key)
            }
            [b"EVAL", text, b"2", ref words @ ..] => {
                let (hash, script) = (hash_of(text), Script::of(text));
                self.scripts.insert(hash, Some(script));
                self.fence(script, words)
            }
            [b"EVALSHA", hash, b"2", ref words @ ..] if let Some(&Some(script)) = self.scripts.get(hash) => {
                self.fence(script, words)
            }
            [b"EVALSHA", hash, b"1", resource, key] if self.scripts.contains_key(hash) => self.release(resource, key),
            [b"EVALSHA", ..] => (b"-NOSCRIPT No matching script. Please use EVAL.\r\n".to_vec(), Did::Refused),
            _ => panic!("a command this server has not learnt: {}", words.concat().escape_ascii()),
        }
    }

    fn hello(&self, rest: &[&[u8]], protocol: &mut Protocol) -> Vec<u8> {
        match rest.first().copied() {
            Some(b"3") => *protocol = Protocol::Resp3,
            Some(b"2") => *protocol = Protocol::Resp2,
            _ => {}
        }
        let (server, version) = self.kind.name_and_version();
        protocol.map(&[("server", server), ("version", version), ("mode", "standalone"), ("role", "master")])
    }

    fn set(&mut self, resource: &[u8], key: &[u8], ttl_ms: u64, protocol: Protocol) -> (Vec<u8>, Did) {
        if self.out_of_memory {
            return (OOM.to_vec(), Did::Refused);
        }
        let granted = self.holder(resource).is_none();
        let (resource, key) = (resource.to_vec(), key.to_vec());
        if granted {
            self.store(&resource, &key, ttl_ms);
        }
        let reply = if granted { b"+OK\r\n".to_vec() } else { protocol.nil() };
        (reply, Did::Set { resource, key, granted, ttl_ms })
    }

    /// `SET PX`.
    pub fn store(&mut self, name: &[u8], value: &[u8], ttl_ms: u64) {
        let expires_at_ms = self.now_ms() + ttl_ms;
        self.store.insert(name.to_vec(), Stored { key: value.to_vec(), expires_at_ms });
        self.changed.insert(name.to_vec());
    }

    fn extend(&mut self, resource: &[u8], key: &[u8], ttl_ms: u64, protocol: Protocol) -> (Vec<u8>, Did) {
        let found = self.holder(resource).map(<[u8]>::to_vec);
        if found.as_deref() == Some(key) {
            self.store(resource, key, ttl_ms);
        }
        let reply = found.as_deref().map_or_else(|| protocol.nil(), bulk);
        (reply, Did::Extended { resource: resource.to_vec(), key: key.to_vec(), found, ttl_ms })
    }

    fn get(&self, resource: &[u8], protocol: Protocol) -> (Vec<u8>, Did) {
        let value = self.holder(resource).map(<[u8]>::to_vec);
        (value.as_deref().map_or_else(|| protocol.nil(), bulk), Did::Got { resource: resource.to_vec(), value })
    }

    fn time(&self) -> Vec<u8> {
        let (seconds, micros) = (self.clock.shown() / (1000 * MS), self.clock.shown() / 1000 % 1_000_000);
        [b"*2\r\n".to_vec(), bulk(seconds.to_string().as_bytes()), bulk(micros.to_string().as_bytes())].concat()
    }

    fn pttl(&self, resource: &[u8]) -> Vec<u8> {
        self.left(resource).map_or_else(|| b":-2\r\n".to_vec(), |left| integer(left.cast_signed()))
    }

    /// A release that does not compare: the planted bug's.
    fn delete(&mut self, resource: &[u8], key: &[u8]) -> (Vec<u8>, Did) {
        let gone = self.holder(resource) == Some(key);
        let removed = self.delete_key(resource);
        (integer(removed.into()), Did::Released { resource: resource.to_vec(), key: key.to_vec(), gone })
    }

    fn release(&mut self, resource: &[u8], key: &[u8]) -> (Vec<u8>, Did) {
        let gone = self.holder(resource) == Some(key);
        if gone {
            self.store.remove(resource);
            self.changed.insert(resource.to_vec());
        }
        (integer(gone.into()), Did::Released { resource: resource.to_vec(), key: key.to_vec(), gone })
    }
}

fn hash_of(text: &[u8]) -> Vec<u8> {
    redis::Script::new(std::str::from_utf8(text).unwrap()).get_hash().as_bytes().to_vec()
}

fn number(word: &[u8]) -> u64 {
    std::str::from_utf8(word).unwrap().parse().unwrap()
}

fn unknown(command: &str) -> (Vec<u8>, Did) {
    (format!("-ERR unknown command `{command}`, with args beginning with: \r\n").into_bytes(), Did::Refused)
}
