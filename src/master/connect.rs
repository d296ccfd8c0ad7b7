//! From an endpoint to a link that is ready for commands: connect, TLS, log in, find out what the server can do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::join4;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisError, Value, cmd};

use crate::claim::Claim;
use crate::error::{Error, PASSING};
use crate::master::bounded::{Bounded, Outstanding};
use crate::master::endpoint::{Address, Endpoint};
use crate::master::health::Health;
use crate::master::introduction::introduce;
use crate::master::link::Link;
use crate::master::watch::Watches;
use crate::master::{sentinel, tls};
use crate::runtime::{Handle, Stream};
use crate::script::{CompareAndDelete, is_unknown_command, unexpected};

/// Commands that may be queued on one connection: so many that there is room for the releases of all claims when it is
/// given up.
const MOST_QUEUED: usize = 1 << 20;

/// Find the master, connect and log in. No deadline of its own: the caller has one for all of it.
pub(super) async fn connect(endpoint: &Endpoint, handle: &Handle, health: &Health) -> Result<Link, Error> {
    match &endpoint.address {
        Address::Sentinel { service, sentinels } => {
            sentinel::connect(endpoint, service, sentinels, handle, health).await
        }
        Address::Tcp { .. } | Address::Unix(_) => connect_to(endpoint, handle, health).await,
    }
}

/// How much a server is asked while a connection to it is made. Some that do all that a lock needs answer the rest with an
/// error, or hang up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// All there is to know, in RESP3.
    Resp3,
    /// The same in RESP2.
    Resp2,
    /// Nothing but the login, in RESP2. All rights are assumed.
    Bare,
}

/// Why there is no connection in one manner.
enum Refusal {
    /// No other manner would help.
    Final(Error),
    /// It does not speak RESP3, whatever its words for that.
    Resp3,
    /// It hung up.
    HungUp(Error),
}

/// Connect to where the endpoint says, and log in.
///
/// A server that hangs up is asked once more, for it may have been in trouble, and then with nothing that may have annoyed
/// it; but the guards cannot do without their questions.
pub(super) async fn connect_to(endpoint: &Endpoint, handle: &Handle, health: &Health) -> Result<Link, Error> {
    let mut manner = if endpoint.resp2 { Manner::Resp2 } else { Manner::Resp3 };
    let mut hung_up = None;
    loop {
        let stream = open(endpoint, handle).await.map_err(|error| setup_error(&error))?;
        match connect_over(stream, manner, endpoint, handle, health).await {
            Ok(link) => return Ok(link),
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::Resp3) => manner = Manner::Resp2,
            Err(Refusal::HungUp(error)) => {
                let is_again = hung_up.is_some();
                let first = hung_up.get_or_insert(error);
                if is_again && (manner == Manner::Bare || health.guards().restart || health.guards().clock) {
                    return Err(first.clone());
                }
                if is_again {
                    manner = Manner::Bare;
                }
            }
        }
    }
}

async fn connect_over(
    stream: Stream,
    manner: Manner,
    endpoint: &Endpoint,
    handle: &Handle,
    health: &Health,
) -> Result<Link, Refusal> {
    let protocol = if manner == Manner::Resp3 { ProtocolVersion::RESP3 } else { ProtocolVersion::RESP2 };
    let link = log_in_over(stream, endpoint, handle, protocol).await.map_err(|error| match error.code() {
        None if error.is_io_error() => Refusal::HungUp(setup_error(&error)),
        Some(code) if manner == Manner::Resp3 && !is_final(code, error.detail()) => Refusal::Resp3,
        _ if error.kind() == ErrorKind::RESP3NotSupported => Refusal::Resp3,
        _ => Refusal::Final(setup_error(&error)),
    })?;
    let greeted = match manner {
        Manner::Resp3 | Manner::Resp2 => greet(&link, endpoint, handle, health).await,
        Manner::Bare => greet_barely(&link, health, handle).await,
    };
    match greeted {
        Ok(()) => Ok(link),
        Err(Error::Closed) => Err(Refusal::HungUp(Error::connect(&"it hung up during the login"))),
        Err(error) => Err(Refusal::Final(error)),
    }
}

/// A byte stream to where the endpoint says, encrypted if it is to be.
async fn open(endpoint: &Endpoint, handle: &Handle) -> Result<Stream, RedisError> {
    Ok(encrypted(endpoint, handle.effects().connect(endpoint, handle).await?).await?)
}

