//! The blocking host: an operation from beginning to end in the calling thread.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::clock::{BootClock, Clock};
use crate::engine::acquire::Cancel;
use crate::engine::{Masters, Session};
use crate::runtime::Source;

/// The longest single wait. While the machine is suspended, the time that is waited stands still, and the clock of the
/// deadlines does not: it is looked at again at least so often. So are exceptions that are meant for the waiting thread.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How an operation ended.
#[derive(Debug)]
pub enum Ended<T, E> {
    /// With its result.
    Finished(T),
    /// With its result, after the wait was broken off: what the operation took must be given back.
    BrokenOff(T, E),
    /// Without a result, in a child that was forked during the wait: the operation goes on in its parent, alone.
    Inherited(E),
}

/// Run `operation` to its end, in the process `home`, on a session that has caught up.
///
/// `wait` waits until one of the sources is ready, and says so to it, or the time is over; it may return early. When it
/// fails the operation is cancelled, and ends as soon as it has cleaned up. It must fail in a forked child.
pub fn run<T, E, F>(
    session: &mut Session,
    home: Pid,
    operation: impl FnOnce(Arc<Masters>, Cancel) -> F,
    mut wait: impl FnMut(&[Arc<Source>], Duration) -> Result<(), E>,
) -> Ended<T, E>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (cancel, cancelled) = oneshot::channel();
    let mut cancel = Some(cancel);
    let mut broken_off = None;
    let mut result = session.start(|masters| operation(masters, cancelled.fuse()));
    loop {
        session.turn();
        match (result.try_recv(), broken_off.take()) {
            (Ok(value), None) => return Ended::Finished(value),
            (Ok(value), Some(why)) => return Ended::BrokenOff(value, why),
            (Err(TryRecvError::Empty), why) => broken_off = why,
            (Err(TryRecvError::Closed), _) => unreachable!("an operation that started ends with its result"),
        }
        if let Err(why) = wait_once(session, &mut wait) {
            if getpid() != home {
                return Ended::Inherited(why);
            }
            broken_off.get_or_insert(why);
            cancel.take().map(|cancel| cancel.send(()));
        }
    }
}

/// Take in what came since the last operation: answers to old commands, and connections that servers have closed.
pub fn catch_up(session: &mut Session) {
    // If it fails, the first wait will say so.
    _ = poll(&session.wait().sources, Duration::ZERO);
    session.turn();
}

fn wait_once<E>(session: &Session, wait: &mut impl FnMut(&[Arc<Source>], Duration) -> Result<(), E>) -> Result<(), E> {
    let all = session.wait();
    let now = BootClock.now();
    let timeout = all.deadline.map_or(LONGEST_WAIT, |deadline| deadline.since(now).min(LONGEST_WAIT));
    wait(&all.sources, timeout)
}

/// Wait by `poll(2)`; whether a source became ready. A signal ends the wait with [`Errno::INTR`].
pub fn poll(sources: &[Arc<Source>], timeout: Duration) -> Result<bool, Errno> {
    poll_then(sources, timeout, || ())
}

/// The same; `woke` is called when the wait is over, before the sources are told.
pub(super) fn poll_then(sources: &[Arc<Source>], timeout: Duration, woke: impl FnOnce()) -> Result<bool, Errno> {
    let mut fds: Vec<PollFd<'_>> = sources.iter().map(|source| PollFd::new(&**source, interest(source))).collect();
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    let ready = rustix::event::poll(&mut fds, Some(&timeout));
    woke();
    let ready = ready? > 0;
    let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    for (source, fd) in sources.iter().zip(&fds) {
        let events = fd.revents();
        source.ready(events.intersects(PollFlags::IN | broken), events.intersects(PollFlags::OUT | broken));
    }
    Ok(ready)
}

fn interest(source: &Source) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, source.wants_read());
    flags.set(PollFlags::OUT, source.wants_write());
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    /// What is waited is bounded, however far the next deadline is: the clock may jump while nothing else happens.
    #[test]
    fn no_wait_is_longer_than_the_longest() {
        for rest in [Some(Duration::from_secs(3600)), None] {
            let mut session = Session::new(&[], Arc::default(), Arc::default(), Arc::new(System::default()));
            let mut waits = Vec::new();
            let operation = |masters: Arc<Masters>, cancel: Cancel| async move {
                match rest {
                    Some(rest) => _ = futures_util::future::select(masters.handle().sleep(rest), cancel).await,
                    None => _ = cancel.await,
                }
            };
            let ended = run(&mut session, getpid(), operation, |_, timeout| {
                waits.push(timeout);
                if waits.len() < 3 { Ok(()) } else { Err("enough") }
            });
            assert!(matches!(ended, Ended::BrokenOff((), "enough")));
            assert_eq!(waits, [LONGEST_WAIT; 3]);
        }
    }
}
