//! The engine's rules, for those who count the votes of clients' own methods, and for those who tell callers of votes.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;

use crate::clock::Instant;
use crate::engine::acquire::{self, Refusal};
use crate::engine::{extend, release};
use crate::host::System;
use crate::python::lease::word;
use crate::python::operation::seconds;
use crate::python::outcome::Vote;
use crate::runtime::Effects;
use crate::{quorum, retry, token};

type Votes<'py> = Vec<PyRef<'py, Vote>>;

/// How many of so many masters must agree.
#[pyfunction]
pub(super) const fn majority(masters: usize) -> usize {
    quorum::majority(masters)
}

/// A fresh proof of ownership.
#[pyfunction]
pub(super) fn random_key(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &token::key(|bytes| System::default().fill_random(bytes)))
}

/// How many seconds to pause before the next try, and whether there is time for one, if so many seconds are left.
#[pyfunction]
pub(super) fn pause(delay: f64, left: f64) -> PyResult<(f64, bool)> {
    let pause = retry::jittered(seconds("delay", delay)?, &mut UnwrapErr(SysRng)).as_secs_f64();
    Ok((pause.min(left).max(0.0), pause < left))
}

/// For how many milliseconds what a quorum has granted or extended can be relied on, and until when; `None` if none has,
/// or if nothing is left of it `now`. The masters were asked from `start` on.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a Vec")]
pub(super) fn validity(
    said: Votes<'_>,
    quorum: usize,
    ttl_ms: u64,
    drift_ms: u64,
    start: f64,
    now: f64,
) -> PyResult<Option<(u64, f64)>> {
    let (start, now) = (instant("start", start)?, instant("now", now)?);
    if said.iter().filter(|vote| vote.agrees()).count() < quorum {
        return Ok(None);
    }
    let expires_at = quorum::expires_at(start, ttl_ms, drift_ms).since_zero().as_secs_f64();
    Ok(quorum::validity_ms(ttl_ms, now.since(start), drift_ms).map(|validity| (validity, expires_at)))
}

fn instant(name: &str, since_zero: f64) -> PyResult<Instant> {
    seconds(name, since_zero).map(Instant::from_zero)
}

/// Why a lock was not granted.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a Vec")]
pub(super) fn why_not_granted(said: Votes<'_>, quorum: usize) -> &'static str {
    let votes: Vec<_> = said.iter().map(|vote| vote.grant()).collect();
    match acquire::why_not(&votes, quorum) {
        Refusal::Contended => "contended",
        Refusal::Expired => "expired",
        Refusal::Unavailable => "unavailable",
        Refusal::Unfenced => "unfenced",
    }
}

/// Why a release did not do what was asked; `None` if it did.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a Vec")]
pub(super) fn why_not_released(said: Votes<'_>, quorum: usize) -> Option<&'static str> {
    let answers: Vec<_> = said.iter().map(|vote| vote.release()).collect();
    release::why_not(&answers, quorum).map(word)
}

/// Why a lock was not extended.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a Vec")]
pub(super) fn why_not_extended(said: Votes<'_>, quorum: usize) -> &'static str {
    let answers: Vec<_> = said.iter().map(|vote| vote.extension()).collect();
    word(extend::why_not(&answers, quorum))
}
