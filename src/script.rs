//! The commands and Lua scripts sent to a master, and what their replies mean.
//!
//! Only an exact `OK`, or a script's own answer, is ever a vote.

use std::time::Duration;

use redis::{Cmd, ServerError, Value, cmd};

use crate::claim::Claim;
use crate::error::Error;

/// The release script, letter for letter redlock-py's, so that both share one entry in the servers' script caches.
///
/// - `KEYS[1]`: the resource
/// - `ARGV[1]`: the key the caller believes to hold
/// - returns 1 if it was deleted, 0 if it was not there or not ours
pub const UNLOCK: &str = r#"
    if redis.call("get",KEYS[1]) == ARGV[1] then
        return redis.call("del",KEYS[1])
    else
        return 0
    end"#;

/// The script that extends: sets a TTL anew, and never a key.
///
/// - `KEYS[1]`: the resource
/// - `ARGV[1]`: the key the caller believes to hold
/// - `ARGV[2]`: the new TTL in milliseconds
/// - returns the key that was found, nil if there was none
pub const EXTEND: &str = r#"
    local found = redis.call("get",KEYS[1])
    if found == ARGV[1] then
        redis.call("pexpire",KEYS[1],ARGV[2])
    end
    return found"#;

/// The script for a master that may have the lock already: it never shortens a TTL, for an extension over another
/// connection may have been there first.
///
/// - `KEYS[1]`, `ARGV[1]`, `ARGV[2]`, what it returns: as [`EXTEND`]'s
pub const PROLONG: &str = r#"
    local found = redis.call("get",KEYS[1])
    if found == ARGV[1] and redis.call("pttl",KEYS[1]) < tonumber(ARGV[2]) then
        redis.call("pexpire",KEYS[1],ARGV[2])
    end
    return found"#;

/// A master's answer to `SET NX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// The key was set: one vote.
    Granted,
    /// Somebody holds it.
    Refused,
}

impl From<bool> for Grant {
    fn from(granted: bool) -> Self {
        if granted { Self::Granted } else { Self::Refused }
    }
}

/// A master's answer to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// It was ours and is gone.
    Released,
    /// It was not there, or not ours.
    Absent,
}

/// A master's answer to an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// It was ours, and has its TTL anew.
    Extended,
    /// Somebody else holds it.
    Taken,
    /// Nobody holds it: it expired, or the master has forgotten.
    Absent,
}

/// `SET resource key NX PX ttl`: take the lock on one master. Returns `OK`, or nil where it is held.
#[must_use]
pub fn set(resource: &[u8], key: &[u8], ttl_ms: u64) -> Cmd {
    let mut command = cmd("SET");
    command.arg(resource).arg(key).arg("NX").arg("PX").arg(ttl_ms);
    command
}

/// `PTTL resource`: for how long is it held? Returns milliseconds, -1 for ever, -2 not at all.
#[must_use]
pub fn pttl(resource: &[u8]) -> Cmd {
    cmd("PTTL").arg(resource).take()
}

/// `GET resource`: whose is it?
#[must_use]
pub fn get(resource: &[u8]) -> Cmd {
    let mut command = cmd("GET");
    command.arg(resource);
    command
}

/// [`PROLONG`], in full. Returns what [`extension`] reads.
#[must_use]
pub fn prolong(resource: &[u8], key: &[u8], ttl_ms: u64) -> Cmd {
    cmd("EVAL").arg(PROLONG).arg(1).arg(resource).arg(key).arg(ttl_ms).take()
}

/// The script that releases: redlock-py's own, or the one a caller put in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnlockScript {
    text: String,
    hash: String,
    is_custom: bool,
}

impl UnlockScript {
    /// The script with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text: text.to_owned(), hash, is_custom: text != UNLOCK }
    }

    /// Which replies can be this script's: a caller's own may return anything.
    pub(crate) fn fits(&self) -> fn(&Value) -> bool {
        if self.is_custom { |_| true } else { |reply| matches!(reply, Value::Int(_)) }
    }
}

impl Default for UnlockScript {
    fn default() -> Self {
        Self::new(UNLOCK)
    }
}

