//! What a simulated server makes of the fencing scripts, which it knows by their text.

use redlock::fence::{ACQUIRE, BUMP};

use super::master::{Did, Master};
use super::resp::{bulk, integer};
use super::time::{MS, Nanos, SECOND};

/// The seconds since 1970 at which the world begins.
pub const EPOCH: Nanos = 1_700_000_000 * SECOND;

const MINUTE_US: u64 = 60_000_000;

/// A fencing script as it was sent: the engine's own, or with the planted mistake in it.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    acquires: bool,
    accepts_equal: bool,
}

impl Script {
    /// What a text stands for.
    pub fn of(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).unwrap();
        let accepts_equal = text.contains("a >= b");
        let original = text.replace("a >= b", "a > b");
        assert!(original == ACQUIRE || original == BUMP, "a script this server has not learnt");
        Self { acquires: original == ACQUIRE, accepts_equal }
    }

    fn accepts(self, token: u64, floor: u64) -> bool {
        token > floor || self.accepts_equal && token == floor
    }
}

/// The lock, its fence, and whose call it is.
struct Call<'a> {
    lock: &'a [u8],
    fence: &'a [u8],
    key: &'a [u8],
}

impl Master {
    /// Carry out a fencing script.
    pub fn fence(&mut self, script: Script, words: &[&[u8]]) -> (Vec<u8>, Did) {
        match *words {
            [lock, fence, key, ttl_ms, token, _] if script.acquires => {
                self.acquire(script, &Call { lock, fence, key }, number(ttl_ms), number(token))
            }
            [lock, fence, key, token, _] => self.bump(script, &Call { lock, fence, key }, number(token)),
            _ => panic!("a fencing script called with {} words", words.len()),
        }
    }

    fn acquire(&mut self, script: Script, call: &Call<'_>, ttl_ms: u64, token: u64) -> (Vec<u8>, Did) {
        let (floor, greatest) = self.fences(call.fence);
        let (resource, key) = (call.lock.to_vec(), call.key.to_vec());
        if self.holder(call.lock).is_some_and(|owner| owner != call.key) {
            return (reply(false, false, greatest), Did::Set { resource, key, granted: false, ttl_ms });
        }
        if self.out_of_memory {
            return (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_vec(), Did::Refused);
        }
        let farthest = (self.time_us() + MINUTE_US).max(floor + 1_000_000);
        let accepted = script.accepts(token, floor) && token <= farthest;
        if accepted {
            self.store(call.fence, token.to_string().as_bytes(), u64::MAX / 2);
        }
        let ttl_ms = self.left(call.lock).unwrap_or_default().max(ttl_ms);
        self.store(call.lock, call.key, ttl_ms);
        let greatest = if accepted { token } else { greatest };
        (reply(true, accepted, greatest), Did::Set { resource, key, granted: true, ttl_ms })
    }

    fn bump(&mut self, script: Script, call: &Call<'_>, token: u64) -> (Vec<u8>, Did) {
        let (floor, greatest) = self.fences(call.fence);
        if self.holder(call.lock) != Some(call.key) {
            return (reply(false, false, greatest), Did::Other);
        }
        let accepted = script.accepts(token, floor);
        if accepted {
            self.store(call.fence, token.to_string().as_bytes(), u64::MAX / 2);
        }
        (reply(true, accepted, if accepted { token } else { greatest }), Did::Other)
    }

    /// What a token must exceed, and the greatest seen.
    fn fences(&self, fence: &[u8]) -> (u64, u64) {
        let now = self.time_us();
        self.holder(fence).map(number).map_or((now - MINUTE_US, now), |fence| (fence, fence))
    }

    fn time_us(&self) -> u64 {
        (EPOCH + self.clock.shown()) / (MS / 1000)
    }
}

fn reply(granted: bool, accepted: bool, fence: u64) -> Vec<u8> {
    let fence = bulk(fence.to_string().as_bytes());
    [b"*3\r\n".to_vec(), integer(granted.into()), integer(accepted.into()), fence].concat()
}

fn number(word: &[u8]) -> u64 {
    std::str::from_utf8(word).unwrap().parse().unwrap()
}
