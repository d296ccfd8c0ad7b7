use super::*;
use redlock::claim::{Claim, Decision};
use redlock::clock::Instant;
use redlock::engine::extend::{self, extend};
use redlock::error::Error;

const MS: Duration = Duration::from_millis(1);

fn claim() -> Arc<Claim> {
    Arc::new(Claim::new(vec![b"r".to_vec()], b"key".to_vec(), Arc::default()))
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

/// Of one master.
fn extension(claim: Arc<Claim>, valid_until: Instant) -> extend::Request {
    extend::Request {
        claim,
        ttl_ms: TTL_MS,
        drift_ms: DRIFT_MS,
        quorum: 1,
        valid_until: Some(valid_until),
        is_given_back: Arc::default(),
    }
}

#[test]
fn a_connection_does_not_release_what_an_extension_over_another_one_has_counted() {
    for is_counted in [false, true] {
        let mut stage = Stage::new(3, &[]);
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
