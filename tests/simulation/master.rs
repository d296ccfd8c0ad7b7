//! A simulated Redis or Valkey: just the commands the engine uses.

use std::collections::BTreeMap;

use redlock::script::{UNLOCK, UnlockScript};

use super::fencing::Script;
use super::resp::{Protocol, Request, bulk, integer};
use super::time::{Clock, MS, Nanos, SECOND};

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
    Got { value: Option<Vec<u8>> },
    /// A release with this key: whether it was there and is gone.
    Released { key: Vec<u8>, gone: bool },
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
    index: usize,
    starts: usize,
    started_at: Nanos,
    hash: Vec<u8>,
    store: BTreeMap<Vec<u8>, Stored>,
    /// What is cached, by its hash; none for the release.
    scripts: BTreeMap<Vec<u8>, Option<Script>>,
}

impl Master {
    pub fn new(index: usize, kind: Kind, clock: Clock) -> Self {
        let hash = hash_of(UNLOCK.as_bytes());
        assert_eq!(UnlockScript::default(), UnlockScript::new(UNLOCK));
        let (store, scripts) = (BTreeMap::new(), BTreeMap::new());
        Self {
            kind,
            clock,
            loading: false,
            out_of_memory: false,
            index,
            starts: 0,
            started_at: 0,
            hash,
            store,
            scripts,
        }
    }

    /// The key a resource is held with, if it is.
    pub fn holder(&self, resource: &[u8]) -> Option<&[u8]> {
        let stored = self.store.get(resource)?;
        (self.now_ms() < stored.expires_at_ms).then_some(&*stored.key)
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

    fn now_ms(&self) -> u64 {
        self.clock.shown() / MS
    }

    /// Carry out one command: its reply, and what it did.
    pub fn execute(&mut self, request: &Request, protocol: &mut Protocol) -> (Vec<u8>, Did) {
        let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        if self.loading && !matches!(words[0], b"HELLO" | b"SELECT" | b"CLIENT" | b"INFO") {
            return (b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(), Did::Refused);
        }
        match *words.as_slice() {
            [b"HELLO", ..] if self.kind == Kind::Redis5 => unknown("HELLO"),
            [b"HELLO", ref rest @ ..] => (self.hello(rest, protocol), Did::Other),
            [b"INFO", b"server"] => (protocol.text(&self.info_server()), Did::Other),
            [b"INFO", b"persistence"] => (protocol.text("# Persistence\r\naof_enabled:0\r\n"), Did::Other),
            [b"CONFIG", b"GET", b"appendfsync"] => (protocol.map(&[("appendfsync", "everysec")]), Did::Other),
            [b"SELECT" | b"CLIENT", ..] => (b"+OK\r\n".to_vec(), Did::Other),
            [b"SET", resource, key, b"NX", b"PX", ttl_ms] => self.set(resource, key, number(ttl_ms), *protocol),
            [b"TIME"] => (self.time(), Did::Other),
            [b"PTTL", resource] => (self.pttl(resource), Did::Other),
            [b"GET", resource] => self.get(resource, *protocol),
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
            return (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_vec(), Did::Refused);
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
    }

    fn get(&self, resource: &[u8], protocol: Protocol) -> (Vec<u8>, Did) {
        let value = self.holder(resource).map(<[u8]>::to_vec);
        (value.as_deref().map_or_else(|| protocol.nil(), bulk), Did::Got { value })
    }

    fn time(&self) -> Vec<u8> {
        let (seconds, micros) = (self.clock.shown() / (1000 * MS), self.clock.shown() / 1000 % 1_000_000);
        [b"*2\r\n".to_vec(), bulk(seconds.to_string().as_bytes()), bulk(micros.to_string().as_bytes())].concat()
    }

    fn pttl(&self, resource: &[u8]) -> Vec<u8> {
        let Some(stored) = self.store.get(resource).filter(|stored| self.now_ms() < stored.expires_at_ms) else {
            return b":-2\r\n".to_vec();
        };
        integer((stored.expires_at_ms - self.now_ms()).cast_signed())
    }

    /// A release that does not compare: the planted bug's.
    fn delete(&mut self, resource: &[u8], key: &[u8]) -> (Vec<u8>, Did) {
        let gone = self.holder(resource) == Some(key);
        let reply = integer(self.store.remove(resource).is_some().into());
        (reply, Did::Released { key: key.to_vec(), gone })
    }

    fn release(&mut self, resource: &[u8], key: &[u8]) -> (Vec<u8>, Did) {
        let gone = self.holder(resource) == Some(key);
        if gone {
            self.store.remove(resource);
        }
        (integer(gone.into()), Did::Released { key: key.to_vec(), gone })
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
