//! Fencing tokens: what is proposed, the scripts by which a master accepts it, and what their replies mean.
//!
//! Beside each lock, under its own name, lies its *fence*: the greatest token that master has accepted. A token is
//! proposed to all masters together with the lock; each accepts it if it is greater than its fence, and a strict majority
//! that accepts one and the same value makes it the token. Two majorities share a master, and a master accepts ever
//! greater values: so every token is greater than those granted before, whatever the clocks show. They only make it
//! likely that the first proposal is accepted. See `docs/fencing.md`.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, ServerError, Value, cmd};

use crate::error::Error;
use crate::planted::{self, Bug};
use crate::quorum::{Tally, Verdict};
use crate::script::is_unknown_command;

/// How long a fence outlives the last use of its lock, at least: 24 h in milliseconds.
///
/// One that is gone is made up for by the master's clock, so this bounds how far that may be set back.
const LEAST_TTL_MS: u64 = 24 * 60 * 60 * 1000;

/// The longest time to live there is any use for; servers refuse some that are little longer.
const MOST_TTL_MS: u64 = 1 << 60;

/// A script and its hash.
#[derive(Debug)]
struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }
}

/// Takes the lock and accepts the token that is proposed. Its keys, arguments and reply are in the script.
pub const ACQUIRE: &str = concat!(include_str!("fence/common.lua"), include_str!("fence/acquire.lua"));

/// Accepts a second proposal for a lock that is held. Its keys, arguments and reply are in the script.
pub const BUMP: &str = concat!(include_str!("fence/common.lua"), include_str!("fence/bump.lua"));

static ACQUIRE_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(ACQUIRE));
static BUMP_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(BUMP));

/// What to propose: more than any token seen, and no less than the wall clock in microseconds, for then nobody whose
/// clock is right has proposed more before. A clock that is wrong costs a second round, nothing else.
#[must_use]
pub fn propose(highest_seen: u64, since_epoch: Duration) -> u64 {
    let clock = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
    highest_seen.saturating_add(1).max(clock)
}

/// How long the masters keep a fence after its lock was taken for `ttl_ms`.
#[must_use]
pub fn ttl_ms(ttl_ms: u64) -> u64 {
    ttl_ms.saturating_mul(2).clamp(LEAST_TTL_MS, MOST_TTL_MS)
}

/// What one master says in either round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The lock is ours there.
    pub granted: bool,
    /// The proposal is its fence now.
    pub accepted: bool,
    /// The greatest token it has seen: its fence, or what its clock says if it has none.
    pub fence: u64,
}

impl Reply {
    /// What a master says about two locks that are taken together: the worse of each.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            granted: self.granted && other.granted,
            accepted: self.accepted && other.accepted,
            fence: self.fence.max(other.fence),
        }
    }
}

/// How far a proposed token has got with the masters.
#[derive(Debug, Clone, Copy)]
pub struct Ballot {
    token: u64,
    accepted: Tally,
    beaten_by: u64,
    highest_seen: u64,
}

impl Ballot {
    /// A ballot on `token`, which is elected by `quorum` acceptances; the answers of `awaited` masters are waited for.
    #[must_use]
    pub const fn new(token: u64, quorum: usize, awaited: usize) -> Self {
        Self { token, accepted: Tally::new(quorum, awaited), beaten_by: token, highest_seen: token }
    }

    /// Take what a master said, if it was of use. `is_awaited`: it was waited for.
    pub fn take(&mut self, reply: Option<Reply>, is_awaited: bool) {
        if is_awaited {
            self.accepted.close_one();
        }
        let Some(Reply { granted, accepted, fence }) = reply else { return };
        self.highest_seen = self.highest_seen.max(fence);
        if granted {
            self.beaten_by = self.beaten_by.max(fence);
        }
        if accepted {
            self.accepted.grant();
        }
    }

    /// Whether the token is elected.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.accepted.verdict()
    }

    /// The token that is voted on.
    #[must_use]
    pub const fn token(&self) -> u64 {
        self.token
    }

    /// What to propose next to the masters that granted the lock: more than each of them has.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.beaten_by.saturating_add(1)
    }

    /// The greatest token any master has.
    #[must_use]
    pub const fn highest_seen(&self) -> u64 {
        self.highest_seen
    }
}

/// What a reply to one of the scripts is worth.
pub fn reply(reply: Value) -> Result<Reply, Error> {
    match reply {
        Value::ServerError(error) if runs_no_scripts(&error) => {
            Err(Error::Unfenced(Error::from(error).to_string().into()))
        }
        Value::Array(items) => parse(&items).ok_or_else(unexpected),
        Value::ServerError(error) => Err(error.into()),
        _ => Err(unexpected()),
    }
}

fn parse(items: &[Value]) -> Option<Reply> {
    let [Value::Int(granted), Value::Int(accepted), Value::BulkString(fence)] = items else { return None };
    let fence = std::str::from_utf8(fence).ok()?.parse().ok()?;
    Some(Reply { granted: *granted == 1, accepted: *accepted == 1, fence })
}

