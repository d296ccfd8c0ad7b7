//! Giving a lock back: compare and delete on every master.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{BoxFuture, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::{Cmd, Value};

use crate::claim::Claim;
use crate::engine::owed::{Debt, What};
use crate::engine::{Masters, of_each};
use crate::error::Error;
use crate::lease::Reason;
use crate::master::Master;
use crate::master::link::Link;
use crate::planted::{self, Bug};
use crate::quorum;
use crate::runtime::Handle;
use crate::script::{self, CompareAndDelete, Release};

/// What one master said to a release.
pub type Answer = Result<Release, Error>;

/// Why a release did not do what was asked; `None` if some master still had the lock, and a quorum has it no more.
#[must_use]
pub fn why_not(answers: &[Answer], quorum: usize) -> Option<Reason> {
    let answered = answers.iter().filter(|answer| !answer.as_ref().is_err_and(Error::is_failure)).count();
    match answers.contains(&Ok(Release::Released)) {
        _ if answered < quorum => Some(Reason::Unavailable),
        true => None,
        false => Some(Reason::Expired),
    }
}

/// How a release treats one master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Tell it and wait for its answer.
    Await,
    /// Tell it as soon as possible, but do not wait.
    Tell,
    /// Another session tells it, behind what that has sent.
    Elsewhere,
    /// It cannot have the claim.
    Skip,
}

/// How often a release looks whether another session's was confirmed.
const LOOKS: Duration = Duration::from_millis(5);

/// Release `claim` on every master; returns when a quorum has confirmed it.
///
/// The others have half as long again for their answers, and are not waited for any longer: the release is on its way to
/// them. One that is down or hung is told when it can be, but waited for only if there is no quorum without it, or if it is
/// down and its turn to be tried has come. Never fails: what a minority says, or does not say, is in the answers.
/// Source: "Releasing the lock" in the Redis documentation.
pub async fn release(masters: &Masters, claim: &Arc<Claim>) -> Vec<Answer> {
    // What the caller knows by its key alone may be known better.
    let claim = &masters.owed.known(claim).unwrap_or_else(|| Arc::clone(claim));
    claim.give_back();
    let treatment = treatment(masters, claim);
    // What another session has sent that takes it is released there, behind that. Here it is, behind what this one has sent.
    let is_elsewhere = |index: usize, master: &Master| {
        claim.unanswered_at(index) > master.unanswered(claim) && !planted::is(Bug::Overtakes)
    };
    let elsewhere: Vec<bool> = masters.iter().enumerate().map(|(index, master)| is_elsewhere(index, master)).collect();
    let told_here = |index: usize, master: &Master| {
        let is_nothing_here = elsewhere[index] && master.unanswered(claim) == 0;
        if is_nothing_here { Treatment::Elsewhere } else { treatment(index, master) }
    };
    let answers = release_where(masters, claim, told_here).await;
    owe_releases(masters, claim, &answers, &elsewhere);
    answers
}

/// Masters that have not confirmed the release are told once more, over another connection, until they have forgotten
/// the lock by themselves.
fn owe_releases(masters: &Masters, claim: &Arc<Claim>, answers: &[Answer], elsewhere: &[bool]) {
    let is_owed = |index: usize| is_unconfirmed(&answers[index]) || elsewhere[index];
    if !planted::is(Bug::ToldOnce) {
        let owed = (0..masters.len()).filter(|&index| is_owed(index));
        masters.owe(owed.map(|index| debt(masters, claim, index, !elsewhere[index])).collect());
    }
}

/// The same for an attempt that came to nothing: what is on its way to a master gets there.
pub(super) fn owe_undone(masters: &Masters, claim: &Arc<Claim>, answers: &[Answer]) {
    let unconfirmed = answers.iter().enumerate().filter(|(_, answer)| is_unconfirmed(answer));
    masters.owe(unconfirmed.map(|(index, _)| debt(masters, claim, index, true)).collect());
}

/// Whether a release may not have arrived, or was not carried out yet.
fn is_unconfirmed(answer: &Answer) -> bool {
    use Error::{Closed, Connect, Forgotten, NoAnswer, NotAwaited, Setup};
    answer.as_ref().is_err_and(|error| {
        matches!(error, NotAwaited | NoAnswer | Closed | Forgotten | Connect(_) | Setup(_)) || error.is_passing()
    })
}

fn debt(masters: &Masters, claim: &Arc<Claim>, master: usize, is_sent: bool) -> Debt {
    let until = masters.handle().now().after(masters.longest_ttl());
    Debt { claim: Arc::clone(claim), master, what: What::Release, is_sent, until, drift: Duration::ZERO }
}

