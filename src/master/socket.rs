//! Non-blocking sockets: connected while the host waits, never by blocking.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, addr::SocketAddrArg, sockopt};

use crate::master::endpoint::Keepalive;
use crate::runtime::{Handle, Socket, Source};

/// How long one of several addresses has to itself before the next is tried ("Happy Eyeballs", RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connect to the first of `addresses` that accepts.
pub async fn connect_any(addresses: &[SocketAddr], keepalive: &Keepalive, handle: &Handle) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (index, &address) in addresses.iter().enumerate() {
        let connect = std::pin::pin!(connect_tcp(address, keepalive, handle));
        if index + 1 == addresses.len() {
            return connect.await;
        }
        match select(connect, handle.sleep(HEAD_START)).await {
            Either::Left((Ok(socket), _)) => return Ok(socket),
            Either::Left((Err(error), _)) => last = error,
            Either::Right(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Connect to a Unix domain socket.
pub async fn connect_unix(path: &Path, handle: &Handle) -> io::Result<Socket> {
    let fd = non_blocking(AddressFamily::UNIX)?;
    finish(fd, &SocketAddrUnix::new(path)?, handle).await
}

async fn connect_tcp(address: SocketAddr, keepalive: &Keepalive, handle: &Handle) -> io::Result<Socket> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let fd = non_blocking(family)?;
    // A command is one small packet: it must not wait for the acknowledgement of the one before.
    sockopt::set_tcp_nodelay(&fd, true)?;
    set_keepalive(&fd, keepalive)?;
    finish(fd, &address, handle).await
}

fn non_blocking(family: AddressFamily) -> io::Result<OwnedFd> {
    #[cfg(not(target_vendor = "apple"))]
    return Ok(net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?);
    #[cfg(target_vendor = "apple")]
    {
        let fd = net::socket_with(family, SocketType::STREAM, SocketFlags::empty(), None)?;
        rustix::io::ioctl_fioclex(&fd)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(fd)
    }
}

fn set_keepalive(fd: &OwnedFd, keepalive: &Keepalive) -> io::Result<()> {
    sockopt::set_socket_keepalive(fd, keepalive.enabled)?;
    if let Some(idle) = keepalive.idle {
        sockopt::set_tcp_keepidle(fd, idle)?;
    }
    if let Some(interval) = keepalive.interval {
        sockopt::set_tcp_keepintvl(fd, interval)?;
    }
    if let Some(count) = keepalive.count {
        sockopt::set_tcp_keepcnt(fd, count)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = keepalive.user_timeout {
        sockopt::set_tcp_user_timeout(fd, timeout)?;
    }
    Ok(())
}

async fn finish(fd: OwnedFd, address: &impl SocketAddrArg, handle: &Handle) -> io::Result<Socket> {
    let started = net::connect(&fd, address);
    let socket = Socket::new(Source::new(fd), handle);
    match started {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            std::future::poll_fn(|cx| socket.source().poll_writable(cx)).await;
            sockopt::socket_error(socket.source())??;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(socket)
}