fn unexpected() -> Error {
    Error::reply(&"unexpected reply to a fencing script")
}

/// Whether the server, as it is configured, will never run the scripts: for want of the command or of the rights, which
/// servers word in three ways.
fn runs_no_scripts(error: &ServerError) -> bool {
    let says = |words| error.details().is_some_and(|details| details.contains(words));
    error.code() == "NOPERM"
        || is_unknown_command(error)
        || says("user executing the script")
        || says("ACL failure in script")
}

/// One call of one of the scripts.
#[derive(Debug)]
pub struct Call<'a> {
    script: &'static Script,
    resource: &'a [u8],
    arguments: Vec<Vec<u8>>,
}

/// How a call is put into words, as a master wants it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Form {
    text: Text,
    /// With the name of the lock as the hash tag of its fence, where a cluster must find both in one slot.
    tagged: bool,
}

/// How a script is named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Text {
    /// In full: it may not be known yet.
    #[default]
    First,
    /// By its hash.
    Hash,
    /// In full, for it may not be called by its hash.
    Always,
}

impl Form {
    /// The form to try next when the server refuses this one with `error`, if that is about the form.
    #[must_use]
    pub fn fallback(self, error: &ServerError) -> Option<Self> {
        match (error.code(), self.text) {
            ("CROSSSLOT", _) if !self.tagged => Some(Self { tagged: true, ..self }),
            ("NOSCRIPT", Text::Hash) => Some(Self { text: Text::First, ..self }),
            (code, Text::Hash) if code == "NOPERM" || is_unknown_command(error) => {
                Some(Self { text: Text::Always, ..self })
            }
            _ => None,
        }
    }

    /// The form for the next call, when this one was understood.
    #[must_use]
    pub fn next(self) -> Self {
        let text = if self.text == Text::Always { Text::Always } else { Text::Hash };
        Self { text, ..self }
    }
}

impl<'a> Call<'a> {
    /// Take `resource` with `key`, and propose a token.
    #[must_use]
    pub fn acquire(resource: &'a [u8], key: &[u8], lock_ttl_ms: u64, proposal: u64) -> Self {
        let arguments = vec![key.to_vec(), decimal(lock_ttl_ms), decimal(proposal), decimal(ttl_ms(lock_ttl_ms))];
        Self { script: &ACQUIRE_SCRIPT, resource, arguments }
    }

    /// Propose a token for `resource`, which is held with `key`.
    #[must_use]
    pub fn bump(resource: &'a [u8], key: &[u8], lock_ttl_ms: u64, token: u64) -> Self {
        let arguments = vec![key.to_vec(), decimal(token), decimal(ttl_ms(lock_ttl_ms))];
        Self { script: &BUMP_SCRIPT, resource, arguments }
    }

    /// The command that makes this call.
    #[must_use]
    pub fn command(&self, form: Form) -> Cmd {
        if planted::is(Bug::AcceptEqual) {
            return self.words("EVAL", &planted::accept_equal(self.script.text), form);
        }
        match form.text {
            Text::Hash => self.words("EVALSHA", &self.script.hash, form),
            Text::First | Text::Always => self.words("EVAL", self.script.text, form),
        }
    }

    fn words(&self, name: &str, script: &str, form: Form) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(2).arg(self.resource).arg(fence_of(self.resource, form.tagged)).arg(&self.arguments);
        command
    }
}

