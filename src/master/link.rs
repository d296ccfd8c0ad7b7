//! One live connection to one master: commands go out and take effect in the order of the calls.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::task::AtomicWaker;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

use crate::claim::{Claim, Decision};
use crate::clock::Instant;
use crate::error::Error;
use crate::fence::Form;
use crate::master::bounded::Outstanding;
use crate::master::watch::{Change, Watches};
use crate::planted::{self, Bug};
use crate::runtime::{Handle, locked};
use crate::script::CompareAndDelete;

const UNTRACKED: u8 = 0;
const ASKED: u8 = 1;
const REFUSED: u8 = 2;

/// A connection that was idle for so long may have been forgotten by something on its way, such as a NAT.
const IDLE: Duration = Duration::from_secs(1);

/// The least that such a connection has for its next answer, before a new one is made beside it; and how many times what
/// answers usually take.
const LEAST_GRACE: Duration = Duration::from_millis(50);
const USUAL_TIMES: u32 = 4;

/// A connection after its handshake. Clones share it.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    connection: MultiplexedConnection,
    handle: Handle,
    patience: Duration,
    release_by: AtomicU8,
    watches: Option<Arc<Watches>>,
    outstanding: Outstanding,
    tracking: AtomicU8,
    knows_script: AtomicBool,
    fencing_form: Mutex<Form>,
    unanswered: Mutex<Vec<Pending>>,
    asks: AtomicBool,
    heard: Mutex<Heard>,
    life: Arc<Life>,
}

/// What a command takes, and which of the manager's masters it is sent to.
#[derive(Debug, Clone)]
pub struct Taking {
    /// It.
    pub claim: Arc<Claim>,
    /// Its index.
    pub master: usize,
}

/// What was sent that takes a claim, and has no answer yet.
struct Pending {
    taking: Taking,
    /// Its release was sent after it, on the same connection.
    is_released: bool,
}

/// The last answer, and how long answers usually take.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    usual: Duration,
}

/// Whether a connection is open, and how it is ended from outside its driver.
#[derive(Default)]
struct Life {
    over: AtomicBool,
    given_up: AtomicBool,
    forgotten: AtomicBool,
    waker: AtomicWaker,
    /// What is still to be sent when it is given up.
    farewells: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl Link {
    /// A link over `connection`, whose `driver` runs until the server closes it or it is given up.
    /// `patience` is how long one command may stay unanswered; `watches` takes what the server pushes, if it can; what is
    /// `outstanding` bounds what it may send.
    pub fn new(
        connection: MultiplexedConnection,
        driver: impl Future<Output = ()> + Send + 'static,
        handle: &Handle,
        patience: Duration,
        watches: Option<Arc<Watches>>,
        outstanding: Outstanding,
    ) -> Self {
        let life = Arc::new(Life::default());
        handle.spawn(drive(driver, Arc::clone(&life)));
        Self(Arc::new(Shared {
            connection,
            handle: handle.clone(),
            patience,
            release_by: AtomicU8::new(CompareAndDelete::Evalsha as u8),
            watches,
            outstanding,
            tracking: AtomicU8::new(UNTRACKED),
            knows_script: AtomicBool::new(false),
            fencing_form: Mutex::default(),
            unanswered: Mutex::default(),
            asks: AtomicBool::new(true),
            heard: Mutex::new(Heard { at: handle.now(), usual: Duration::ZERO }),
            life,
        }))
    }

    /// Whether commands can still be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.0.life.over.load(Ordering::Acquire)
    }

    /// How this master compares and deletes, as far as is known.
    #[must_use]
    pub fn release_by(&self) -> CompareAndDelete {
        CompareAndDelete::from_u8(self.0.release_by.load(Ordering::Relaxed))
    }

    /// Compare and delete in this way from now on.
    pub fn set_release_by(&self, way: CompareAndDelete) {
        self.0.release_by.store(way as u8, Ordering::Relaxed);
    }

    /// Whether the server has run the script that releases, and so knows it by its hash.
    #[must_use]
    pub fn knows_script(&self) -> bool {
        self.0.knows_script.load(Ordering::Relaxed)
    }

    /// It has run it.
    pub fn note_script(&self) {
        self.0.knows_script.store(true, Ordering::Relaxed);
    }

    /// How long the next command may stay unanswered before a new connection is made beside this one, which was idle for
    /// long and may be forgotten; `None` if it is in use.
    #[must_use]
    pub fn grace(&self, check_interval: Option<Duration>, now: Instant) -> Option<Duration> {
        let grace = (locked(&self.0.heard).usual * USUAL_TIMES).max(LEAST_GRACE);
        let idle = check_interval.map_or(IDLE, |interval| interval.min(IDLE));
        (grace < self.0.patience && self.is_idle_for(idle, now)).then_some(grace)
    }