/// How each master is treated now.
fn treatment(masters: &Masters, claim: &Arc<Claim>) -> impl Fn(usize, &Master) -> Treatment {
    let claim = Arc::clone(claim);
    let quorum = quorum::majority(masters.len());
    let needs_suspects = masters.needs_suspects(quorum);
    let awaited = masters.awaited(quorum);
    move |index: usize, master: &Master| {
        if claim.cannot_be_at(index) {
            return Treatment::Skip;
        }
        // It may be back any moment, with the key: one refused connection is cheaper than a lock that nobody holds.
        let is_suspect = !awaited[index] || (master.is_hung() && !needs_suspects);
        if is_suspect { Treatment::Tell } else { Treatment::Await }
    }
}

/// Release `claim`, treating each master as `treatment` says; returns as [`release`] does.
pub(super) async fn release_where(
    masters: &Masters,
    claim: &Arc<Claim>,
    treatment: impl Fn(usize, &Master) -> Treatment,
) -> Vec<Answer> {
    let mut round = Round::new(masters, claim);
    for (index, master) in masters.iter().enumerate() {
        let (master, claim) = (Arc::clone(master), Arc::clone(claim));
        match treatment(index, &master) {
            Treatment::Await => round.ask(index, master, claim),
            Treatment::Tell => {
                round.answers[index] = Err(Error::NoAnswer);
                masters.handle().spawn(async move { _ = tell(master, claim, index).await });
            }
            Treatment::Elsewhere => round.elsewhere.push(index),
            Treatment::Skip => {}
        }
    }
    round.run().await
}

/// The answers to one release, as they come in.
struct Round<'a> {
    masters: &'a Masters,
    claim: &'a Claim,
    /// The masters that other sessions tell.
    elsewhere: Vec<usize>,
    asked: FuturesUnordered<BoxFuture<'static, (usize, Answer)>>,
    answers: Vec<Answer>,
    /// How many commands there are still to be written.
    unsent: Arc<AtomicUsize>,
}

impl<'a> Round<'a> {
    fn new(masters: &'a Masters, claim: &'a Claim) -> Self {
        let answers = vec![Err(Error::NotSent); masters.len()];
        Self { masters, claim, elsewhere: Vec::new(), asked: FuturesUnordered::new(), answers, unsent: Arc::default() }
    }

    fn ask(&mut self, index: usize, master: Arc<Master>, claim: Arc<Claim>) {
        self.answers[index] = Err(Error::NotAwaited);
        let sending = Sending::new(planted::released(&claim.resources).len(), &self.unsent);
        let ask = ask_or_tell(master, claim, index, self.masters.handle().clone(), sending);
        self.asked.push(ask.map(move |answer| (index, answer)).boxed());
    }

    /// Wait until a quorum has confirmed it, and the others have been sent it. They have half as long again: those that
    /// are as near answer in that time, and one that is far, or does not answer, does not make the caller wait for it.
    async fn run(mut self) -> Vec<Answer> {
        let (count, handle) = (self.masters.len(), self.masters.handle());
        let quorum = if planted::is(Bug::AwaitsAll) { count } else { quorum::majority(count) };
        let start = handle.now();
        let is_confirmed = |round: &Self| round.confirmed() >= quorum;
        if self.elsewhere.is_empty() {
            self.take_until(is_confirmed).await;
        }
        // What is confirmed to another session wakes no task of this one.
        while !is_confirmed(&self) && !self.asked.is_empty() {
            select(pin!(self.take_until(is_confirmed)), handle.sleep(LOOKS)).await;
        }
        if !self.asked.is_empty() {
            let took = handle.now().since(start);
            select(pin!(self.take_until(|_| false)), handle.sleep(took / 2)).await;
            self.take_until(|round| round.unsent.load(Ordering::Relaxed) == 0).await;
        }
        handle.spawn(self.asked.for_each(|_| std::future::ready(())));
        self.answers
    }

    fn confirmed(&self) -> usize {
        let elsewhere = self.elsewhere.iter().filter(|&&index| self.claim.is_released_at(index));
        self.answers.iter().filter(|answer| answer.is_ok()).count() + elsewhere.count()
    }

