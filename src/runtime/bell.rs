//! Word from another thread to an executor.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, send};
use tokio::io::AsyncReadExt;

use crate::runtime::{Descriptor, Handle, Socket, Source};

/// What another thread rings, or drops, when it has done its work.
#[derive(Debug)]
pub struct Bell(Descriptor);

/// What is waited for meanwhile.
#[derive(Debug)]
pub struct Rung(Socket);

/// A bell, and what hears it among the sources of an executor.
///
/// # Errors
///
/// There are no descriptors left.
pub fn bell(handle: &Handle) -> io::Result<(Bell, Rung)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((Bell(Descriptor::new(far.into())), Rung(Socket::new(Source::new(near.into()), handle))))
}

impl Bell {
    /// Ring. Perhaps it is not waited for any more.
    pub fn ring(&self) {
        _ = send(&self.0, &[1], SendFlags::NOSIGNAL);
    }
}

impl Rung {
    /// Wait until the bell has rung or is gone.
    pub async fn heard(mut self) {
        _ = self.0.read_u8().await;
    }

    /// Hear the bell ring, as often as it does, until it is gone.
    pub async fn listen(mut self) {
        let mut rings = [0; 64];
        while self.0.read(&mut rings).await.is_ok_and(|count| count > 0) {}
    }
}
