//! What can go wrong between the engine and one master.

use std::sync::Arc;

use redis::RedisError;

use crate::master::guard::Cause;

/// Characters of a server's words that are worth a log line.
const LONGEST_TEXT: usize = 300;

/// With these a server refuses what it may soon do: it loads its data, a script keeps it busy, its cluster changes, too
/// few replicas follow it, its disk is full.
pub(crate) const PASSING: [&str; 8] =
    ["LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "NOREPLICAS", "MISCONF"];

/// Why a master gave no vote. Cloned to everybody who waits for the same connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// The master did not answer in time; its connection is given up.
    #[error("no answer")]
    NoAnswer,
    /// The connection was idle and then silent, while a new one was made at once: something on the way had forgotten it.
    #[error("the connection was forgotten")]
    Forgotten,
    /// The round was decided before there was a connection to send on.
    #[error("not asked")]
    NotSent,
    /// The round was decided before its answer came.
    #[error("not awaited")]
    NotAwaited,
    /// It has the lock, and a release of it is still on its way there.
    #[error("about to lose it")]
    Withdrawn,
    /// The connection ended before the answer came.
    #[error("connection closed")]
    Closed,
    /// No connection could be made: resolving, connecting, TLS.
    #[error("cannot connect: {0}")]
    Connect(Arc<str>),
    /// The master refuses us, or is not a master: wrong password, missing rights, a replica. It will not mend itself.
    #[error("{0}")]
    Setup(Arc<str>),
    /// Its vote is not relied on for now.
    #[error("not relied on: {0}")]
    Doubtful(Cause),
    /// The master runs no fencing scripts: it has none, or we have not the rights. It will not mend itself.
    #[error("no fencing: {0}")]
    Unfenced(Arc<str>),
    /// The master answered with an error, as it worded it.
    #[error("{0}")]
    Reply(Arc<str>),
}

impl Error {
    /// Whether asking the same master again costs time: nobody waits for one that kept silent.
    #[must_use]
    pub const fn is_slow(&self) -> bool {
        matches!(self, Self::NoAnswer)
    }

    /// Whether the master gave no vote although it was asked for one, and waited for.
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        !matches!(self, Self::NotSent | Self::NotAwaited)
    }

    /// Whether the master answered with an error that will pass.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Reply(text) if text.split(' ').next().is_some_and(|code| PASSING.contains(&code)))
    }

    /// An I/O error met while connecting.
    #[must_use]
    pub fn connect(error: &dyn std::fmt::Display) -> Self {
        Self::Connect(one_line(&error.to_string()).into())
    }

    /// An error of the master's own.
    #[must_use]
    pub fn reply(error: &dyn std::fmt::Display) -> Self {
        Self::Reply(one_line(&error.to_string()).into())
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some(_) => Self::reply(&server_text(&error)),
            None if error.is_connection_dropped() || error.is_io_error() => Self::Closed,
            None => Self::reply(&error),
        }
    }
}

impl From<redis::ServerError> for Error {
    fn from(error: redis::ServerError) -> Self {
        RedisError::from(error).into()
    }
}

/// The server's own words: `CODE detail`, without redis-rs's decoration, and without the arguments that some errors quote:
/// keys of locks are among them.
pub(crate) fn server_text(error: &RedisError) -> String {
    let detail = error.detail().map(|detail| detail.split(", with args beginning with").next().unwrap_or_default());
    one_line(&match (error.code(), detail) {
        (Some(code), Some(detail)) => met_by_script(detail).map_or_else(|| format!("{code} {detail}"), str::to_owned),
        (Some(code), None) => code.to_owned(),
        (None, _) => error.to_string(),
    })
}

/// The error that a command met inside a script. Redis before 7.0 tells of it in an error of its own:
/// `ERR Error running script (call to f_…): @user_script:1: @user_script: 1: -READONLY You can't write …`.
fn met_by_script(detail: &str) -> Option<&str> {
    detail.strip_prefix("Error running script")?.split_once("@user_script")?.1.split_once(": -").map(|(_, error)| error)
}

/// Whether a server refuses to write because it is a replica.
pub(crate) fn is_read_only(error: &redis::ServerError) -> bool {
    error.code() == "READONLY"
        || error.details().and_then(met_by_script).is_some_and(|error| error.starts_with("READONLY "))
}

/// A server's words as a part of one line of a log: a bulk error may have lines of its own, and go on for pages.
fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
    text.chars().map(plain).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(text: &str) -> redis::ServerError {
        match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_command_met_inside_a_script_is_what_counts() {
        let old =
            "ERR Error running script (call to f_7f9c): @user_script:1: @user_script: 1: -READONLY You can't write.";
        for text in [old, "READONLY You can't write."] {
            let error = server_error(text);
            assert!(is_read_only(&error), "{text}");
            assert_eq!(Error::from(error), Error::Reply("READONLY You can't write.".into()));
        }
    }

    #[test]
    fn other_errors_of_scripts_are_told_as_they_are() {
        for text in ["ERR Error running script (call to f_7f9c): @user_script:1: oops", "ERR READONLY is no code here"]
        {
            let error = server_error(text);
            assert!(!is_read_only(&error), "{text}");
            assert_eq!(Error::from(error), Error::Reply(text.into()));
        }
    }
}