    /// Take in answers until that is enough, or all have answered.
    async fn take_until(&mut self, is_enough: impl Fn(&Self) -> bool) {
        poll_fn(|cx| {
            while !is_enough(self) {
                match self.asked.poll_next_unpin(cx) {
                    Poll::Ready(Some((index, answer))) => self.answers[index] = answer,
                    Poll::Ready(None) => break,
                    Poll::Pending if is_enough(self) => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// The commands of one release to one master that are not written yet.
struct Sending {
    left: AtomicUsize,
    in_all: Arc<AtomicUsize>,
}

impl Sending {
    fn new(commands: usize, in_all: &Arc<AtomicUsize>) -> Self {
        in_all.fetch_add(commands, Ordering::Relaxed);
        Self { left: AtomicUsize::new(commands), in_all: Arc::clone(in_all) }
    }

    /// One is about to be written. One that a cluster sends elsewhere counts once.
    fn note_sent(&self) {
        if self.left.load(Ordering::Relaxed) > 0 {
            self.left.fetch_sub(1, Ordering::Relaxed);
            self.in_all.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What was not sent by the end is not waited for any longer.
impl Drop for Sending {
    fn drop(&mut self) {
        self.in_all.fetch_sub(*self.left.get_mut(), Ordering::Relaxed);
    }
}

/// Wait for the answer. A connection that was waited for in vain carries the release all the same, when it is there.
async fn ask_or_tell(master: Arc<Master>, claim: Arc<Claim>, index: usize, handle: Handle, sending: Sending) -> Answer {
    let answer = ask(&master, &claim, &sending).await;
    drop(sending);
    if answer.is_ok() {
        claim.note_released(index);
    }
    if answer == Err(Error::NoAnswer) && master.is_connecting() {
        handle.spawn(async move { _ = tell(master, claim, index).await });
    }
    answer
}

async fn ask(master: &Master, claim: &Claim, sending: &Sending) -> Answer {
    let ask_for = |resource| ask_for(resource, master, claim, sending);
    let answers = of_each(planted::released(&claim.resources), ask_for).await?;
    Ok(if answers.contains(&Release::Absent) { Release::Absent } else { Release::Released })
}

async fn ask_for(resource: &[u8], master: &Master, claim: &Claim, sending: &Sending) -> Answer {
    let exchange = |link: Link| async move {
        if planted::is(Bug::UnlockWithoutCompare) {
            return link.call(&planted::plain_delete(resource, &claim.key), None).await;
        }
        link.note_release(claim);
        let way = link.release_by().for_script(&claim.script);
        // A quorum may have decided when a `NOSCRIPT` comes: the first release of a connection brings the script.
        let is_unknown = way == CompareAndDelete::Evalsha && !link.knows_script();
        let way = if is_unknown { CompareAndDelete::Eval } else { way };
        sending.note_sent();
        let fits = claim.script.fits();
        let reply = compare_and(link.clone(), way, || true, |way| way.release(claim, resource), fits).await;
        if matches!(&reply, Ok(value) if !matches!(value, Value::ServerError(_))) {
            link.note_script();
        }
        reply
    };
    script::release(master.call_to_release(resource, exchange, || !claim.is_forgotten()).await?.value)
}

/// Release where nobody waits for the answer, so that nobody may be there for a `NOSCRIPT`: the script goes along.
pub(super) async fn tell(master: Arc<Master>, claim: Arc<Claim>, index: usize) -> Result<(), Error> {
    let replies = of_each(planted::released(&claim.resources), |resource| tell_of(resource, &master, &claim)).await?;
    let answers: Result<Vec<_>, _> = replies.into_iter().map(script::release).collect();
    answers.map(|_| claim.note_released(index))
}

async fn tell_of(resource: &[u8], master: &Master, claim: &Claim) -> Result<Value, Error> {
    let exchange = |link: Link| {
        link.note_release(claim);
        let release = link.release_by().release_in_full(claim, resource);
        async move { link.call(&release, None).await }
    };
    master.call_to_release_later(resource, exchange, || !claim.is_forgotten()).await.map(|answer| answer.value)
}

/// Send `command` in the cheapest way the master has and allows, from `way` on, while it is wanted; an answer that does not
/// fit is another command's.
pub(super) async fn compare_and(
    link: Link,
    mut way: CompareAndDelete,
    wanted: impl Fn() -> bool,
    command: impl Fn(CompareAndDelete) -> Cmd,
    fits: fn(&Value) -> bool,
) -> Result<Value, Error> {
    loop {
        if !wanted() {
            return Err(Error::NotSent);
        }
        let reply = link.call_expecting(&command(way), None, fits).await?;
        let Value::ServerError(error) = &reply else { return Ok(reply) };
        let Some(next) = way.fallback(error) else { return Ok(reply) };
        if error.code() != "NOSCRIPT" {
            link.set_release_by(next);
        }
        way = next;
    }
}
