//! Waiting for a lock that somebody holds: no longer than needed, and without asking in vain.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{Either, FusedFuture, join, join_all, pending, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use redis::Value;
use tokio::sync::OwnedMutexGuard;

use crate::clock::Instant;
use crate::engine::acquire::{Cancel, Request, Vote};
use crate::engine::crowd::Place;
use crate::engine::{Masters, of_each};
use crate::error::Error;
use crate::master::Master;
use crate::master::link::Link;
use crate::master::watch::Change;
use crate::planted::{self, Bug};
use crate::retry::{self, Pauses};
use crate::runtime::{Handle, locked};
use crate::script::{self, Grant};

/// The longest that pushes are relied on: a server may lose one.
const CAP: Duration = Duration::from_secs(1);

/// The tries of one call: when the next one is due.
pub(super) struct Waiting<'a> {
    masters: &'a Masters,
    request: &'a Request,
    pauses: Pauses<StdRng>,
    /// When the pause ends that was begun last.
    over: Instant,
    /// When the caller wants its answer.
    pub(super) give_up_at: Instant,
    refused: bool,
    woken: bool,
    /// The master to be asked first kept the lock, and a quorum did not need it.
    free_elsewhere: bool,
    /// How many tries the master granted that was asked first, and another refused.
    splits: usize,
    /// Our turn among those of this session who wait for it.
    turn: Option<OwnedMutexGuard<()>>,
    /// Our place among those of this process who do.
    place: Option<Place>,
}

impl<'a> Waiting<'a> {
    /// Nothing was tried yet.
    pub(super) fn new(masters: &'a Masters, request: &'a Request) -> Self {
        let random = masters.handle().with_random(StdRng::from_rng);
        Self {
            masters,
            request,
            pauses: Pauses::new(request.tries, request.retry_delay, random),
            over: masters.handle().now(),
            give_up_at: masters.handle().now().after(request.timeout.unwrap_or(Duration::MAX)),
            refused: false,
            woken: false,
            free_elsewhere: false,
            splits: 0,
            turn: None,
            place: None,
        }
    }

    /// The one master, the same for all contenders, that is to be asked first, if one is: contenders that all ask everybody
    /// split the votes, and none wins. The only one who waits saves a round trip.
    pub(super) fn asked_first(&self) -> Option<usize> {
        let asks_one_first = self.refused && !self.free_elsewhere && (self.is_crowded() || !self.woken);
        asks_one_first.then(|| self.designated()).flatten()
    }

    fn designated(&self) -> Option<usize> {
        self.masters.designated(&self.request.resources, self.request.quorum, self.splits)
    }

    fn is_crowded(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.is_crowded(self.masters.handle().now()))
    }

    /// After a round that ended with `votes`: wait until it is time for the next; `false` if there is none.
    ///
    /// A try comes early when the lock may have become free, and its pause goes on after it. Where that would be known, the
    /// end of a pause is no reason to ask: the next pause follows. So the call takes the time that its tries allow.
    pub(super) async fn for_next_try(&mut self, votes: &[Vote], cancel: &mut Cancel) -> bool {
        if !self.pauses_on() {
            return false;
        }
        let is_refused = votes.contains(&Ok(Grant::Refused));
        let was_first = self.asked_first().is_some_and(|first| votes[first] == Ok(Grant::Granted));
        self.splits += usize::from(was_first && is_refused);
        self.refused = is_refused;
        let was_contended = self.refused && (self.woken || votes.contains(&Ok(Grant::Granted)));
        self.woken = false;
        let handle = self.masters.handle();
        // Without a pause there is nothing to wait for.
        if self.request.retry_delay.is_zero() || !self.is_next(cancel).await {
            return !cancel.is_terminated() && handle.now() < self.give_up_at;
        }
        let place = self.place.get_or_insert_with(|| self.masters.join(&self.request.resources));
        if was_contended {
            place.was_contended(handle.now());
        }
        let is_crowded = self.is_crowded();
        let moment = handle.with_random(|random| retry::moment(is_crowded, random));
        let first = is_crowded.then(|| self.designated()).flatten();
        let outlook = Outlook::default();
        let mut free = std::pin::pin!(async {
            until_free(self.masters, self.request, votes, first, &outlook).await;
            handle.sleep(moment).await;
        });
        let cap = handle.now().after(if planted::is(Bug::TrustPushes) { Duration::MAX } else { CAP });
        loop {
            let until = if handle.now() < cap { self.over.min(cap) } else { self.over };
            let ended = handle.sleep_until(until.min(self.give_up_at));
            self.woken = matches!(select(&mut free, select(ended, &mut *cancel)).await, Either::Left(_));
            let now = handle.now();
            if cancel.is_terminated() || now >= self.give_up_at {
                return false;
            }
            self.free_elsewhere = !self.woken && outlook.is_free_elsewhere();
            if self.woken || (now >= cap && outlook.is_relied_on()) {
                return true;
            }
            if now >= self.over && (!outlook.is_clear(self.request.quorum) || !self.pauses_on()) {
                return true;
            }
        }
    }

    /// Whether a pause is not over yet, or another begins.
    fn pauses_on(&mut self) -> bool {
        let now = self.masters.handle().now();
        now < self.over || self.pauses.next().map(|pause| self.over = now.after(pause)).is_some()
    }

    /// Stand in line until nobody of this session is before us, who asks for all; `false` if that takes longer than all
    /// pauses.
    async fn is_next(&mut self, cancel: &mut Cancel) -> bool {
        if self.turn.is_some() || planted::is(Bug::NoLine) {
            return true;
        }
        let handle = self.masters.handle();
        let end = self.over.after(self.pauses.rest()).min(self.give_up_at);
        let line = std::pin::pin!(self.masters.line(&self.request.resources).lock_owned());
        if let Either::Left((turn, _)) = select(line, select(handle.sleep_until(end), cancel)).await {
            self.turn = Some(turn);
        }
        self.pauses.spend(handle.now().since(self.over));
        self.turn.is_some() && self.pauses_on()
    }
}

