use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use redlock::claim::{Claim, Decision};
use redlock::clock::Instant;
use redlock::engine::extend::{self, extend};
use redlock::engine::release;
use redlock::error::Error;
use redlock::script::Release;

const MS: Duration = Duration::from_millis(1);

fn claim() -> Arc<Claim> {
    Arc::new(Claim::of_key(vec![b"r".to_vec()], b"key".to_vec(), Arc::default()))
}

/// Nothing answers a greeting by itself.
fn silent(masters: usize) -> Stage<'static> {
    let mut stage = Stage::new(masters, &[]);
    stage.sulking.fill(true);
    stage
}

impl Stage<'_> {
    /// Answer all of the greeting.
    fn greet_all(&mut self, master: usize) {
        while self.greet(master) {
            self.turn();
        }
    }

    fn pass(&mut self, duration: Duration) {
        self.world.pass(duration);
        self.turn();
    }
}

#[test]
fn a_grant_that_comes_along_with_the_new_connection_is_not_taken_back() {
    let mut stage = silent(1);
    let (request, (_keep, cancel)) = (stage.request(), oneshot::channel());
    let inspected = stage.session.start(|masters| async move { release(&masters, &claim()).await });
    stage.turn();
    stage.greet_all(0);
    stage.world.nth(0, |connection| answer_all(connection, Says::Yes));
    stage.turn();
    drop(inspected);
    // Idle for so long that it may be forgotten, and then silent.
    stage.pass(2000 * MS);
    let mut result = stage.session.start(|masters| async move { acquire(&masters, &request, cancel.fuse()).await });
    stage.turn();
    stage.pass(100 * MS);
    // All but the end of the new one's greeting.
    while stage.world.nth(1, |connection| connection.unanswered().is_some_and(|command| command[0] == b"HELLO")) {
        stage.greet(0);
        stage.turn();
    }
    assert_eq!(stage.world.nth(1, |connection| connection.unanswered().unwrap()[0].clone()), b"EVAL");
    assert!(stage.greet(0));
    stage.world.nth(0, |connection| answer_all(connection, Says::Yes));
    stage.turn();
    assert!(result.try_recv().unwrap().is_ok());
    assert_eq!(stage.world.nth(0, |connection| connection.names()).last().unwrap(), "SET");
}

#[test]
fn a_connection_that_comes_before_the_last_answer_carries_the_release() {
    let mut stage = silent(2);
    let mut result = stage.session.start(|masters| async move { release(&masters, &claim()).await });
    stage.turn();
    stage.pass(400 * MS);
    stage.greet_all(1);
    // The other one is not waited for any longer.
    stage.pass(200 * MS);
    stage.greet_all(0);
    stage.world.open(1, |connection| answer_all(connection, Says::Yes));
    stage.turn();
    assert_eq!(result.try_recv().unwrap()[0], Err(Error::NoAnswer));
    let told = stage.world.open(0, |connection| connection.unanswered().is_some_and(|command| command[4] == b"key"));
    assert_eq!(told, Some(true));
}

impl Stage<'_> {
    fn answer(&mut self, masters: impl IntoIterator<Item = usize>) {
        for master in masters {
            self.world.open(master, |connection| answer_all(connection, Says::Yes));
        }
        self.turn();
    }

    /// Take a lock, which these masters grant, and begin to release it, 2 ms before they say that they have done so.
    fn lock_and_release(&mut self, masters: &[usize]) -> oneshot::Receiver<Vec<release::Answer>> {
        let (request, (_keep, cancel)) = (self.request(), oneshot::channel());
        let mut result = self.session.start(|masters| async move { acquire(&masters, &request, cancel.fuse()).await });
        self.turn();
        self.answer(masters.iter().copied());
        let claim = result.try_recv().unwrap().unwrap().claim;
        let result = self.session.start(|masters| async move { release(&masters, &claim).await });
        self.turn();
        self.pass(2 * MS);
        self.answer(masters.iter().copied());
        result
    }
}

const ALL_BUT_ONE: [Result<Release, Error>; 3] = [Ok(Release::Released), Ok(Release::Released), Err(Error::NotAwaited)];

#[test]
fn a_release_is_over_when_a_quorum_has_confirmed_it() {
    let mut stage = Stage::new(3, &[]);
    let mut result = stage.lock_and_release(&[0, 1, 2]);
    assert_eq!(result.try_recv().unwrap(), [const { Ok(Release::Released) }; 3]);
    let mut result = stage.lock_and_release(&[0, 1]);
    assert!(result.try_recv().is_err(), "the third has half as long again");
    stage.pass(MS);
    assert_eq!(result.try_recv().unwrap(), ALL_BUT_ONE);
    let sent = stage.world.open(2, |connection| connection.names()).unwrap();
    assert_eq!(sent[sent.len() - 2..], ["SET", "EVALSHA"]);
    assert!(!stage.session.awaits(None), "what the third owes is released behind it, over the same connection");
}

#[test]
fn the_first_release_of_a_connection_brings_the_script() {
    let mut stage = Stage::new(3, &[]);
    let mut result = stage.lock_and_release(&[0, 1]);
    stage.pass(MS);
    assert_eq!(result.try_recv().unwrap(), ALL_BUT_ONE);
    let sent = stage.world.open(2, |connection| connection.names()).unwrap();
    assert_eq!(sent[sent.len() - 2..], ["SET", "EVAL"], "no later answer has to be waited for");
}

/// Notes whether there was something to settle.
#[derive(Clone, Default)]
struct Noted(Arc<AtomicBool>);