/// How one master compares and deletes, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CompareAndDelete {
    /// `DELIFEQ resource key` (Valkey 9.0).
    Delifeq,
    /// `DELEX resource IFEQ key` (Redis 8.4).
    Delex,
    /// `EVALSHA`, the portable way.
    Evalsha,
    /// `EVAL`: where the script is not cached, or may not be called by its hash.
    Eval,
}

impl CompareAndDelete {
    /// The cheapest way a server of this name and version has, by its `HELLO` reply.
    #[must_use]
    pub fn of(server: &str, version: &str) -> Self {
        let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        match server {
            "valkey" if version >= (9, 0) => Self::Delifeq,
            "redis" if version >= (8, 4) => Self::Delex,
            _ => Self::Evalsha,
        }
    }

    /// The way stored as `way as u8`.
    #[must_use]
    pub const fn from_u8(way: u8) -> Self {
        match way {
            0 => Self::Delifeq,
            1 => Self::Delex,
            2 => Self::Evalsha,
            _ => Self::Eval,
        }
    }

    /// This way, unless the caller brought a script of its own.
    #[must_use]
    pub fn for_script(self, script: &UnlockScript) -> Self {
        if script.is_custom && self != Self::Eval { Self::Evalsha } else { self }
    }

    /// The next to try when the server refuses this one with `error`, if that says nothing about the lock itself.
    #[must_use]
    pub fn fallback(self, error: &ServerError) -> Option<Self> {
        let is_refused = matches!(error.code(), "NOPERM" | "NOSCRIPT") || is_unknown_command(error);
        match self {
            Self::Delifeq | Self::Delex if is_refused => Some(Self::Evalsha),
            Self::Evalsha if is_refused => Some(Self::Eval),
            _ => None,
        }
    }

    /// The command that releases `resource` of `claim`. Returns 1 or 0, as [`UNLOCK`] does.
    #[must_use]
    pub fn release(self, claim: &Claim, resource: &[u8]) -> Cmd {
        let Claim { key, script, .. } = claim;
        match self {
            Self::Delifeq => cmd("DELIFEQ").arg(resource).arg(key).take(),
            Self::Delex => cmd("DELEX").arg(resource).arg("IFEQ").arg(key).take(),
            Self::Evalsha => cmd("EVALSHA").arg(&script.hash).arg(1).arg(resource).arg(key).take(),
            Self::Eval => cmd("EVAL").arg(&script.text).arg(1).arg(resource).arg(key).take(),
        }
    }

    /// The command for when nobody will be there to take a `NOSCRIPT` for an answer.
    #[must_use]
    pub fn release_in_full(self, claim: &Claim, resource: &[u8]) -> Cmd {
        let way = self.for_script(&claim.script);
        if way == Self::Evalsha { Self::Eval.release(claim, resource) } else { way.release(claim, resource) }
    }

    /// The command that sets the TTL of `resource` anew if it is `key`'s. Returns what [`extension`] reads.
    ///
    /// The servers that compare and delete natively also compare and set, and say what they found.
    #[must_use]
    pub fn extend(self, resource: &[u8], key: &[u8], ttl_ms: u64) -> Cmd {
        match self {
            Self::Delifeq | Self::Delex => {
                cmd("SET").arg(resource).arg(key).arg("IFEQ").arg(key).arg("GET").arg("PX").arg(ttl_ms).take()
            }
            // In full: a quorum decides, and then nobody may be there to take another master's `NOSCRIPT` for an answer.
            Self::Evalsha | Self::Eval => cmd("EVAL").arg(EXTEND).arg(1).arg(resource).arg(key).arg(ttl_ms).take(),
        }
    }
}

/// Whether the server has no such command, or has it under another name.
#[must_use]
pub fn is_unknown_command(error: &ServerError) -> bool {
    error.details().is_some_and(|details| details.starts_with("unknown command"))
}

/// Whether a reply can be one to [`set`].
#[must_use]
pub fn is_grant(reply: &Value) -> bool {
    matches!(reply, Value::Okay | Value::Nil)
}

