//! Names to addresses, without stalling anybody's deadline.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};

use crate::runtime::{Bell, Handle, bell, locked};

type Found = Arc<Mutex<io::Result<Vec<SocketAddr>>>>;

/// The addresses of `host`. `getaddrinfo` has no deadline and no descriptor to wait for, so it runs in a thread of its
/// own that ends with it; the caller waits for a socket pair, as for any other descriptor, and may stop waiting. IP
/// addresses start no thread.
pub(super) async fn resolve(host: String, port: u16, handle: &Handle) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (done, rung) = bell(handle)?;
    let found: Found = Arc::new(Mutex::new(Err(io::ErrorKind::NotFound.into())));
    let result = Arc::clone(&found);
    std::thread::Builder::new().name("redlock-dns".into()).spawn(move || look_up(&host, port, &result, done))?;
    rung.heard().await;
    std::mem::replace(&mut *locked(&found), Err(io::ErrorKind::NotFound.into()))
}

#[expect(clippy::needless_pass_by_value, reason = "closed when the thread ends")]
fn look_up(host: &str, port: u16, result: &Found, done: Bell) {
    *locked(result) = (host, port).to_socket_addrs().map(Iterator::collect);
    done.ring();
}
