//! Mistakes that can be switched on, so that the simulation proves that it would see them.
//!
//! Only with the feature `planted-bugs`, which nothing that is released has; without it every [`is`] is `false` at
//! compile time and the hooks are gone.

/// A mistake that lock managers have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "planted-bugs"), expect(unreachable_pub, reason = "public where it can be switched on"))]
pub enum Bug {
    /// One grant too few is enough.
    QuorumOffByOne,
    /// Time is taken from a clock that somebody sets: no hook, the simulated host steps the clock it hands in.
    #[cfg(feature = "planted-bugs")]
    WallClock,
    /// The validity counts from the decision instead of from before the first byte.
    LateStart,
    /// The drift between the clocks is left out of the validity.
    NoDrift,
    /// A failed round leaves its keys where they are.
    NoRelease,
    /// A failed round is released only on masters that have said yes.
    ReleaseWhereGranted,
    /// A connection lives on after an answer that did not come in time, and the simulated protocol library forgets the
    /// question.
    ReplyDesync,
    /// A master that gets its connection after the decision is still asked.
    LateSet,
    /// Unlocking deletes whatever is there.
    UnlockWithoutCompare,
    /// A connection is given up without the release of what it may have set.
    SilentGiveUp,
    /// A release does not wait for what another session has sent to take the lock, and may arrive before it.
    Overtakes,
    /// A fence accepts a token that is equal to the one before.
    AcceptEqual,
    /// A fencing token is the greatest seen and one, and no master is told.
    NoWriteBack,
    /// An extension sets the key instead of comparing it.
    ReviveByExtend,
    /// A master that no longer has the lock counts as one that extended it.
    AbsentExtends,
    /// A lease is renewed although it is being released.
    KeeperGoesOn,
    /// A lease is renewed although no holder refers to it any more.
    RenewsAbandoned,
    /// The holder is told of the loss when validity is over.
    LateLoss,
    /// Only the first of several resources is released.
    PartialRelease,
    /// Pushes are relied on for ever, though a server may lose one.
    TrustPushes,
    /// Whoever waits is told how long the lock will be held, and asks for it all the same.
    AskAgain,
    /// Those of one session who wait do not stand in line.
    NoLine,
    /// A caller that asked for a shorter time, and was told that it failed, relies on the old deadline.
    DeadlineForgotten,
    /// An extension that no quorum can grant any more ends without the answers that show whether that is final.
    HastyVerdict,
    /// Masters that did not answer are asked by one caller now and then, even where there is no quorum without them; a
    /// silence counts as often as a caller waited for its end, and a turn may be used up in vain.
    ShunHung,
    /// A lock that a quorum has granted is given to no other master.
    Incomplete,
    /// A lock goes on to masters that do not have it yet although it is released.
    CompletesReleased,
    /// A lock goes on to masters that do not have it yet although its round was lost.
    CompletesLost,
    /// A lock that a master gets later than the others stays there for as long as if it had just been taken.
    FullTtl,
    /// A master that has not confirmed a release is told it only once.
    ToldOnce,
    /// A release waits for every master's answer, however far it is.
    AwaitsAll,
    /// A connection that is not there by the end of a round is given up, and made again from the beginning.
    ConnectAgain,
    /// Waits are not cut into pieces: they stand still while the machine is suspended, and the clock of the deadlines does
    /// not. No hook, the simulated host does so.
    #[cfg(feature = "planted-bugs")]
    UncutWait,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Make this mistake, and no other, in this thread from now on.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether to make this mistake.
    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub(crate) use switch::is;
#[cfg(feature = "planted-bugs")]
pub use switch::plant;

/// What [`Bug::UnlockWithoutCompare`] sends: a script as every other, without the comparison.
pub(crate) fn plain_delete(resource: &[u8], key: &[u8]) -> redis::Cmd {
    let delete = "return redis.call('del', KEYS[1])";
    redis::cmd("EVAL").arg(delete).arg(1).arg(resource).arg(key).take()
}

/// What [`Bug::AcceptEqual`] makes of a fencing script.
pub(crate) fn accept_equal(script: &str) -> String {
    script.replace("#a == #b and a > b", "#a == #b and a >= b")
}

/// What [`Bug::ReviveByExtend`] sends: a script as every other, without the comparison.
pub(crate) fn plain_set(resource: &[u8], key: &[u8], ttl_ms: u64) -> redis::Cmd {
    let set = "redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) return ARGV[1]";
    redis::cmd("EVAL").arg(set).arg(1).arg(resource).arg(key).arg(ttl_ms).take()
}

/// What [`Bug::FullTtl`] has a master keep a lock for, in milliseconds: the TTL from which the drift was reckoned.
pub(crate) fn full_ttl(drift: std::time::Duration) -> u64 {
    u64::try_from(drift.as_millis()).unwrap_or(u64::MAX).saturating_sub(2).saturating_mul(100)
}

/// What is released of `resources`: all, but for [`Bug::PartialRelease`].
pub(crate) fn released(resources: &[Vec<u8>]) -> &[Vec<u8>] {
    if is(Bug::PartialRelease) { &resources[..1] } else { resources }
}

/// Never.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
