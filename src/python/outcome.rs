//! How operations ended, as Python sees it.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::engine::acquire::{Held, Vote};
use crate::engine::release::Answer;
use crate::script::{Grant, Release};

/// The result of any operation.
pub(super) enum Outcome {
    Acquired(Result<Held, Vec<Vote>>),
    Released(Vec<Answer>),
}

impl Outcome {
    pub(super) fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Acquired(Ok(held)) => granted(py, held),
            Self::Acquired(Err(votes)) => Ok(PyList::new(py, votes.iter().map(vote_text))?.into_any()),
            Self::Released(answers) => Ok(PyList::new(py, answers.iter().map(answer_text))?.into_any()),
        }
    }
}

fn granted<'py>(py: Python<'py>, held: &Held) -> PyResult<Bound<'py, PyAny>> {
    let validity_ms = held.validity_ms.into_pyobject(py)?.into_any();
    let key = PyBytes::new(py, &held.claim.key).into_any();
    Ok(PyTuple::new(py, [validity_ms, key])?.into_any())
}

fn vote_text(vote: &Vote) -> String {
    match vote {
        Ok(Grant::Granted) => "granted".to_owned(),
        Ok(Grant::Refused) => "refused".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn answer_text(answer: &Answer) -> String {
    match answer {
        Ok(Release::Released) => "released".to_owned(),
        Ok(Release::Absent) => "absent".to_owned(),
        Err(error) => error.to_string(),
    }
}
