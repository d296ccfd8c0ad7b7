//! Non-blocking sockets: connected while the host waits, never by blocking.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, addr::SocketAddrArg, sockopt};

use crate::master::endpoint::Keepalive;
use crate::runtime::{Handle, Socket, Source, locked, race};

/// How long one of several addresses has to itself before the next is tried ("Happy Eyeballs", RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// More addresses than that are not remembered: names whose addresses change all the time must not fill the memory.
const MOST_REMEMBERED: usize = 1000;

/// The addresses that did not connect when they were last tried, whatever name led to them.
#[derive(Debug, Default)]
pub struct Unreached(Mutex<HashSet<SocketAddr>>);

impl Unreached {
    /// The order in which to try `addresses`: as they came, but IPv6 and IPv4 in turn (RFC 8305, section 4), and those
    /// last that did not connect before.
    fn sorted(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let is_first =
            |address: &&SocketAddr| addresses.first().is_some_and(|first| first.is_ipv6() == address.is_ipv6());
        let (some, others): (Vec<&SocketAddr>, Vec<&SocketAddr>) = addresses.iter().partition(is_first);
        let turns = some.into_iter().enumerate().map(|(turn, address)| (2 * turn, *address));
        let turns = turns.chain(others.into_iter().enumerate().map(|(turn, address)| (2 * turn + 1, *address)));
        let unreached = locked(&self.0);
        let mut sorted: Vec<_> = turns.map(|(turn, address)| (unreached.contains(&address), turn, address)).collect();
        drop(unreached);
        sorted.sort_unstable();
        sorted.into_iter().map(|(_, _, address)| address).collect()
    }

    /// The lock is never waited for: a thread that held it may be missing from a forked child, which lets go of its
    /// parent's attempts.
    fn note(&self, address: SocketAddr, is_reached: bool) {
        let Ok(mut unreached) = self.0.try_lock() else { return };
        if is_reached {
            unreached.remove(&address);
        } else if unreached.len() < MOST_REMEMBERED {
            unreached.insert(address);
        }
    }
}

/// An attempt to connect to one address: that it did not connect is known however it ends.
struct Attempt<'a> {
    address: SocketAddr,
    unreached: &'a Unreached,
    is_reached: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.unreached.note(self.address, self.is_reached);
    }
}

/// Connect to the first of `addresses` that accepts. They are tried side by side: one that does not answer delays the
/// next by no more than `HEAD_START`, and is the last to be tried the next time.
pub async fn connect_any(
    addresses: &[SocketAddr],
    unreached: &Unreached,
    keepalive: &Keepalive,
    handle: &Handle,
) -> io::Result<Socket> {
    let connect = |address| async move {
        let mut attempt = Attempt { address, unreached, is_reached: false };
        let socket = connect_tcp(address, keepalive, handle).await?;
        attempt.is_reached = true;
        Ok(socket)
    };
    let no_address = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    race(unreached.sorted(addresses).into_iter().map(connect), HEAD_START, handle)
        .await
        .unwrap_or_else(|| Err(no_address()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_families_are_tried_in_turn() {
        let (unreached, mixed) = (Unreached::default(), addresses(&["[::1]:1", "[::2]:1", "1.1.1.1:1", "2.2.2.2:1"]));
        assert_eq!(unreached.sorted(&mixed), addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1"]));
        assert_eq!(unreached.sorted(&mixed[2..]), mixed[2..]);
        assert_eq!(unreached.sorted(&[]), []);
    }

    #[test]
    fn the_end_of_an_attempt_waits_for_no_other_thread() {
        let (unreached, all) = (Unreached::default(), addresses(&["1.1.1.1:1", "2.2.2.2:1"]));
        let held = locked(&unreached.0);
        drop(Attempt { address: all[0], unreached: &unreached, is_reached: false });
        drop(held);
        assert_eq!(unreached.sorted(&all), all);
    }

    #[test]
    fn what_did_not_connect_is_tried_last_until_it_does() {
        let (unreached, all) = (Unreached::default(), addresses(&["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]));
        let attempt =
            |index: usize, is_reached| drop(Attempt { address: all[index], unreached: &unreached, is_reached });
        attempt(0, false);
        attempt(1, true);
        assert_eq!(unreached.sorted(&all), [all[1], all[2], all[0]]);
        attempt(0, true);
        assert_eq!(unreached.sorted(&all), all);
    }
}
