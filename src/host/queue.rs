//! The queue of an event loop's session: one descriptor, readable while there is news of any of the session's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::runtime::{Descriptor, Source};

/// How many changes are taken in at once.
const AT_ONCE: usize = 64;

/// What the system has to tell of the sources of one session. It tells of each change once.
///
/// It belongs to the process that made it: a forked child must not even remove a source from it.
#[derive(Debug)]
pub struct Queue {
    poll: Descriptor<Own>,
    events: Events,
    watched: Vec<Watched>,
    last_token: usize,
}

#[derive(Debug)]
struct Own(Poll);

impl AsFd for Own {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.registry().as_fd()
    }
}

/// A source as the system was last told to watch it. It stays open until the system has heard that it is watched no
/// longer: a forked child may have a copy of it, of which the system would go on telling.
#[derive(Debug)]
struct Watched {
    source: Arc<Source>,
    token: Token,
    to_write: bool,
}

/// For the event loop to watch for reading.
impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_fd().as_raw_fd()
    }
}

impl Queue {
    /// A queue without sources.
    ///
    /// # Errors
    ///
    /// There are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let poll = Descriptor::new(Own(Poll::new()?));
        Ok(Self { poll, events: Events::with_capacity(AT_ONCE), watched: Vec::new(), last_token: 0 })
    }

    /// Tell the sources of all that has come, without waiting for more; whether there was anything.
    pub fn take_in(&mut self) -> bool {
        let mut anything = false;
        // If it fails, the next turn finds what there is.
        while let Some(Own(poll)) = self.poll.get_mut()
            && poll.poll(&mut self.events, Some(Duration::ZERO)).is_ok()
        {
            for event in &self.events {
                // By the token: the number of a descriptor may have been another's before.
                if let Some(watched) = self.watched.iter().find(|watched| watched.token == event.token()) {
                    watched.tell(event);
                    anything = true;
                }
            }
            if self.events.iter().count() < AT_ONCE {
                break;
            }
        }
        anything
    }

    /// Watch these sources from now on, and no others. What cannot be watched is tried again the next time.
    pub fn watch(&mut self, sources: &[Arc<Source>]) {
        let Some(Own(poll)) = self.poll.get_mut() else { return };
        let registry = poll.registry();
        self.watched.retain(|old| {
            let stays = sources.iter().any(|source| Arc::ptr_eq(source, &old.source));
            if !stays {
                _ = registry.deregister(&mut SourceFd(&old.fd()));
            }
            stays
        });
        for source in sources {
            if let Some(known) = self.watched.iter_mut().find(|watched| Arc::ptr_eq(source, &watched.source)) {
                known.follow(registry);
                continue;
            }
            self.last_token += 1;
            let fresh = Watched::new(Arc::clone(source), Token(self.last_token));
            if registry.register(&mut SourceFd(&fresh.fd()), fresh.token, interest(fresh.to_write)).is_ok() {
                self.watched.push(fresh);
            }
        }
    }
}

impl Watched {
    fn new(source: Arc<Source>, token: Token) -> Self {
        let to_write = source.wants_write();
        Self { source, token, to_write }
    }

    fn fd(&self) -> RawFd {
        self.source.as_fd().as_raw_fd()
    }

    /// Watch it to write only while that is waited for: a Unix socket tells of each message that the other side reads.
    fn follow(&mut self, registry: &Registry) {
        let to_write = self.source.wants_write();
        if to_write != self.to_write
            && registry.reregister(&mut SourceFd(&self.fd()), self.token, interest(to_write)).is_ok()
        {
            self.to_write = to_write;
        }
    }

    fn tell(&self, event: &Event) {
        if event.is_read_closed() {
            self.source.ended();
        }
        let broken = event.is_error();
        self.source.ready(event.is_readable() || broken, event.is_writable() || event.is_write_closed() || broken);
    }
}