fn decimal(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// The name of the fence of `resource`. It begins as the lock's does, so that rights given for a prefix hold for both;
/// except in a cluster, where a name without a hash tag becomes that of its fence.
fn fence_of(resource: &[u8], tagged: bool) -> Vec<u8> {
    if tagged && !resource.contains(&b'{') {
        [b"{", resource, b"}::rlfence"].concat()
    } else {
        [resource, b"::rlfence"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &[u8]) -> Result<Reply, Error> {
        reply(redis::parse_redis_value(line).unwrap())
    }

    #[test]
    fn a_proposal_exceeds_what_was_seen_and_follows_the_clock() {
        let clock = Duration::from_micros(1_789_000_000_000_007);
        assert_eq!(propose(0, clock), 1_789_000_000_000_007);
        assert_eq!(propose(1_789_000_000_000_007, clock), 1_789_000_000_000_008);
        assert_eq!(propose(7, Duration::ZERO), 8);
        assert_eq!(propose(u64::MAX, Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_fence_outlives_two_leases_and_a_day() {
        assert_eq!(ttl_ms(1000), LEAST_TTL_MS);
        assert_eq!(ttl_ms(LEAST_TTL_MS), 2 * LEAST_TTL_MS);
        assert_eq!(ttl_ms(u64::MAX), MOST_TTL_MS);
    }

    #[test]
    fn replies_keep_every_digit() {
        let accepted = answer(b"*3\r\n:1\r\n:1\r\n$16\r\n1789000000000001\r\n").unwrap();
        assert_eq!(accepted, Reply { granted: true, accepted: true, fence: 1_789_000_000_000_001 });
        let refused = answer(b"*3\r\n:0\r\n:0\r\n$1\r\n7\r\n").unwrap();
        assert_eq!(refused, Reply { granted: false, accepted: false, fence: 7 });
    }

    #[test]
    fn only_the_scripts_own_answer_is_one() {
        for line in [
            &b"+OK\r\n"[..],
            b":1\r\n",
            b"$-1\r\n",
            b"*2\r\n:1\r\n:1\r\n",
            b"*3\r\n:1\r\n:1\r\n:7\r\n",
            b"*3\r\n:1\r\n:1\r\n$2\r\n-7\r\n",
            b"*3\r\n:1\r\n:1\r\n$20\r\n99999999999999999999\r\n",
            b"-OOM command not allowed\r\n",
        ] {
            assert!(matches!(answer(line), Err(Error::Reply(_))), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_server_that_runs_no_scripts_is_told_apart() {
        for line in [
            "-NOPERM this user has no permissions to run the 'eval' command\r\n",
            "-ERR unknown command 'EVAL', with args beginning with: 'x'\r\n",
            "-ERR The user executing the script can't run this command or subcommand script: x\r\n",
            "-ERR ACL failure in script: User fenced has no permissions to run the 'time' command script: x\r\n",
        ] {
            let error = answer(line.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Unfenced(_)), "{line}");
            assert!(error.to_string().starts_with("no fencing: "), "{error}");
        }
    }

    #[test]
    fn a_call_names_the_lock_and_its_fence() {
        let words = |resource: &[u8], form| {
            let command = Call::bump(resource, b"key", 1000, 7).command(form);
            let words = command.args_iter().map(|word| match word {
                redis::Arg::Simple(word) => String::from_utf8_lossy(word).into_owned(),
                _ => "?".to_owned(),
            });
            words.collect::<Vec<_>>()
        };
        assert_eq!(words(b"a", Form::default()), ["EVAL", BUMP, "2", "a", "a::rlfence", "key", "7", "86400000"]);
        let tagged = Form { text: Text::Hash, tagged: true };
        assert_eq!(words(b"a", tagged)[..5], ["EVALSHA", &BUMP_SCRIPT.hash, "2", "a", "{a}::rlfence"]);
        assert_eq!(words(b"{t}a", tagged)[3..5], ["{t}a", "{t}a::rlfence"]);
    }

    #[test]
    fn a_quorum_of_acceptances_elects_a_token() {
        let reply = |accepted, fence| Reply { granted: true, accepted, fence };
        let mut ballot = Ballot::new(5, 2, 3);
        for answer in [reply(true, 5), reply(false, 9)] {
            ballot.take(Some(answer), true);
            assert_eq!(ballot.verdict(), Verdict::Open);
        }
        let mut elected = ballot;
        elected.take(Some(reply(true, 5)), true);
        assert_eq!((elected.verdict(), elected.token()), (Verdict::Granted, 5));
        ballot.take(Some(Reply { granted: false, accepted: false, fence: 20 }), false);
        ballot.take(None, true);
        assert_eq!((ballot.verdict(), ballot.next(), ballot.highest_seen()), (Verdict::Denied, 10, 20));
    }

    #[test]
    fn locks_taken_together_are_as_good_as_the_worse() {
        let good = Reply { granted: true, accepted: true, fence: 5 };
        let beaten = Reply { granted: true, accepted: false, fence: 7 };
        let refused = Reply { granted: false, accepted: false, fence: 3 };
        assert_eq!(good.and(good), good);
        assert_eq!(good.and(beaten), beaten);
        assert_eq!(beaten.and(refused), Reply { granted: false, accepted: false, fence: 7 });
    }

    #[test]
    fn a_script_goes_in_full_once_and_by_its_hash_from_then_on() {
        let (first, hash) = (Form::default(), Form::default().next());
        assert_eq!((first.text, hash.text, hash.next()), (Text::First, Text::Hash, hash));
        assert_eq!(hash.fallback(&error("NOSCRIPT No matching script")), Some(first));
        assert_eq!(first.fallback(&error("NOSCRIPT No matching script")), None);
        assert_eq!(hash.fallback(&error("OOM no memory")), None);
    }

    #[test]
    fn a_server_that_knows_no_hashes_is_not_asked_again() {
        for refusal in ["NOPERM no", "ERR unknown command 'EVALSHA', with args beginning with: 'x'"] {
            let always = Form::default().next().fallback(&error(refusal)).unwrap();
            assert_eq!((always.text, always.next()), (Text::Always, always));
            assert_eq!(always.fallback(&error(refusal)), None);
        }
    }

    #[test]
    fn a_cluster_finds_lock_and_fence_in_one_slot() {
        let tagged = Form::default().fallback(&error("CROSSSLOT Keys in request don't hash to the same slot")).unwrap();
        assert!(tagged.tagged && tagged.next().tagged);
        assert_eq!(tagged.fallback(&error("CROSSSLOT again")), None);
    }

    fn error(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => error,
            other => panic!("{other:?}"),
        }
    }
}
