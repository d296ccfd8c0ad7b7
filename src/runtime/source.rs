//! A non-blocking descriptor, as seen by the tasks that use it and by the host that waits for it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::{Descriptor, Handle, locked};

/// No reply of ours is longer than this; a longer one is read in pieces.
const READ_SIZE: usize = 1024;

/// A descriptor the host waits for, and who is to be woken.
#[derive(Debug)]
pub struct Source {
    fd: Descriptor,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    readable: bool,
    writable: bool,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Source {
    /// A descriptor that is already in non-blocking mode, not yet known to be ready for anything.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let state = State { readable: false, writable: false, ended: false, reader: None, writer: None };
        Self { fd: Descriptor::new(fd), state: Mutex::new(state) }
    }

    /// Whether somebody waits to read.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        locked(&self.state).reader.is_some()
    }

    /// Whether somebody waits to write.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        locked(&self.state).writer.is_some()
    }

    /// The host says what the descriptor is ready for; an error or a hang-up is readiness for both.
    pub fn ready(&self, readable: bool, writable: bool) {
        let mut state = locked(&self.state);
        state.readable |= readable;
        state.writable |= writable;
        let reader = state.reader.take_if(|_| readable);
        let writer = state.writer.take_if(|_| writable);
        drop(state);
        reader.into_iter().chain(writer).for_each(Waker::wake);
    }

    /// The host says that nothing more will come but what is there, and then the end. A host that is told of each change
    /// once has to say it, for it may have been told of both at the same time.
    pub fn ended(&self) {
        locked(&self.state).ended = true;
        self.ready(true, false);
    }

    /// Wait until the host says that the descriptor is ready to write.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = locked(&self.state);
        if state.writable {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = locked(&self.state);
        if state.readable {
            return Poll::Ready(());
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn not_readable(&self) {
        locked(&self.state).readable = false;
    }

    /// All that was there has been read: all but the end.
    fn emptied(&self) {
        let mut state = locked(&self.state);
        state.readable = state.ended;
    }

    fn not_writable(&self) {
        locked(&self.state).writable = false;
    }
}

/// A connected descriptor as a byte stream. Closing it sends nothing but what the kernel does.
#[derive(Debug)]
pub struct Socket {
    source: Arc<Source>,
    handle: Handle,
}

impl Socket {
    /// A stream over `source`, watched by the host for as long as the stream lives.
    #[must_use]
    pub fn new(source: Source, handle: &Handle) -> Self {
        let source = Arc::new(source);
        handle.watch(Arc::clone(&source));
        Self { source, handle: handle.clone() }
    }

    /// The descriptor.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.handle.forget(&self.source);
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.remaining().min(READ_SIZE);
        loop {
            std::task::ready!(self.source.poll_readable(cx));
            match rustix::io::read(&self.source, buf.initialize_unfilled_to(room)) {
                Ok(count) => {
                    // A short read emptied the socket: spare the call that would only say so.
                    if count < room && count > 0 {
                        self.source.emptied();
                    }
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::AGAIN) => self.source.not_readable(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.source.poll_writable(cx));
            // Not write(2): a peer that went away must be an error here, never a SIGPIPE.
            match rustix::net::send(&self.source, buf, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(rustix::io::Errno::AGAIN) => self.source.not_writable(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