/// What a reply to [`set`] is worth.
pub fn grant(reply: Value) -> Result<Grant, Error> {
    match reply.extract_error()? {
        Value::Okay => Ok(Grant::Granted),
        Value::Nil => Ok(Grant::Refused),
        other => Err(unexpected("SET", &other)),
    }
}

/// What a reply to a release is worth.
pub fn release(reply: Value) -> Result<Release, Error> {
    match reply.extract_error()? {
        Value::Int(1) => Ok(Release::Released),
        // redlock-py's callers may replace the script by one that returns nothing.
        Value::Int(_) | Value::Nil => Ok(Release::Absent),
        other => Err(unexpected("release", &other)),
    }
}

/// How long after a reply to [`pttl`] a key is gone; `None` if it never expires.
pub fn expiry(reply: Value) -> Result<Option<Duration>, Error> {
    match reply.extract_error()? {
        Value::Int(-2) => Ok(Some(Duration::ZERO)),
        // Its last millisecond is to be over.
        Value::Int(ttl) => Ok(u64::try_from(ttl).ok().map(|ttl| Duration::from_millis(ttl.saturating_add(1)))),
        other => Err(unexpected("PTTL", &other)),
    }
}

/// Whether a reply can be one to an extension.
#[must_use]
pub fn is_extension(reply: &Value) -> bool {
    matches!(reply, Value::BulkString(_) | Value::Nil | Value::Boolean(false))
}

/// What a reply to an extension of `key` is worth.
pub fn extension(reply: Value, key: &[u8]) -> Result<Extension, Error> {
    match reply.extract_error()? {
        Value::BulkString(found) if found == key => Ok(Extension::Extended),
        Value::BulkString(_) => Ok(Extension::Taken),
        // What a script of RESP2 returns for a value that is not there.
        Value::Nil | Value::Boolean(false) => Ok(Extension::Absent),
        other => Err(unexpected("extend", &other)),
    }
}

/// A reply that nobody asked for may hold anything: only its kind is shown.
pub(crate) fn unexpected(command: &str, reply: &Value) -> Error {
    let kind = match reply {
        Value::Int(_) => "an integer",
        Value::SimpleString(_) | Value::BulkString(_) | Value::VerbatimString { .. } => "a string",
        Value::Array(_) | Value::Set(_) | Value::Map(_) => "a collection",
        _ => "something else",
    };
    Error::reply(&format_args!("unexpected reply to {command}: {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exact_ok_grants() {
        assert_eq!(grant(Value::Okay).unwrap(), Grant::Granted);
        assert_eq!(grant(Value::Nil).unwrap(), Grant::Refused);
        for other in [
            Value::Int(1),
            Value::SimpleString("QUEUED".into()),
            Value::BulkString(b"OK".to_vec()),
            Value::Boolean(true),
        ] {
            assert!(grant(other).is_err());
        }
    }

    #[test]
    fn a_release_is_an_integer() {
        assert_eq!(release(Value::Int(1)).unwrap(), Release::Released);
        assert_eq!(release(Value::Int(0)).unwrap(), Release::Absent);
        assert!(release(Value::Okay).is_err());
    }

    #[test]
    fn the_commands_are_redlock_pys() {
        let packed = set(b"res", b"key", 1000).get_packed_command();
        assert_eq!(packed, b"*6\r\n$3\r\nSET\r\n$3\r\nres\r\n$3\r\nkey\r\n$2\r\nNX\r\n$2\r\nPX\r\n$4\r\n1000\r\n");
    }

    #[test]
    fn the_cheapest_release_of_each_server() {
        assert_eq!(CompareAndDelete::of("redis", "6.2.14"), CompareAndDelete::Evalsha);
        assert_eq!(CompareAndDelete::of("redis", "8.2.3"), CompareAndDelete::Evalsha);
        assert_eq!(CompareAndDelete::of("redis", "8.4.0"), CompareAndDelete::Delex);
        assert_eq!(CompareAndDelete::of("valkey", "8.1.0"), CompareAndDelete::Evalsha);
        assert_eq!(CompareAndDelete::of("valkey", "9.1.2"), CompareAndDelete::Delifeq);
        assert_eq!(CompareAndDelete::of("dragonfly", "nonsense"), CompareAndDelete::Evalsha);
    }
}
