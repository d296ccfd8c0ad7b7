//! Everything the engine wants from the outside world, so that a simulation can be the outside world.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::clock::Clock;
use crate::master::endpoint::Endpoint;
use crate::runtime::Handle;

/// A byte stream to a master.
pub type Stream = Box<dyn ByteStream>;

/// What a [`Stream`] is made of: the traits redis-rs's connection is written against.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// What ends the wait of a host.
pub type Alarm = Arc<dyn Fn() + Send + Sync>;

/// Time, randomness and connections.
pub trait Effects: Clock + Send + Sync {
    /// Fill `bytes` from the operating system's generator.
    fn fill_random(&self, bytes: &mut [u8]);

    /// The wall clock: the time since 1970 began. It may be wrong and it may go back; nothing may rest on it.
    fn since_epoch(&self) -> Duration;

    /// What ends the wait of the host that drives the executor of `handle`, called from any thread.
    ///
    /// # Errors
    ///
    /// There is no such thing to be had. Then the wait ends by itself before long.
    fn alarm(&self, handle: &Handle) -> io::Result<Alarm>;

    /// Open a byte stream to the address of `endpoint`: no TLS, no handshake, no deadline.
    fn connect(&self, endpoint: &Endpoint, handle: &Handle) -> BoxFuture<'static, io::Result<Stream>>;
}
