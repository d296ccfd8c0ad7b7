//! From an endpoint to a link that is ready for commands: connect, TLS, log in, find out what the server can do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::join3;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisError, Value, cmd};

use crate::error::Error;
use crate::master::bounded::Bounded;
use crate::master::endpoint::{Address, Endpoint};
use crate::master::health::Health;
use crate::master::introduction::introduce;
use crate::master::link::Link;
use crate::master::watch::Watches;
use crate::master::{sentinel, tls};
use crate::runtime::{Handle, Stream};
use crate::script::{Claim, CompareAndDelete, is_unknown_command};

/// Find the master, connect and log in. No deadline of its own: the caller has one for all of it.
pub(super) async fn connect(endpoint: &Endpoint, handle: &Handle, health: &Health) -> Result<Link, Error> {
    match &endpoint.address {
        Address::Sentinel { service, sentinels } => {
            sentinel::connect(endpoint, service, sentinels, handle, health).await
        }
        Address::Tcp { .. } | Address::Unix(_) => connect_to(endpoint, handle, health).await,
    }
}

/// Connect to where the endpoint says, and log in.
pub(super) async fn connect_to(endpoint: &Endpoint, handle: &Handle, health: &Health) -> Result<Link, Error> {
    if !endpoint.resp2 {
        match log_in(endpoint, handle, ProtocolVersion::RESP3).await {
            Err(error) if error.kind() == ErrorKind::RESP3NotSupported => {}
            other => return greet(other.map_err(|error| setup_error(&error))?, endpoint, handle, health).await,
        }
    }
    let link = log_in(endpoint, handle, ProtocolVersion::RESP2).await.map_err(|error| setup_error(&error))?;
    greet(link, endpoint, handle, health).await
}

/// A connection that has logged in, to a server of whatever kind.
pub(super) async fn log_in(
    endpoint: &Endpoint,
    handle: &Handle,
    protocol: ProtocolVersion,
) -> Result<Link, RedisError> {
    let stream = encrypted(endpoint, handle.effects().connect(endpoint, handle).await?).await?;
    // Deadlines are ours: with none here, redis-rs needs no runtime.
    let mut config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let watches = (protocol != ProtocolVersion::RESP2).then(Arc::<Watches>::default);
    if let Some(watches) = watches.clone() {
        config = config.set_push_sender(move |push| {
            watches.take(&push);
            Ok::<(), Infallible>(())
        });
    }
    let login = endpoint.with_login(handle).await?.login(protocol);
    let (connection, driver) = MultiplexedConnection::new_with_config(&login, Bounded::new(stream), config).await?;
    Ok(Link::new(connection, driver, handle, endpoint.answer_patience(), watches))
}

async fn encrypted(endpoint: &Endpoint, stream: Stream) -> std::io::Result<Stream> {
    match (&endpoint.tls, &endpoint.address) {
        (Some(config), Address::Tcp { host, .. }) => {
            Ok(Box::new(tls::connect(Arc::clone(config), host, stream).await?))
        }
        _ => Ok(stream),
    }
}

/// Who is it, may we release there what we lock there, and is it a master at all? One round trip for all three.
async fn greet(link: Link, endpoint: &Endpoint, handle: &Handle, health: &Health) -> Result<Link, Error> {
    name_connection(&link, endpoint).await?;
    let (hello, may_eval, introduced) =
        join3(ask_hello(&link), ask_eval(&link), introduce(&link, health, handle)).await;
    let hello = hello?;
    introduced?;
    check_role(&hello)?;
    let way = CompareAndDelete::of(hello.text("server"), hello.text("version"));
    if may_eval.is_err() && !may_run(&link, way).await? {
        may_eval?;
    }
    link.set_release_by(way);
    Ok(link)
}

async fn name_connection(link: &Link, endpoint: &Endpoint) -> Result<(), Error> {
    if let Some(name) = &endpoint.client_name {
        link.call(cmd("CLIENT").arg("SETNAME").arg(name), None).await?;
    }
    Ok(())
}

/// What a server says of itself in reply to `HELLO`, which every user may send.
struct Hello(HashMap<String, String>);

impl Hello {
    fn text(&self, field: &str) -> &str {
        self.0.get(field).map_or("", String::as_str)
    }
}

async fn ask_hello(link: &Link) -> Result<Hello, Error> {
    let reply = link.call(&cmd("HELLO"), None).await?;
    if let Value::ServerError(error) = &reply {
        // Redis before 6 knows no HELLO; anything else (NOAUTH, too many clients) is meant for us.
        let known = error.code() != "ERR" || !error.details().unwrap_or_default().starts_with("unknown command");
        return if known { Err(refused(&RedisError::from(error.clone()))) } else { Ok(Hello(HashMap::new())) };
    }
    Ok(Hello(
        redis::from_redis_value::<HashMap<String, Value>>(reply)
            .unwrap_or_default()
            .into_iter()
            .filter_map(text_field)
            .collect(),
    ))
}

fn text_field((field, value): (String, Value)) -> Option<(String, String)> {
    redis::from_redis_value(value).ok().map(|value| (field, value))
}

/// A replica answers a release with 0 and no error; a sentinel knows no `SET`. In a cluster a replica answers neither:
/// it
/// says where the master of the key is.
fn check_role(hello: &Hello) -> Result<(), Error> {
    match (hello.text("role"), hello.text("mode")) {
        (_, "sentinel") => Err(Error::Setup("is a sentinel, not a Redis master".into())),
        ("replica" | "slave", mode) if mode != "cluster" => Err(Error::Setup("is a replica, not a master".into())),
        _ => Ok(()),
    }
}

/// A user without EVAL could lock and never release: find out before the first lock.
async fn ask_eval(link: &Link) -> Result<(), Error> {
    match link.call(cmd("EVAL").arg("return 1").arg(0), None).await? {
        Value::ServerError(error) if error.code() == "NOPERM" || is_unknown_command(&error) => {
            let why = Error::from(error);
            Err(Error::Setup(format!("may not run EVAL, so that a lock could never be released: {why}").into()))
        }
        _ => Ok(()),
    }
}

/// Whether the server's own compare-and-delete may be run where EVAL may not. Tried on a name that nobody uses: a
/// refusal of the name is not one of the command.
async fn may_run(link: &Link, way: CompareAndDelete) -> Result<bool, Error> {
    let nobodys = Claim { resources: Vec::new(), key: Vec::new(), script: Arc::default() };
    if way == CompareAndDelete::Evalsha {
        return Ok(false);
    }
    match link.call(&way.release(&nobodys, b""), None).await? {
        Value::ServerError(error) if error.code() == "NOPERM" => {
            Ok(error.details().is_some_and(|details| details.contains("access")))
        }
        Value::ServerError(error) => Ok(!is_unknown_command(&error)),
        _ => Ok(true),
    }
}

/// What stopped the login: the way there, or the server's refusal.
pub(super) fn setup_error(error: &RedisError) -> Error {
    if error.is_io_error() {
        return Error::connect(error);
    }
    refused(error)
}

fn refused(error: &RedisError) -> Error {
    match (error.code(), error.kind()) {
        (Some("LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN"), _) => Error::from(error.clone()),
        (None, ErrorKind::Parse) => Error::connect(&"not a Redis server: its answer is not RESP"),
        _ => Error::Setup(format!("refused the login: {}", crate::error::server_text(error)).into()),
    }
}
