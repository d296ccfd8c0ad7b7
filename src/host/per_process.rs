//! What each process has its own of.

use std::sync::OnceLock;

use rustix::process::{Pid, getpid};

/// A value of each process: a forked child has a new one, and never touches its parent's, of which another thread may have
/// held a mutex at the fork.
#[derive(Debug)]
pub(super) struct PerProcess<T> {
    first: OnceLock<Box<Link<T>>>,
}

#[derive(Debug)]
struct Link<T> {
    pid: Pid,
    value: T,
    child: PerProcess<T>,
}

impl<T> PerProcess<T> {
    /// No process has one yet.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self { first: OnceLock::new() }
    }

    /// Those of the processes that this one was forked from.
    pub(super) fn before(&self) -> impl Iterator<Item = &T> {
        let pid = getpid();
        let links = std::iter::successors(self.first.get(), |link| link.child.first.get());
        links.take_while(move |link| link.pid != pid).map(|link| &link.value)
    }

    /// The one of this process, which is made when it is asked for first.
    pub(super) fn here(&self) -> &T
    where
        T: Default,
    {
        let pid = getpid();
        let mut chain = self;
        loop {
            let link =
                chain.first.get_or_init(|| Box::new(Link { pid: getpid(), value: T::default(), child: Self::new() }));
            if link.pid == pid {
                return &link.value;
            }
            chain = &link.child;
        }
    }
}
