//! Who waits. Everything that blocks, sleeps or starts a thread is in here.

pub mod blocking;
pub mod driver;
mod per_process;
pub mod pool;
pub mod queue;
mod resolve;
pub mod shared;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::TryRng;
use rand::rngs::SysRng;

use crate::clock::{self, BootClock, Clock, Instant};
use crate::master::endpoint::{Address, Endpoint};
use crate::master::socket::{self, Unreached};
use crate::runtime::{self, Alarm, Effects, Handle, Stream};

/// The real world: the machine's clock, its random numbers, its sockets. Clones share what they know of addresses.
#[derive(Debug, Clone, Default)]
pub struct System {
    unreached: Arc<Unreached>,
}

impl Clock for System {
    fn now(&self) -> Instant {
        BootClock.now()
    }
}

impl Effects for System {
    /// # Panics
    ///
    /// If the operating system has no random numbers: no key would be safe.
    fn fill_random(&self, bytes: &mut [u8]) {
        if let Err(error) = SysRng.try_fill_bytes(bytes) {
            panic!("the operating system gives no random numbers: {error}");
        }
    }

    fn since_epoch(&self) -> Duration {
        clock::since_epoch()
    }

    fn alarm(&self, handle: &Handle) -> io::Result<Alarm> {
        let (bell, rung) = runtime::bell(handle)?;
        handle.spawn(rung.listen());
        Ok(Arc::new(move || bell.ring()))
    }

    fn connect(&self, endpoint: &Endpoint, handle: &Handle) -> BoxFuture<'static, io::Result<Stream>> {
        let (address, keepalive, handle) = (endpoint.address.clone(), endpoint.keepalive.clone(), handle.clone());
        let unreached = Arc::clone(&self.unreached);
        async move {
            let socket = match address {
                Address::Tcp { host, port } => {
                    let addresses = resolve::resolve(host, port, &handle).await?;
                    socket::connect_any(&addresses, &unreached, &keepalive, &handle).await?
                }
                Address::Unix(path) => socket::connect_unix(&path, &handle).await?,
                // No place of its own: the sentinels are asked first, and what they name is connected to.
                Address::Sentinel { .. } => return Err(io::ErrorKind::Unsupported.into()),
            };
            Ok(Box::new(socket) as Stream)
        }
        .boxed()
    }
}
