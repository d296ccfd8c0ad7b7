//! The blocking host: `poll(2)` in the calling thread.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::clock::{BootClock, Clock};
use crate::engine::acquire::Cancel;
use crate::engine::{Masters, Session};
use crate::runtime::{Source, Wait};

/// Nothing waits longer than this without looking around, for want of anything better than a lost wake-up to fear.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How an operation ended.
#[derive(Debug)]
pub enum Ended<T, E> {
    /// With its result.
    Finished(T),
    /// With its result, after a signal handler asked to give up: what it took must be given back.
    Interrupted(T, E),
}

/// Run `operation` to its end in this thread.
///
/// Whenever a signal interrupts the wait, `interrupted` is asked whether to go on; on `Err` the operation is cancelled, and ends as soon as it has cleaned up.
pub fn run<T, E, F>(
    session: &mut Session,
    operation: impl FnOnce(Arc<Masters>, Cancel) -> F,
    mut interrupted: impl FnMut() -> Result<(), E>,
) -> Ended<T, E>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    // What came in since the last operation comes first: answers to old commands, and connections that the servers closed.
    wait_for(&session.wait().sources, Duration::ZERO).ok();
    session.turn();
    let (cancel, cancelled) = oneshot::channel();
    let mut cancel = Some(cancel);
    let mut why = None;
    let mut result = session.start(|masters| operation(masters, cancelled));
    loop {
        session.turn();
        match result.try_recv() {
            Ok(value) => {
                return match why {
                    None => Ended::Finished(value),
                    Some(why) => Ended::Interrupted(value, why),
                };
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Closed) => unreachable!("an operation that started ends with its result"),
        }
        if wait(&session.wait()) == Err(Errno::INTR)
            && why.is_none()
            && let Err(reason) = interrupted()
        {
            why = Some(reason);
            cancel.take().map(|cancel| cancel.send(()));
        }
    }
}

fn wait(wait: &Wait) -> Result<(), Errno> {
    let now = BootClock.now();
    let timeout = wait.deadline.map_or(LONGEST_WAIT, |deadline| deadline.since(now).min(LONGEST_WAIT));
    wait_for(&wait.sources, timeout)
}

fn wait_for(sources: &[Arc<Source>], timeout: Duration) -> Result<(), Errno> {
    let mut fds: Vec<PollFd<'_>> = sources.iter().map(|source| PollFd::new(&**source, interest(source))).collect();
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    poll(&mut fds, Some(&timeout))?;
    let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    for (source, fd) in sources.iter().zip(&fds) {
        let events = fd.revents();
        source.ready(events.intersects(PollFlags::IN | broken), events.intersects(PollFlags::OUT | broken));
    }
    Ok(())
}

fn interest(source: &Source) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, source.wants_read());
    flags.set(PollFlags::OUT, source.wants_write());
    flags
}
