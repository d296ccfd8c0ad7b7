//! Masters whose every byte is made up, on streams in memory, in virtual time.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::{Rng, SeedableRng, rngs::StdRng};
use redlock::clock::{Clock, Instant};
use redlock::master::endpoint::{Address, Endpoint};
use redlock::runtime::{Alarm, Effects, Handle, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames;

/// A command: its words.
pub(crate) type Command = Vec<Vec<u8>>;

/// All connections there have been, and what time it is.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

struct State {
    now: Instant,
    random: StdRng,
    connections: Vec<Connection>,
}

/// One connection: what came, what went, and which reply was whose by the reference.
pub(crate) struct Connection {
    master: usize,
    commands: Vec<Command>,
    /// How many of the commands have their reply.
    replied: usize,
    /// How many of the commands were answered with manners, or skipped.
    answered: usize,
    /// Keys whose `SET` was answered with an exact OK, or that the master named as the lock's in answer to `GET`.
    granted: Vec<Vec<u8>>,
    /// Keys, and when the `SET` of each was written.
    sets: Vec<(Vec<u8>, Instant)>,
    /// Bytes read since the last command was written.
    read_unasked: usize,
    written: Vec<u8>,
    inbox: Vec<u8>,
    pending: Vec<u8>,
    reader: Option<Waker>,
    ended: bool,
}

impl World {
    /// A world without connections.
    pub(crate) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(State { now: Instant::default(), random, connections: Vec::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Let time pass.
    pub(crate) fn advance_to(&self, at: Instant) {
        let mut state = self.state();
        state.now = state.now.max(at);
    }

    /// Let so much time pass.
    pub(crate) fn pass(&self, duration: Duration) {
        self.advance_to(self.now().after(duration));
    }

    /// Look at, or do something to, the newest connection of a master, if it is open.
    pub(crate) fn open<T>(&self, master: usize, act: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let mut state = self.state();
        state.connections.iter_mut().rev().find(|each| each.master == master).filter(|each| !each.ended).map(act)
    }

    /// Look at, or do something to, the connection with this number, in the order in which they were made.
    #[cfg(test)]
    pub(crate) fn nth<T>(&self, number: usize, act: impl FnOnce(&mut Connection) -> T) -> T {
        act(&mut self.state().connections[number])
    }

    /// Whether a master granted the lock with this key.
    pub(crate) fn granted(&self, master: usize, key: &[u8]) -> bool {
        let granted = |each: &Connection| each.master == master && each.granted.iter().any(|granted| granted == key);
        self.state().connections.iter().any(granted)
    }

    /// How long ago the first master was asked for the lock with this key.
    pub(crate) fn asked_since(&self, key: &[u8]) -> Duration {
        let state = self.state();
        let asked = state.connections.iter().flat_map(|each| &each.sets).filter(|(set, _)| set == key);
        asked.map(|&(_, at)| state.now.since(at)).max().unwrap_or_default()
    }

    /// The most bytes that were read from one connection since a command was written to it.
    pub(crate) fn most_unasked(&self) -> usize {
        self.state().connections.iter().map(|each| each.read_unasked).max().unwrap_or_default()
    }
}

impl Clock for World {
    fn now(&self) -> Instant {
        self.state().now
    }
}

impl Effects for World {
    fn fill_random(&self, bytes: &mut [u8]) {
        self.state().random.fill_bytes(bytes);
    }

    fn since_epoch(&self) -> Duration {
        self.state().now.since_zero()
    }

    fn alarm(&self, _: &Handle) -> io::Result<Alarm> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, endpoint: &Endpoint, _handle: &Handle) -> BoxFuture<'static, io::Result<Stream>> {
        let Address::Tcp { port, .. } = endpoint.address else { unreachable!("the world's masters have numbers") };
        let mut state = self.state();
        let number = state.connections.len();
        state.connections.push(Connection::new(port.into()));
        let stream = Pipe { world: self.clone(), number };
        async move { Ok(Box::new(stream) as Stream) }.boxed()
    }
}

impl Connection {
    fn new(master: usize) -> Self {
        Self {
            master,
            commands: Vec::new(),
            replied: 0,
            answered: 0,
            granted: Vec::new(),
            sets: Vec::new(),
            read_unasked: 0,
            written: Vec::new(),
            inbox: Vec::new(),
            pending: Vec::new(),
            reader: None,
            ended: false,
        }
    }

    /// The master sends these bytes.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while let Some(end) = frames::length(rest) {
            self.attribute(frames::stripped(&rest[..end]));
            rest = &rest[end..];
        }
        self.pending = rest.to_vec();
        self.wake();
    }

    /// The oldest command that nobody has answered.
    pub(crate) fn unanswered(&self) -> Option<&Command> {
        self.commands.get(self.answered.max(self.replied))
    }

    /// What the commands so far are called.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        self.commands.iter().map(|command| String::from_utf8_lossy(&command[0]).into_owned()).collect()
    }

    /// The master answers that.
    pub(crate) fn answer(&mut self, reply: &[u8]) {
        self.answered = self.answered.max(self.replied) + 1;
        self.deliver(reply);
    }

    /// The master closes.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.wake();
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    /// A reply belongs to the oldest command without one; without any it is nobody's.
    fn attribute(&mut self, reply: &[u8]) {
        if frames::is_push(reply) {
            return;
        }
        let Some(command) = self.commands.get(self.replied) else { return };
        self.replied += 1;
        match (command[0].as_slice(), reply) {
            (b"SET", b"+OK\r\n") => self.granted.push(command[2].clone()),
            (b"GET", [b'$', ..]) => self.granted.extend(text(reply)),
            _ => {}
        }
    }

    fn write(&mut self, bytes: &[u8], now: Instant) {
        self.read_unasked = 0;
        self.written.extend_from_slice(bytes);
        while let Some(end) = frames::length(&self.written) {
            let command: Vec<u8> = self.written.drain(..end).collect();
            let command = words(&command);
            if command[0] == b"SET" {
                self.sets.push((command[2].clone(), now));
            }
            self.commands.push(command);
        }
    }
}

/// The words of a command as redis-rs writes it.
fn words(command: &[u8]) -> Command {
    let head = frames_line(command);
    let mut rest = &command[head..];
    let mut words = Vec::new();
    while let Some(end) = frames::length(rest) {
        words.extend(text(&rest[..end]));
        rest = &rest[end..];
    }
    words
}

/// What a bulk string says.
fn text(reply: &[u8]) -> Option<Vec<u8>> {
    reply.get(frames_line(reply)..reply.len() - 2).map(<[u8]>::to_vec)
}

fn frames_line(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1)
}

/// The engine's end of a connection.
struct Pipe {
    world: World,
    number: usize,
}

impl Pipe {
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> T {
        act(&mut self.world.state().connections[self.number])
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.with(|connection| connection.ended = true);
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|connection| {
            let count = connection.inbox.len().min(buf.remaining());
            if count == 0 && !connection.ended {
                connection.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            connection.read_unasked += count;
            buf.put_slice(&connection.inbox[..count]);
            connection.inbox.drain(..count);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now = self.world.now();
        self.with(|connection| {
            if connection.ended {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            connection.write(buf, now);
            Poll::Ready(Ok(buf.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