/// How well it will be known when the lock becomes free.
#[derive(Default)]
struct Outlook {
    /// Masters that will say so.
    watched: AtomicUsize,
    /// One of them is gone.
    blind: AtomicBool,
    /// A quorum is free already, but not the master to be asked first.
    elsewhere: AtomicBool,
}

impl Outlook {
    fn is_relied_on(&self) -> bool {
        self.watched.load(Ordering::Relaxed) > 0
    }

    fn is_free_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed)
    }

    fn is_clear(&self, quorum: usize) -> bool {
        let is_blind = self.blind.load(Ordering::Relaxed) || self.is_free_elsewhere();
        self.watched.load(Ordering::Relaxed) >= quorum && !is_blind
    }
}

/// Wait until the lock may be free on a quorum of masters.
///
/// Where a quorum was free all along, it was the master to be asked `first` that refused, and it would do so again: then it
/// has to be free as well, or another one becomes so.
async fn until_free(masters: &Masters, request: &Request, votes: &[Vote], first: Option<usize>, outlook: &Outlook) {
    let candidates =
        masters.iter().zip(votes).enumerate().filter(|(_, (master, vote))| may_grant(master, request, vote));
    let (mut first_is_missing, mut is_news, mut count) = (false, false, 0);
    let mut free: FuturesUnordered<_> = candidates
        .map(|(index, (master, _))| {
            first_is_missing |= first == Some(index);
            until_free_at(master, request, masters.handle(), outlook).map(move |waited| (index, waited))
        })
        .collect();
    while count < request.quorum || (first_is_missing && !is_news) {
        let Some((index, waited)) = free.next().await else { return pending().await };
        first_is_missing &= first != Some(index);
        is_news |= waited;
        count += 1;
        outlook.elsewhere.store(count >= request.quorum && first_is_missing && !is_news, Ordering::Relaxed);
    }
}

/// Free or not, a master that answers with errors gives nothing; one that is not there will not say when.
fn may_grant(master: &Master, request: &Request, vote: &Vote) -> bool {
    let is_well = matches!(vote, Ok(_) | Err(Error::NotSent | Error::NotAwaited | Error::NoAnswer | Error::Forgotten));
    is_well && request.resources.iter().all(|resource| master.is_linked(resource))
}

/// Wait until all resources may be free at this master; without end if that cannot be known. Whether they were not so
/// from the start.
async fn until_free_at(master: &Master, request: &Request, handle: &Handle, outlook: &Outlook) -> bool {
    let Ok(mut holds) = of_each(&request.resources, |resource| Hold::look(master, resource, handle)).await else {
        return pending().await;
    };
    if holds.iter().all(|hold| hold.change.is_some()) {
        outlook.watched.fetch_add(1, Ordering::Relaxed);
    }
    let waits = holds.iter().any(|hold| hold.expires.is_none_or(|at| at > handle.now()));
    join_all(holds.iter_mut().map(|hold| hold.over(handle, outlook))).await;
    waits
}

/// What one master knows of one resource.
struct Hold {
    /// When it becomes free by itself, if ever.
    expires: Option<Instant>,
    /// Tells when it changes before that, if the master can.
    change: Option<Change>,
}

impl Hold {
    /// How long it will be held; from that question on, changes are told.
    async fn look(master: &Master, resource: &[u8], handle: &Handle) -> Result<Self, Error> {
        let (pttl, change) = (script::pttl(resource), Mutex::new(None));
        let exchange = |link: Link| {
            let (pttl, change) = (&pttl, &change);
            async move {
                let told = link.change_of(resource);
                let (tracked, ttl) = join(link.track(), link.call(pttl, None)).await;
                match tracked {
                    Ok(()) => *locked(change) = told,
                    Err(why) => master.cannot_be_watched(&why),
                }
                ttl.map(forgiven)
            }
        };
        let reply = master.call(resource, exchange, || true).await?.value;
        let expires = script::expiry(reply).inspect_err(|why| master.cannot_be_watched(why))?;
        let expires = if planted::is(Bug::AskAgain) { Some(Duration::from_millis(5)) } else { expires };
        let expires = expires.map(|ttl| handle.now().after(ttl));
        let change = locked(&change).take();
        Ok(Self { expires, change })
    }

    async fn over(&mut self, handle: &Handle, outlook: &Outlook) {
        let expired = self.expires.map_or(Either::Right(pending()), |at| Either::Left(handle.sleep_until(at)));
        let changed = async {
            if let Some(change) = &mut self.change {
                if change.told().await.is_ok() {
                    return;
                }
                outlook.blind.store(true, Ordering::Relaxed);
            }
            pending::<()>().await;
        };
        select(expired, std::pin::pin!(changed)).await;
    }
}

/// A master that may not be asked for a TTL votes as well as any other: its error is nothing to hold against it, unless it
/// says where to ask instead.
fn forgiven(reply: Value) -> Value {
    match reply {
        Value::ServerError(error) if error.code() != "MOVED" => Value::Array(vec![Value::ServerError(error)]),
        other => other,
    }
}