    /// Whether its last answer came so long ago, and none is outstanding.
    #[must_use]
    pub fn is_idle_for(&self, long: Duration, now: Instant) -> bool {
        self.0.outstanding.is_none() && now.since(self.heard_at()) > long
    }

    /// When its last answer came.
    #[must_use]
    pub fn heard_at(&self) -> Instant {
        locked(&self.0.heard).at
    }

    /// What was sent then has its answer, which took so long. It may have been there for long: it was not looked at in
    /// the time in which the executor was not driven, and does not make the connection one in use.
    fn note_heard(&self, sent: Instant, took: Duration) {
        let mut heard = locked(&self.0.heard);
        let usual = if heard.usual.is_zero() { took } else { took.min(heard.usual * 2) };
        *heard = Heard { at: heard.at.max(sent.after(took)), usual };
    }

    /// Give the connection up as one that was forgotten: a new one has taken its place.
    pub fn forget(&self) {
        self.0.life.forgotten.store(true, Ordering::Release);
        self.give_up();
    }

    /// Whether this is the same connection.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the server may be asked what no lock needs.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.0.asks.load(Ordering::Relaxed)
    }

    /// Ask it nothing from now on that no lock needs: it hangs up.
    pub fn ask_nothing(&self) {
        self.0.asks.store(false, Ordering::Relaxed);
    }

    /// Wait for the next change of `key` after it is read, from now on. `None` if the server cannot push.
    #[must_use]
    pub fn change_of(&self, key: &[u8]) -> Option<Change> {
        self.0.watches.as_ref().map(|watches| watches.change_of(key, self.0.outstanding.expect()))
    }

    /// Have the server push changes of the keys that are read on this connection from now on, as default client tracking
    /// does. Whoever is the first to want it asks for it. `Err` where it cannot be had.
    pub async fn track(&self) -> Result<(), Error> {
        if self.0.watches.is_none() {
            return Err(Error::Setup("RESP2 has no pushes".into()));
        }
        match self.0.tracking.swap(ASKED, Ordering::Relaxed) {
            UNTRACKED => self.ask_to_track().await.inspect_err(|_| self.0.tracking.store(REFUSED, Ordering::Relaxed)),
            REFUSED => {
                self.0.tracking.store(REFUSED, Ordering::Relaxed);
                Err(Error::NotSent)
            }
            _ => Ok(()),
        }
    }

    async fn ask_to_track(&self) -> Result<(), Error> {
        let reply = self.call(redis::cmd("CLIENT").arg("TRACKING").arg("ON"), None).await?;
        reply.extract_error().map(drop).map_err(Error::from)
    }

    /// How this master wants fencing scripts called, as far as is known.
    #[must_use]
    pub fn fencing_form(&self) -> Form {
        *locked(&self.0.fencing_form)
    }

    /// Call fencing scripts in this form from now on.
    pub fn set_fencing_form(&self, form: Form) {
        *locked(&self.0.fencing_form) = form;
    }

    /// Send `command` and wait for its answer, as long as this master is given. A master that exceeds it loses the
    /// connection, for its late answer is worth nothing, and its commands must not pile up to be executed minutes
    /// later.
    ///
    /// `taking` is what the command takes: should the connection be given up before the answer, its release is sent
    /// first.
    pub async fn call(&self, command: &Cmd, taking: Option<Taking>) -> Result<Value, Error> {
        if self.0.life.given_up.load(Ordering::Acquire) {
            // The driver would still write it out before it closes, and nothing could follow.
            return Err(self.0.life.error());
        }
        let _unanswered = match taking.map(|taking| Unanswered::new(self, taking)) {
            Some(None) => return Err(Error::NotSent),
            unanswered => unanswered.flatten(),
        };
        let _expected = self.0.outstanding.expect();
        let (sent, absent) = (self.0.handle.now(), self.0.handle.unattended());
        let mut connection = self.0.connection.clone();
        let reply = std::pin::pin!(connection.send_packed_command(command));
        match select(reply, self.0.handle.sleep_until(sent.after(self.0.patience))).await {
            Either::Left((Ok(value), _)) => {
                let absent = self.0.handle.unattended().saturating_sub(absent);
                self.note_heard(sent, self.0.handle.now().since(sent).saturating_sub(absent));
                Ok(value)
            }
            Either::Left((Err(_), _)) if self.0.life.given_up.load(Ordering::Acquire) => Err(self.0.life.error()),
            Either::Left((Err(error), _)) => Err(error.into()),
            Either::Right(_) if planted::is(Bug::ReplyDesync) => Err(Error::NoAnswer),
            Either::Right(_) => {
                self.give_up();
                Err(Error::NoAnswer)
            }
        }
    }

    /// The same for a command whose answer, if it is no error, is such that it `fits`. Any other belongs to another command:
    /// what comes after it cannot be relied on either.
    pub async fn call_expecting(
        &self,
        command: &Cmd,
        taking: Option<Taking>,
        fits: fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let value = self.call(command, taking).await?;
        if !fits(&value) && !matches!(value, Value::ServerError(_)) {
            self.give_up();
        }
        Ok(value)
    }

    /// Whether the answer to a claim is still to come: to that with this key, or to any; but not to one whose release was
    /// sent after it.
    #[must_use]
    pub fn awaits(&self, key: Option<&[u8]>) -> bool {
        let waits = |pending: &Pending| !pending.is_released && key.is_none_or(|key| pending.taking.claim.key == key);
        self.is_open() && locked(&self.0.unanswered).iter().any(waits)
    }

    /// How many commands that take this claim have no answer yet.
    #[must_use]
    pub fn unanswered(&self, claim: &Claim) -> usize {
        locked(&self.0.unanswered).iter().filter(|pending| pending.taking.claim.is(claim)).count()
    }

    /// The release of `claim` is about to be sent here: nothing can overtake what this connection still owes.
    pub fn note_release(&self, claim: &Claim) {
        let mut unanswered = locked(&self.0.unanswered);
        let of_claim = |pending: &&mut Pending| pending.taking.claim.is(claim);
        unanswered.iter_mut().filter(of_claim).for_each(|pending| pending.is_released = true);
    }

    /// Close the connection. What was sent may still lie in the master's socket buffer and be executed when it wakes
    /// up, so every claim without an answer is followed by its release: on the same connection, where nothing can
    /// overtake. But not if an extension has found it at this master: then it was executed, and its holder relies on it.
    pub fn give_up(&self) {
        let mut unanswered = std::mem::take(&mut *locked(&self.0.unanswered));
        unanswered.dedup_by(|one, other| Arc::ptr_eq(&one.taking.claim, &other.taking.claim));
        for Pending { taking: Taking { claim, master }, .. } in unanswered {
            if planted::is(Bug::SilentGiveUp) || !claim.decide(master, Decision::Withdrawn) {
                continue;
            }
            for resource in &claim.resources {
                let mut release = self.release_by().release_in_full(&claim, resource);
                release.set_no_response(true);
                let mut connection = self.0.connection.clone();
                let farewell = async move { _ = connection.send_packed_command(&release).await };
                locked(&self.0.life.farewells).push(farewell.boxed());
            }
        }
        self.0.life.give_up();
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

impl Life {
    /// What a command without an answer ends with when the connection is given up.
    fn error(&self) -> Error {
        if self.forgotten.load(Ordering::Acquire) { Error::Forgotten } else { Error::NoAnswer }
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.over.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Hand over what is still to be sent; whether nothing of it could be.
    fn is_stuck(&self, cx: &mut Context<'_>) -> bool {
        let mut farewells = locked(&self.farewells);
        let before = farewells.len();
        farewells.retain_mut(|farewell| farewell.as_mut().poll(cx).is_pending());
        farewells.len() == before
    }
}

/// Run the driver until the connection ends or is given up; dropping it closes the socket.
async fn drive(driver: impl Future<Output = ()> + Send, life: Arc<Life>) {
    let mut driver = std::pin::pin!(driver);
    std::future::poll_fn(|cx| {
        life.waker.register(cx.waker());
        // The driver takes in only so much at once: go on as long as it makes room for what is still to be sent.
        loop {
            let ended = driver.as_mut().poll(cx).is_ready();
            if !ended && !life.given_up.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            if ended || life.is_stuck(cx) {
                return Poll::Ready(());
            }
        }
    })
    .await;
    life.over.store(true, Ordering::Release);
    locked(&life.farewells).clear();
}

/// A claim that is on its way and has no answer yet.
struct Unanswered<'a> {
    link: &'a Link,
    taking: Taking,
    is_sent: bool,
}

impl<'a> Unanswered<'a> {
    /// `None` if the claim is being released: it must not be taken any more.
    fn new(link: &'a Link, taking: Taking) -> Option<Self> {
        // First, so that a release in another thread finds where it is.
        locked(&link.0.unanswered).push(Pending { taking: taking.clone(), is_released: false });
        let is_sent = taking.claim.sent_to(taking.master);
        let unanswered = Self { link, taking, is_sent };
        is_sent.then_some(unanswered)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        // One of several resources: the answers to the others may still be to come.
        let mut unanswered = locked(&self.link.0.unanswered);
        if let Some(index) = unanswered.iter().position(|other| Arc::ptr_eq(&other.taking.claim, &self.taking.claim)) {
            unanswered.remove(index);
        }
        drop(unanswered);
        if self.is_sent {
            self.taking.claim.settled_at(self.taking.master);
        }
    }
}
