//! A stream that gives up on a server that answers with more than was asked for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes a server may send per command; the longest we ask for is `INFO server`.
const PER_WRITE: u64 = 64 * 1024;

/// Counts what is read against what was written, so that no reply can fill the memory: a lock manager's replies are
/// short.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    allowance: u64,
}

impl<S> Bounded<S> {
    /// A bounded view of `inner`.
    pub(super) const fn new(inner: S) -> Self {
        Self { inner, allowance: PER_WRITE }
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
        self.allowance = PER_WRITE;
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

    #[test]
    fn a_flood_ends_the_connection() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(&vec![b'x'; 1 << 18]).now_or_never().unwrap().unwrap();
        let mut near = Bounded::new(near);
        let mut flood = Vec::new();
        let error = near.read_to_end(&mut flood).now_or_never().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(flood.len() <= 1 << 16);
    }
}