impl Keeper for Noted {
    fn settle(&self) -> bool {
        self.0.store(true, Ordering::Relaxed);
        true
    }

    fn look(&self) {}
}

#[test]
fn nothing_is_owed_for_a_lock_that_others_hold() {
    let noted = Noted::default();
    let mut stage = Stage::owing(3, &[], Arc::new(Owed::new(Box::new(noted.clone()))));
    let request = Request { tries: 1, ..stage.request() };
    let (_keep, cancel) = oneshot::channel();
    let mut result = stage.session.start(|masters| async move { acquire(&masters, &request, cancel.fuse()).await });
    stage.turn();
    for _ in ["SET", "its release"] {
        (0..3).for_each(|master| _ = stage.world.open(master, |connection| answer_all(connection, Says::No)));
        stage.turn();
    }
    assert!(result.try_recv().unwrap().is_err());
    assert!(!noted.0.load(Ordering::Relaxed), "the third has answered as the others, though two decided");
}

/// Take a lock while the third master is still connecting, and connect to that soon after the grant. Returns how many
/// grants the caller is told of.
fn grants_where_one_connects_late(is_last_call: bool) -> usize {
    let mut stage = silent(3);
    let (request, (_keep, cancel)) = (stage.request(), oneshot::channel());
    let mut result = stage.session.start(|masters| async move {
        masters.expect_last_call(is_last_call);
        acquire(&masters, &request, cancel.fuse()).await
    });
    stage.turn();
    for master in [0, 1] {
        stage.greet_all(master);
        stage.world.open(master, |connection| answer_all(connection, Says::Yes));
    }
    stage.turn();
    assert_eq!(result.try_recv().is_err(), is_last_call);
    stage.pass(5 * MS);
    stage.greet_all(2);
    stage.world.open(2, |connection| answer_all(connection, Says::Yes));
    stage.turn();
    let sent = stage.world.open(2, |connection| connection.names()).unwrap();
    assert!(sent.contains(&"SET".to_owned()));
    result.try_recv().map_or(0, |held| held.unwrap().votes.iter().filter(|vote| vote.is_ok()).count())
}

#[test]
fn the_last_call_of_a_process_reaches_masters_that_connect_late() {
    assert_eq!(grants_where_one_connects_late(true), 3);
    assert_eq!(grants_where_one_connects_late(false), 0, "its result was there before");
}

/// Of one master.
fn extension(claim: Arc<Claim>, valid_until: Instant) -> extend::Request {
    extend::Request { claim, ttl_ms: TTL_MS, drift_ms: DRIFT_MS, quorum: 1, valid_until: Some(valid_until) }
}

#[test]
fn a_connection_does_not_release_what_an_extension_over_another_one_has_counted() {
    for is_counted in [false, true] {
        let mut stage = Stage::unfinished(3);
        let (request, (_keep, cancel)) = (stage.request(), oneshot::channel());
        let mut result = stage.session.start(|masters| async move { acquire(&masters, &request, cancel.fuse()).await });
        stage.turn();
        for master in [0, 1] {
            stage.world.open(master, |connection| answer_all(connection, Says::Yes));
        }
        stage.turn();
        let held = result.try_recv().unwrap().unwrap();
        assert!(held.claim.is_unanswered_at(2) && !held.claim.is_unanswered_at(1));
        assert!(!is_counted || held.claim.decide(2, Decision::Counted));
        stage.pass(2000 * MS);
        assert!(!held.claim.is_unanswered_at(2), "the connection was given up");
        let last = stage.world.nth(2, |connection| connection.names()).pop().unwrap();
        assert_eq!(last, if is_counted { "SET" } else { "EVAL" });
    }
}

#[test]
fn an_extension_does_not_count_a_master_to_which_a_release_is_on_its_way() {
    let mut stage = Stage::new(1, &[]);
    let request = extension(claim(), stage.world.now().after(1000 * MS));
    assert!(request.claim.decide(0, Decision::Withdrawn));
    let mut result = stage.session.start(|masters| async move { extend(&masters, &request).await });
    stage.turn();
    stage.world.open(0, |connection| connection.answer(b"$3\r\nkey\r\n"));
    stage.turn();
    assert_eq!(result.try_recv().unwrap().unwrap_err(), [Err(Error::Withdrawn)]);
}

#[test]
fn an_extension_that_is_over_is_sent_to_no_master() {
    let mut stage = silent(1);
    let request = extension(claim(), stage.world.now().after(100 * MS));
    let mut result = stage.session.start(|masters| async move { extend(&masters, &request).await });
    stage.turn();
    stage.pass(100 * MS);
    assert!(result.try_recv().unwrap().is_err());
    stage.session.leave();
    stage.world.pass(2000 * MS);
    stage.session.resume();
    stage.turn();
    stage.greet_all(0);
    let command = stage.world.open(0, |connection| connection.unanswered().cloned());
    assert_eq!(command, Some(None));
}

#[test]
fn an_answer_that_lay_there_while_the_connection_was_idle_does_not_make_it_one_in_use() {
    let mut stage = silent(1);
    let tell = |stage: &Stage<'_>| stage.session.start(|masters| async move { release(&masters, &claim()).await });
    let first = tell(&stage);
    stage.turn();
    stage.greet_all(0);
    stage.world.nth(0, |connection| answer_all(connection, Says::Yes));
    stage.session.leave();
    stage.world.pass(2000 * MS);
    stage.session.resume();
    stage.turn();
    let second = tell(&stage);
    stage.turn();
    stage.pass(100 * MS);
    assert_eq!(stage.world.open(0, |newest| newest.names()).unwrap(), ["HELLO"]);
    drop((first, second));
}
