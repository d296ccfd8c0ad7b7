//! A stream that gives up on a server that answers with more than was asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes a server may send in any case; the longest that we ask for is `INFO server`.
const BASE: u64 = 64 * 1024;

/// Bytes it may send for each command without an answer, and for each key that it was asked to watch.
const PER_COMMAND: u64 = 1024;

/// Counts what is read against what was asked for, so that no reply can fill the memory: a lock manager's replies are
/// short.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    allowance: u64,
    outstanding: Outstanding,
}

/// How many commands wait for their answers on one connection, and how many keys for a change.
#[derive(Debug, Clone, Default)]
pub struct Outstanding(Arc<AtomicU64>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Expected(Outstanding);

impl Outstanding {
    /// One more.
    pub(super) fn expect(&self) -> Expected {
        self.0.fetch_add(1, Ordering::Relaxed);
        Expected(self.clone())
    }

    /// Whether there is none.
    pub(super) fn is_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn allowance(&self) -> u64 {
        BASE.saturating_add(PER_COMMAND.saturating_mul(self.0.load(Ordering::Relaxed)))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Bounded<S> {
    /// A view of `inner`, bounded by what is `outstanding`.
    pub(super) const fn new(inner: S, outstanding: Outstanding) -> Self {
        Self { inner, allowance: BASE, outstanding }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        let Some(left) = self.allowance.checked_sub(read) else {
            buf.set_filled(before);
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server sent more than it was asked for",
            )));
        };
        self.allowance = left;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.allowance = self.outstanding.allowance();
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// How much a stream takes of an endless flood, after a write for so many commands.
    fn taken(commands: usize) -> usize {
        let (near, mut far) = tokio::io::duplex(1 << 22);
        far.write_all(&vec![b'x'; 1 << 22]).now_or_never().unwrap().unwrap();
        let outstanding = Outstanding::default();
        let mut near = Bounded::new(near, outstanding.clone());
        let _expected: Vec<_> = (0..commands).map(|_| outstanding.expect()).collect();
        near.write_all(b"?").now_or_never().unwrap().unwrap();
        let mut flood = Vec::new();
        let error = near.read_to_end(&mut flood).now_or_never().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        flood.len()
    }

    #[test]
    fn a_flood_ends_the_connection() {
        assert!(taken(0) <= 1 << 16);
    }

    #[test]
    fn many_commands_may_have_as_many_answers() {
        assert!((200 * 1024..=(1 << 16) + (1 << 20)).contains(&taken(1000)), "{}", taken(1000));
    }

    #[test]
    fn what_is_answered_allows_for_nothing() {
        let outstanding = Outstanding::default();
        drop(outstanding.expect());
        assert_eq!(outstanding.allowance(), BASE);
    }
}