/// Always to read: a change is told once, whether it is waited for or not.
fn interest(to_write: bool) -> Interest {
    if to_write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use crate::runtime::{Executor, Handle, Socket};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A session of an event loop, which is not there: the test takes its turns.
    struct Loop {
        executor: Executor,
        queue: Queue,
        read: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Loop {
        fn new() -> Self {
            let executor = Executor::new(Arc::new(System::default()));
            Self { executor, queue: Queue::new().unwrap(), read: Arc::default() }
        }

        fn handle(&self) -> &Handle {
            self.executor.handle()
        }

        fn turn(&mut self) -> bool {
            let anything = self.queue.take_in();
            self.executor.run_until_stalled();
            self.queue.watch(&self.executor.wait().sources);
            anything
        }

        /// A connection, and the other side of it. What comes in is read until the end.
        fn connect(&self) -> UnixStream {
            let (mut near, far) = self.pair();
            let read = Arc::clone(&self.read);
            self.handle().spawn(async move {
                let mut bytes = [0; 16];
                while let Ok(count) = near.read(&mut bytes).await {
                    read.lock().unwrap().push(bytes[..count].to_vec());
                    if count == 0 {
                        break;
                    }
                }
            });
            far
        }

        fn pair(&self) -> (Socket, UnixStream) {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            (Socket::new(Source::new(near.into()), self.handle()), far)
        }

        /// What was read since the last time.
        fn read(&self) -> Vec<Vec<u8>> {
            std::mem::take(&mut *self.read.lock().unwrap())
        }

        /// What the event loop would see.
        fn is_readable(&self) -> bool {
            let mut fds = [PollFd::new(&self.queue.poll, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        }
    }

    #[test]
    fn one_descriptor_tells_of_all_once() {
        let mut one = Loop::new();
        let mut peers: Vec<_> = (0..3 * AT_ONCE).map(|_| one.connect()).collect();
        assert!(!one.turn() && !one.is_readable());
        for round in 0..3 {
            for peer in &mut peers {
                peer.write_all(&[round]).unwrap();
            }
            assert!(one.is_readable());
            // All in one turn: time must not run out for what is there.
            assert!(one.turn() && !one.is_readable());
            assert_eq!(one.read(), vec![vec![round]; 3 * AT_ONCE]);
        }
        assert!(!one.turn());
    }

    #[test]
    fn an_end_that_comes_with_the_last_bytes_is_seen() {
        let mut one = Loop::new();
        let mut peer = one.connect();
        one.turn();
        peer.write_all(b"bye").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        one.turn();
        assert_eq!(one.read(), [b"bye".to_vec(), vec![]]);
        assert_eq!(one.executor.wait().sources.len(), 0);
    }

    #[test]
    fn what_is_gone_is_heard_of_no_more_though_a_copy_is_open() {
        let mut one = Loop::new();
        let (near, mut peer) = one.pair();
        one.turn();
        let copy = rustix::io::dup(near.source()).unwrap();
        drop(near);
        one.turn();
        peer.write_all(b"x").unwrap();
        assert!(!one.is_readable() && !one.turn());
        drop(copy);
    }

    #[test]
    fn a_source_is_watched_to_write_only_while_that_is_waited_for() {
        const LONG: usize = 1 << 22;
        let mut one = Loop::new();
        let (mut near, mut far) = one.pair();
        one.handle().spawn(async move {
            near.write_all(b"short").await.unwrap();
            _ = near.read_u8().await;
            near.write_all(&vec![0; LONG]).await.unwrap();
        });
        one.executor.run_until_stalled();
        one.turn();
        one.turn();
        far.read_exact(&mut [0; 5]).unwrap();
        assert!(!one.is_readable());
        far.write_all(b"x").unwrap();
        let (mut received, mut bytes) = (0, vec![0; LONG]);
        far.set_nonblocking(true).unwrap();
        while received < LONG {
            assert!(one.is_readable());
            one.turn();
            while let Ok(count) = far.read(&mut bytes)
                && count > 0
            {
                received += count;
            }
        }
    }
}
