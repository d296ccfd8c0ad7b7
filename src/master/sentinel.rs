//! A master that sentinels name. They are asked for each connection anew, which is how a failover is followed.

use std::time::Duration;

use redis::{ProtocolVersion, Value, cmd};

use crate::error::Error;
use crate::master::connect::{connect_to, log_in, setup_error};
use crate::master::endpoint::Endpoint;
use crate::master::health::Health;
use crate::master::link::Link;
use crate::runtime::{Handle, race};

/// How long one sentinel has to itself before the next is asked as well: one that hangs must not use up the deadline.
const HEAD_START: Duration = Duration::from_millis(100);

/// Connect to the first master that a sentinel names and that is one: a sentinel that missed a failover names a
/// replica.
///
/// Source: "Guidelines for Redis clients with support for Redis Sentinel" in the Redis documentation.
pub(super) async fn connect(
    endpoint: &Endpoint,
    service: &str,
    sentinels: &[(String, u16)],
    handle: &Handle,
    health: &Health,
) -> Result<Link, Error> {
    let through = |(host, port): &(String, u16)| {
        connect_through(endpoint, endpoint.sentinel(host.clone(), *port), service, handle, health)
    };
    race(sentinels.iter().map(through), HEAD_START, handle).await.unwrap_or(Err(Error::NoAnswer))
}

async fn connect_through(
    endpoint: &Endpoint,
    sentinel: Endpoint,
    service: &str,
    handle: &Handle,
    health: &Health,
) -> Result<Link, Error> {
    let (host, port) = ask(&sentinel, service, handle).await.map_err(|error| said_by(&sentinel, error))?;
    connect_to(&endpoint.at(host, port), handle, health).await
}

/// Where the master is. The connection is closed again: sentinels serve many clients, and change.
async fn ask(sentinel: &Endpoint, service: &str, handle: &Handle) -> Result<(String, u16), Error> {
    let link = log_in(sentinel, handle, ProtocolVersion::RESP2).await.map_err(|error| setup_error(&error))?;
    match link.call(cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service), None).await? {
        Value::ServerError(error) => Err(Error::Setup(format!("does not name a master: {error}").into())),
        Value::Nil => Err(Error::Setup(format!("knows no master called {service:?}").into())),
        address => redis::from_redis_value(address).map_err(|_| Error::Setup("names no address".into())),
    }
}

/// The same error, and whose it is.
fn said_by(sentinel: &Endpoint, error: Error) -> Error {
    let address = &sentinel.address;
    match error {
        Error::Connect(reason) => Error::Connect(format!("sentinel {address}: {reason}").into()),
        Error::Setup(reason) => Error::Setup(format!("sentinel {address} {reason}").into()),
        other => other,
    }
}