/// A connection that has logged in, to a server of whatever kind.
pub(super) async fn log_in(
    endpoint: &Endpoint,
    handle: &Handle,
    protocol: ProtocolVersion,
) -> Result<Link, RedisError> {
    log_in_over(open(endpoint, handle).await?, endpoint, handle, protocol).await
}

async fn log_in_over(
    stream: Stream,
    endpoint: &Endpoint,
    handle: &Handle,
    protocol: ProtocolVersion,
) -> Result<Link, RedisError> {
    // Deadlines are ours: with none here, redis-rs needs no runtime.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let mut config = config.set_pipeline_buffer_size(MOST_QUEUED);
    let watches = (protocol != ProtocolVersion::RESP2).then(Arc::<Watches>::default);
    if let Some(watches) = watches.clone() {
        config = config.set_push_sender(move |push| {
            watches.take(&push);
            Ok::<(), Infallible>(())
        });
    }
    let login = endpoint.with_login(handle).await?.login(protocol);
    let outstanding = Outstanding::default();
    let stream = Bounded::new(stream, outstanding.clone());
    let (connection, driver) = MultiplexedConnection::new_with_config(&login, stream, config).await?;
    Ok(Link::new(connection, driver, handle, endpoint.answer_patience(), watches, outstanding))
}

async fn encrypted(endpoint: &Endpoint, stream: Stream) -> std::io::Result<Stream> {
    match (&endpoint.tls, &endpoint.address) {
        (Some(tls), Address::Tcp { host, .. }) => Ok(Box::new(tls::connect(tls, host, stream).await?)),
        _ => Ok(stream),
    }
}

/// Who is it, may we release there what we lock there, and is it a master at all? One round trip for all three.
async fn greet(link: &Link, endpoint: &Endpoint, handle: &Handle, health: &Health) -> Result<(), Error> {
    let named = name_connection(link, endpoint);
    let (named, hello, may_eval, introduced) =
        join4(named, ask_hello(link), ask_eval(link), introduce(link, health, handle)).await;
    named?;
    let hello = hello?;
    introduced?;
    check_role(&hello)?;
    let way = CompareAndDelete::of(hello.text("server"), hello.text("version"));
    let is_refused = matches!(may_eval, Err(Error::Setup(_)));
    if !is_refused || !may_run(link, way).await? {
        may_eval?;
    }
    link.set_release_by(way);
    Ok(())
}

/// Is it there at all? More must not be asked of it, now or later.
async fn greet_barely(link: &Link, health: &Health, handle: &Handle) -> Result<(), Error> {
    link.ask_nothing();
    if !health.is_identified() {
        health.identify(None, handle.now());
    }
    match link.call(&cmd("PING"), None).await? {
        Value::ServerError(error) if is_final(error.code(), error.details()) && error.code() != "NOPERM" => {
            Err(refused(&error.into()))
        }
        _ => Ok(()),
    }
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
        // Redis before 6 knows no HELLO, and neither do some that speak its language.
        let is_final = is_final(error.code(), error.details());
        return if is_final { Err(refused(&RedisError::from(error.clone()))) } else { Ok(Hello(HashMap::new())) };
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
        Value::ServerError(_) | Value::Int(1) => Ok(()),
        other => Err(unexpected("EVAL", &other)),
    }
}

/// Whether the server's own compare-and-delete may be run where EVAL may not. Tried on a name that is not used: a
/// refusal of the name is not one of the command.
async fn may_run(link: &Link, way: CompareAndDelete) -> Result<bool, Error> {
    let unused = Claim::new(Vec::new(), Vec::new(), Arc::default());
    if way == CompareAndDelete::Evalsha {
        return Ok(false);
    }
    match link.call(&way.release(&unused, b""), None).await? {
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

/// Whether an error is meant for us, or for the state that the server is in; any other only says that it does not know
/// what was asked.
fn is_final(code: &str, details: Option<&str>) -> bool {
    match code {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => true,
        code if PASSING.contains(&code) => true,
        _ => details.is_some_and(|details| details.starts_with("max number of clients")),
    }
}

fn refused(error: &RedisError) -> Error {
    match (error.code(), error.kind()) {
        (Some(code), _) if PASSING.contains(&code) => Error::from(error.clone()),
        (None, ErrorKind::Parse) => Error::connect(&"not a Redis server: its answer is not RESP"),
        _ => Error::Setup(format!("refused the login: {}", crate::error::server_text(error)).into()),
    }
}
