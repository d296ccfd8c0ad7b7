//! How operations ended, as Python sees it.

use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::claim::Claim;
use crate::clock::{BootClock, Clock, Instant};
use crate::engine::acquire::{self, Token};
use crate::engine::extend::{self, Extended};
use crate::engine::inspect::Sighting;
use crate::engine::release;
use crate::error::Error;
use crate::lease::Reason;
use crate::python::lease::word;
use crate::script::{Extension, Grant, Release};

/// The result of any operation.
pub(super) enum Outcome {
    Acquired(Result<acquire::Held, Vec<acquire::Vote>>),
    Released(Vec<release::Answer>),
    Extended(Result<Extended, Vec<extend::Answer>>),
    /// Why it was not extended, if it was not.
    LeaseExtended(Result<(), Reason>),
    /// What each master said, if it was not released before.
    LeaseReleased(Option<Vec<release::Answer>>),
    Inspected(Vec<Sighting>),
}

impl Outcome {
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Self::Acquired(Ok(held)) => Held::from(held).into_bound_py_any(py),
            Self::Acquired(Err(votes)) => Ok(PyList::new(py, all(&votes))?.into_any()),
            Self::Released(answers) => Ok(PyList::new(py, all(&answers))?.into_any()),
            Self::Extended(Ok(extended)) => Held::from(extended).into_bound_py_any(py),
            Self::Extended(Err(answers)) => Ok(PyList::new(py, all(&answers))?.into_any()),
            Self::LeaseExtended(result) => result.err().map(word).into_bound_py_any(py),
            Self::LeaseReleased(answers) => answers.map(|answers| all(&answers)).into_bound_py_any(py),
            Self::Inspected(sightings) => Ok(PyList::new(py, sightings.into_iter().map(sighting))?.into_any()),
        }
    }

    /// Whether nothing is left of what was acquired or extended.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        match self {
            Self::Acquired(Ok(held)) => validity_ms(held.expires_at, now) == 0,
            Self::Extended(Ok(extended)) => validity_ms(extended.expires_at, now) == 0,
            _ => false,
        }
    }

    /// The same, as if it had come too late for a round to succeed.
    pub(super) fn refused(self) -> Self {
        match self {
            Self::Acquired(Ok(held)) => Self::Acquired(Err(held.votes)),
            Self::Extended(Ok(extended)) => Self::Extended(Err(extended.answers)),
            other => other,
        }
    }

    /// What was taken, and must be given back if nobody wants the result.
    pub(super) fn taken(&self) -> Option<Arc<Claim>> {
        match self {
            Self::Acquired(Ok(held)) => Some(Arc::clone(&held.claim)),
            _ => None,
        }
    }
}

/// A lock that was acquired or extended.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Held {
    expires_at: Instant,
    claim: Arc<Claim>,
    votes: Votes,
    token: Option<Token>,
}

enum Votes {
    Granted(Vec<acquire::Vote>),
    Extended(Vec<extend::Answer>),
}

#[pymethods]
impl Held {
    #[getter]
    fn validity_ms(&self) -> u64 {
        validity_ms(self.expires_at, BootClock.now())
    }

    #[getter]
    fn expires_at(&self) -> f64 {
        self.expires_at.since_zero().as_secs_f64()
    }

    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.claim.key)
    }

    #[getter]
    fn token(&self) -> Option<u64> {
        self.token.map(|token| token.number)
    }

    #[getter]
    fn token_at_once(&self) -> bool {
        self.token.is_some_and(|token| token.at_once)
    }

    #[getter]
    fn votes(&self) -> Vec<Vote> {
        match &self.votes {
            Votes::Granted(votes) => all(votes),
            Votes::Extended(answers) => all(answers),
        }
    }
}

impl Held {
    /// What was taken.
    pub(super) fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.claim)
    }
}

impl From<acquire::Held> for Held {
    fn from(held: acquire::Held) -> Self {
        let acquire::Held { expires_at, claim, votes, token, .. } = held;
        Self { expires_at, claim, votes: Votes::Granted(votes), token }
    }
}

impl From<Extended> for Held {
    fn from(extended: Extended) -> Self {
        let Extended { expires_at, claim, answers, .. } = extended;
        Self { expires_at, claim, votes: Votes::Extended(answers), token: None }
    }
}

/// Whole milliseconds that are left.
fn validity_ms(expires_at: Instant, now: Instant) -> u64 {
    u64::try_from(expires_at.since(now).as_millis()).unwrap_or(u64::MAX)
}

