//! Descriptors that are closed only while their numbers are still their own.

use std::sync::Arc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, fstat};
use rustix::process::{Pid, getpid};

/// An open descriptor that closes itself, unless its number has become another file's.
///
/// A daemon forks and then closes all descriptors that it does not know; the numbers become those of its log files. What
/// came with the fork still has them, and is dropped at some time: it must not close those files.
#[derive(Debug)]
pub struct Descriptor<T: AsFd = OwnedFd> {
    fd: Arc<T>,
    identity: Option<Identity>,
}

/// What tells one open file from another, as far as the system says it.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    /// Where files share one inode, as all epoll descriptors do, only the process that opened one may close it.
    process: Option<Pid>,
}

impl<T: AsFd> Descriptor<T> {
    /// Take care of a descriptor that was just opened, or of what has one.
    #[must_use]
    pub fn new(fd: T) -> Self {
        let identity = identity(&fd);
        Self { fd: Arc::new(fd), identity }
    }

    /// What has the descriptor. It is always there.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        Arc::get_mut(&mut self.fd)
    }
}

#[allow(clippy::unnecessary_cast, clippy::cast_lossless, clippy::cast_sign_loss, reason = "types differ by system")]
fn identity(fd: &impl AsFd) -> Option<Identity> {
    let stat = fstat(fd).ok()?;
    let is_unique = FileType::from_raw_mode(stat.st_mode) == FileType::Socket && stat.st_ino != 0;
    let process = (!is_unique).then(getpid);
    Some(Identity { device: stat.st_dev as u64, inode: stat.st_ino as u64, process })
}

impl<T: AsFd> AsFd for Descriptor<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<T: AsFd> Drop for Descriptor<T> {
    fn drop(&mut self) {
        if self.identity.is_none() || identity(&*self.fd) != self.identity {
            std::mem::forget(Arc::clone(&self.fd));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{Errno, dup2};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Descriptor, UnixStream) {
        let (mine, peer) = UnixStream::pair().unwrap();
        (Descriptor::new(mine.into()), peer)
    }

    #[test]
    fn its_own_file_is_closed() {
        let (descriptor, mut peer) = pair();
        drop(descriptor);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_number_that_is_another_files_stays_open() {
        let (mut descriptor, _peer) = pair();
        let (other, mut others_peer) = UnixStream::pair().unwrap();
        // What happens when all numbers are closed and files are opened.
        dup2(&other, descriptor.get_mut().unwrap()).unwrap();
        drop((descriptor, other));
        others_peer.set_nonblocking(true).unwrap();
        let read = others_peer.read(&mut [0]);
        assert_eq!(read.unwrap_err().raw_os_error(), Some(Errno::WOULDBLOCK.raw_os_error()));
        others_peer.write_all(b"x").unwrap();
    }

    #[test]
    fn files_that_share_an_inode_are_closed_by_the_process_that_opened_them() {
        let file = std::fs::File::open("Cargo.toml").unwrap();
        assert_eq!(identity(&file).unwrap().process, Some(getpid()));
        assert_eq!(identity(&UnixStream::pair().unwrap().0).unwrap().process, None);
    }
}
