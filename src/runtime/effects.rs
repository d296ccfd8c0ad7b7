//! Everything the engine wants from the outside world, so that a simulation can be the outside world.

use std::io;
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

/// Time, randomness and connections.
pub trait Effects: Clock + Send + Sync {
    /// Fill `bytes` from the operating system's generator.
    fn fill_random(&self, bytes: &mut [u8]);

    /// The wall clock: the time since 1970 began. It may be wrong and it may go back; nothing may rest on it.
    fn since_epoch(&self) -> Duration;

    /// Open a byte stream to the address of `endpoint`: no TLS, no handshake, no deadline.
    fn connect(&self, endpoint: &Endpoint, handle: &Handle) -> BoxFuture<'static, io::Result<Stream>>;
}