/// What one master said: a vote, an answer to a release or an extension, or how it failed.
///
/// A failure is never equal to an answer, whatever its text: a server may answer with the error `refused`.
#[pyclass(frozen, eq, hash, module = "redlock._redlock")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Vote(Result<Answer, Error>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Granted,
    Refused,
    Released,
    Absent,
    Extended,
    Taken,
}

#[pymethods]
impl Vote {
    #[classattr]
    const GRANTED: Self = Self(Ok(Answer::Granted));
    #[classattr]
    const REFUSED: Self = Self(Ok(Answer::Refused));
    #[classattr]
    const NOT_ASKED: Self = Self(Err(Error::NotSent));
    #[classattr]
    const NOT_AWAITED: Self = Self(Err(Error::NotAwaited));
    #[classattr]
    const RELEASED: Self = Self(Ok(Answer::Released));
    #[classattr]
    const ABSENT: Self = Self(Ok(Answer::Absent));
    #[classattr]
    const EXTENDED: Self = Self(Ok(Answer::Extended));
    #[classattr]
    const TAKEN: Self = Self(Ok(Answer::Taken));

    /// A failure with this text.
    #[staticmethod]
    fn failure(text: &str) -> Self {
        Self(Err(Error::Reply(text.into())))
    }

    /// A master on which no fencing script can be run, because of this.
    #[staticmethod]
    fn unfenced(text: &str) -> Self {
        Self(Err(Error::Unfenced(text.into())))
    }

    /// Whether the master gave no vote, although it was asked for one.
    #[getter]
    fn is_failure(&self) -> bool {
        self.0.as_ref().is_err_and(Error::is_failure)
    }

    /// Whether it runs no fencing scripts.
    #[getter]
    const fn is_unfenced(&self) -> bool {
        matches!(self.0, Err(Error::Unfenced(_)))
    }

    /// A word is the same object each time: leases keep what was said.
    fn __str__<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        let text = self.text();
        if self.is_failure() { PyString::new(py, &text) } else { PyString::intern(py, &text) }
    }

    fn __repr__(&self) -> String {
        format!("<Vote: {}>", self.text())
    }
}

impl Vote {
    fn text(&self) -> String {
        let word = match &self.0 {
            Ok(Answer::Granted) => "granted",
            Ok(Answer::Refused) => "refused",
            Ok(Answer::Released) => "released",
            Ok(Answer::Absent) => "absent",
            Ok(Answer::Extended) => "extended",
            Ok(Answer::Taken) => "taken",
            Err(error) => return error.to_string(),
        };
        word.to_owned()
    }
}

impl From<Grant> for Answer {
    fn from(grant: Grant) -> Self {
        match grant {
            Grant::Granted => Self::Granted,
            Grant::Refused => Self::Refused,
        }
    }
}

impl From<Release> for Answer {
    fn from(release: Release) -> Self {
        match release {
            Release::Released => Self::Released,
            Release::Absent => Self::Absent,
        }
    }
}

impl From<Extension> for Answer {
    fn from(extension: Extension) -> Self {
        match extension {
            Extension::Extended => Self::Extended,
            Extension::Taken => Self::Taken,
            Extension::Absent => Self::Absent,
        }
    }
}

/// Back to what the engine's rules judge. An answer to another question is no consent to this one.
impl Vote {
    /// Whether it counts towards a quorum that holds a lock.
    pub(super) const fn agrees(&self) -> bool {
        matches!(self.0, Ok(Answer::Granted | Answer::Extended))
    }

    pub(super) fn grant(&self) -> acquire::Vote {
        self.0.clone().map(|answer| Grant::from(answer == Answer::Granted))
    }

    pub(super) fn release(&self) -> release::Answer {
        self.0.clone().map(|answer| match answer {
            Answer::Released => Release::Released,
            _ => Release::Absent,
        })
    }

    pub(super) fn extension(&self) -> extend::Answer {
        self.0.clone().map(|answer| match answer {
            Answer::Extended => Extension::Extended,
            Answer::Taken => Extension::Taken,
            _ => Extension::Absent,
        })
    }
}

fn all<T: Clone + Into<Answer>>(said: &[Result<T, Error>]) -> Vec<Vote> {
    said.iter().map(|one| Vote(one.clone().map(Into::into))).collect()
}

/// `(key, ttl_ms, error)`; without key and error, nobody holds the lock there.
fn sighting(sighting: Sighting) -> (Option<Vec<u8>>, Option<u64>, Option<String>) {
    match sighting {
        Ok(Some(holder)) => (Some(holder.key), holder.ttl_ms, None),
        Ok(None) => (None, None, None),
        Err(error) => (None, None, Some(error.to_string())),
    }
}
