//! How operations ended, as Python sees it.

use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::clock::{BootClock, Clock, Instant};
use crate::engine::acquire::{self, Token, Vote};
use crate::engine::extend::{self, Extended};
use crate::engine::inspect::Sighting;
use crate::engine::release;
use crate::script::{Claim, Extension, Grant, Release};

/// The result of any operation.
pub(super) enum Outcome {
    Acquired(Result<acquire::Held, Vec<Vote>>),
    Released(Vec<release::Answer>),
    Extended(Result<Extended, Vec<extend::Answer>>),
    Inspected(Vec<Sighting>),
}

impl Outcome {
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Self::Acquired(Ok(held)) => Held::from(held).into_bound_py_any(py),
            Self::Acquired(Err(votes)) => Ok(PyList::new(py, texts(&votes))?.into_any()),
            Self::Released(answers) => Ok(PyList::new(py, texts(&answers))?.into_any()),
            Self::Extended(Ok(extended)) => Held::from(extended).into_bound_py_any(py),
            Self::Extended(Err(answers)) => Ok(PyList::new(py, texts(&answers))?.into_any()),
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
    Granted(Vec<Vote>),
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
    fn votes(&self) -> Vec<String> {
        match &self.votes {
            Votes::Granted(votes) => texts(votes),
            Votes::Extended(answers) => texts(answers),
        }
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

/// A word for what a master said.
trait Word {
    fn word(&self) -> &'static str;
}

impl Word for Grant {
    fn word(&self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
        }
    }
}

impl Word for Release {
    fn word(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Absent => "absent",
        }
    }
}

impl Word for Extension {
    fn word(&self) -> &'static str {
        match self {
            Self::Extended => "extended",
            Self::Taken => "taken",
            Self::Absent => "absent",
        }
    }
}

fn texts<T: Word, E: std::fmt::Display>(said: &[Result<T, E>]) -> Vec<String> {
    let text = |one: &Result<T, E>| match one {
        Ok(answer) => answer.word().to_owned(),
        Err(error) => error.to_string(),
    };
    said.iter().map(text).collect()
}

/// `(key, ttl_ms, error)`; without key and error, nobody holds the lock there.
fn sighting(sighting: Sighting) -> (Option<Vec<u8>>, Option<u64>, Option<String>) {
    match sighting {
        Ok(Some(holder)) => (Some(holder.key), holder.ttl_ms, None),
        Ok(None) => (None, None, None),
        Err(error) => (None, None, Some(error.to_string())),
    }
}
