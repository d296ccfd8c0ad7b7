//! The client's end of a connection, and the outside world that the engine is given.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::Rng;
use rand::rngs::StdRng;
use redlock::clock::{Clock as EngineClock, Instant};
use redlock::master::endpoint::{Address, Endpoint};
use redlock::runtime::{Alarm, Effects, Handle, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fencing::EPOCH;
use super::time::Clock;

/// What the engine did in a turn, in its order; the world carries it out afterwards.
pub enum Deed {
    /// Began to connect to a master.
    Dialled { session: usize, master: usize, wire: Wire },
    /// Wrote bytes.
    Wrote { conn: usize, bytes: Vec<u8> },
    /// Closed the connection, or gave up making it.
    HungUp { conn: usize },
}

/// All sessions write down what they do here.
#[derive(Default)]
pub struct Deeds {
    pub list: Vec<Deed>,
    /// The sessions in which others have woken a task.
    pub woken: BTreeSet<usize>,
    /// The clients whose drivers are to see to what masters are owed.
    pub owing: BTreeSet<usize>,
    /// The clients whose idle sessions are to take in what has come.
    pub looking: BTreeSet<usize>,
    connections: usize,
}

/// One end of a connection, shared by the engine's stream and the world.
pub type Wire = Arc<Mutex<End>>;

/// What the client's kernel knows of a connection.
pub struct End {
    pub conn: usize,
    pub connected: bool,
    pub inbox: VecDeque<u8>,
    pub at_eof: bool,
    pub error: Option<io::ErrorKind>,
    /// Bytes the send buffer still takes.
    pub room: usize,
    /// Whether it was ever full, so that what is decided may be written only later, or never.
    pub was_full: bool,
    waiting: Vec<Waker>,
}

impl End {
    /// Wake whoever waits for anything to happen here.
    pub fn wake(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether the client knows that the connection is over.
    pub fn is_over(&self) -> bool {
        self.at_eof || self.error.is_some()
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// No lock is ever held across anything that could panic in its own right.
pub fn open<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// The stream the engine holds.
struct Near {
    wire: Wire,
    deeds: Arc<Mutex<Deeds>>,
    conn: usize,
}

impl Near {
    fn poll_connected(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut end = open(&self.wire);
        match end.error {
            Some(error) => Poll::Ready(Err(error.into())),
            None if end.connected => Poll::Ready(Ok(())),
            None => end.wait(cx),
        }
    }

    fn note(&self, deed: Deed) {
        open(&self.deeds).list.push(deed);
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.note(Deed::HungUp { conn: self.conn });
    }
}

impl AsyncRead for Near {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut end = open(&self.wire);
        let count = end.inbox.len().min(buf.remaining());
        if count > 0 {
            let (front, back) = end.inbox.as_slices();
            let split = count.min(front.len());
            buf.put_slice(&front[..split]);
            buf.put_slice(&back[..count - split]);
            end.inbox.drain(..count);
            return Poll::Ready(Ok(()));
        }
        match end.error {
            Some(error) => Poll::Ready(Err(error.into())),
            None if end.at_eof => Poll::Ready(Ok(())),
            None => end.wait(cx),
        }
    }
}

impl AsyncWrite for Near {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut end = open(&self.wire);
        if let Some(error) = end.error {
            return Poll::Ready(Err(error.into()));
        }
        end.was_full |= end.room < buf.len();
        if end.room == 0 {
            return end.wait(cx);
        }
        let count = buf.len().min(end.room);
        end.room -= count;
        self.note(Deed::Wrote { conn: self.conn, bytes: buf[..count].to_vec() });
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What gives a session its turn when another wakes one of its tasks.
pub fn alarm(session: usize, deeds: &Arc<Mutex<Deeds>>) -> Alarm {
    let deeds = Arc::clone(deeds);
    Arc::new(move || _ = open(&deeds).woken.insert(session))
}

/// The outside world of one session.
pub struct Host {
    pub session: usize,
    pub clock: Arc<Clock>,
    pub wall: Arc<Clock>,
    pub random: Mutex<StdRng>,
    pub room: usize,
    pub deeds: Arc<Mutex<Deeds>>,
}

impl EngineClock for Host {
    fn now(&self) -> Instant {
        Instant::from_zero(Duration::from_nanos(self.clock.shown()))
    }
}

impl Effects for Host {
    fn fill_random(&self, bytes: &mut [u8]) {
        open(&self.random).fill_bytes(bytes);
    }

    fn since_epoch(&self) -> Duration {
        Duration::from_nanos(EPOCH + self.wall.shown())
    }

    fn alarm(&self, _: &Handle) -> io::Result<Alarm> {
        Ok(alarm(self.session, &self.deeds))
    }

    fn connect(&self, endpoint: &Endpoint, _: &Handle) -> BoxFuture<'static, io::Result<Stream>> {
        let Address::Tcp { port, .. } = endpoint.address else { unreachable!("all masters are on TCP") };
        let mut deeds = open(&self.deeds);
        let conn = deeds.connections;
        deeds.connections += 1;
        let end = End {
            conn,
            connected: false,
            inbox: VecDeque::new(),
            at_eof: false,
            error: None,
            room: self.room,
            was_full: false,
            waiting: Vec::new(),
        };
        let wire = Arc::new(Mutex::new(end));
        deeds.list.push(Deed::Dialled { session: self.session, master: port.into(), wire: Arc::clone(&wire) });
        let near = Near { wire, deeds: Arc::clone(&self.deeds), conn };
        async move {
            std::future::poll_fn(|cx| near.poll_connected(cx)).await?;
            Ok(Box::new(near) as Stream)
        }
        .boxed()
    }
}
