//! Where a master is, and how to log in to it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{ProtocolVersion, RedisConnectionInfo};

use crate::master::tls::Tls;
use crate::planted::{self, Bug};
use crate::quorum::MAX_PATIENCE;
use crate::runtime::Handle;

/// How long a connection may take where the caller does not say: longer than any round, which it outlives.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How the bytes get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP to a name or an IP address.
    Tcp {
        /// A DNS name or an IP address, IPv6 without brackets.
        host: String,
        /// The TCP port.
        port: u16,
    },
    /// A Unix domain socket.
    Unix(PathBuf),
    /// Wherever the sentinels of a service say that its master is.
    Sentinel {
        /// What the sentinels call the master.
        service: String,
        /// Host and port of each sentinel.
        sentinels: Vec<(String, u16)>,
    },
}

/// TCP keep-alive, off by default as in redis-py.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Whether to probe idle connections.
    pub enabled: bool,
    /// Seconds of idleness before the first probe.
    pub idle: Option<Duration>,
    /// Seconds between probes.
    pub interval: Option<Duration>,
    /// Probes without an answer before the connection is dead.
    pub count: Option<u32>,
    /// Milliseconds that what was sent may stay without an acknowledgement. Linux has this.
    pub user_timeout: Option<u32>,
}

/// Who logs in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The ACL user; `None` is the default user.
    pub username: Option<String>,
    /// The password, if any.
    pub password: Option<String>,
}

/// Says who logs in, once for each connection: a password may be a token that expires.
pub trait Credentials: Send + Sync {
    /// Ask. The error is shown in logs: it has no secret in it.
    fn ask(&self, handle: &Handle) -> BoxFuture<'static, io::Result<Login>>;
}

/// One Redis master. Immutable; its `Debug` shows no secret.
#[derive(Clone)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// The database.
    pub db: i64,
    /// The ACL user; `None` is the default user.
    pub username: Option<String>,
    /// The password, if any.
    pub password: Option<String>,
    /// Asked for both instead, whenever a connection is made.
    pub credentials: Option<Arc<dyn Credentials>>,
    /// The login at the sentinels, which need not be the master's.
    pub sentinel_username: Option<String>,
    /// The password at the sentinels.
    pub sentinel_password: Option<String>,
    /// Shown in `CLIENT LIST`.
    pub client_name: Option<String>,
    /// Whether to stay with RESP2. RESP3 is tried first otherwise.
    pub resp2: bool,
    /// The longest to wait for one answer, in place of the engine's own 500 ms.
    pub socket_timeout: Option<Duration>,
    /// The longest that a connection may take, handshake included, in place of the engine's own 5 s.
    pub connect_timeout: Option<Duration>,
    /// TCP keep-alive.
    pub keepalive: Keepalive,
    /// A connection that has been idle for longer is asked `PING` before it is used.
    pub health_check_interval: Option<Duration>,
    /// The TLS settings; `None` is a plain connection.
    pub tls: Option<Arc<Tls>>,
}

impl Endpoint {
    /// A master without login, TLS or timeouts of its own, at database 0.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            db: 0,
            username: None,
            password: None,
            credentials: None,
            sentinel_username: None,
            sentinel_password: None,
            client_name: None,
            resp2: false,
            socket_timeout: None,
            connect_timeout: None,
            keepalive: Keepalive::default(),
            health_check_interval: None,
            tls: None,
        }
    }

    /// Whether it is the same server, reached in the same way by the same user: connections may be shared. Credentials
    /// that are asked for are the same if it is the same object that says them.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let Self {
            address,
            db,
            username,
            password,
            credentials,
            sentinel_username,
            sentinel_password,
            client_name,
            resp2,
            socket_timeout,
            connect_timeout,
            keepalive,
            health_check_interval,
            tls,
        } = self;
        let credentials = match (credentials, &other.credentials) {
            (Some(mine), Some(others)) => Arc::ptr_eq(mine, others),
            (mine, others) => mine.is_none() && others.is_none(),
        };
        credentials
            && (address, db, username, password) == (&other.address, &other.db, &other.username, &other.password)
            && (sentinel_username, sentinel_password) == (&other.sentinel_username, &other.sentinel_password)
            && (client_name, resp2, keepalive) == (&other.client_name, &other.resp2, &other.keepalive)
            && (socket_timeout, connect_timeout) == (&other.socket_timeout, &other.connect_timeout)
            && (health_check_interval, tls) == (&other.health_check_interval, &other.tls)
    }

    /// The same master, or another node of it, elsewhere: reached with the same login, TLS settings and timeouts.
    #[must_use]
    pub fn at(&self, host: String, port: u16) -> Self {
        Self { address: Address::Tcp { host, port }, ..self.clone() }
    }

    /// One of its sentinels. RESP2, for one question needs no more.
    #[must_use]
    pub fn sentinel(&self, host: String, port: u16) -> Self {
        Self {
            db: 0,
            username: self.sentinel_username.clone(),
            password: self.sentinel_password.clone(),
            credentials: None,
            resp2: true,
            ..self.at(host, port)
        }
    }

    /// How long one command may stay without an answer.
    #[must_use]
    pub fn answer_patience(&self) -> Duration {
        self.socket_timeout.unwrap_or(MAX_PATIENCE)
    }

    /// How long a connection may take, from resolving the name to the end of the handshake. Calls that wait
    /// for it may end earlier.
    #[must_use]
    pub fn connect_patience(&self) -> Duration {
        let own = if planted::is(Bug::ConnectAgain) { MAX_PATIENCE } else { CONNECT_PATIENCE };
        self.connect_timeout.unwrap_or(own)
    }

    /// How long one command waits for a connection: the connection goes on after that, for the next one.
    #[must_use]
    pub fn link_patience(&self) -> Duration {
        self.connect_patience().min(self.answer_patience().max(MAX_PATIENCE))
    }

    /// The same, with the login for one connection: what the credentials say now, if there are any.
    pub async fn with_login(&self, handle: &Handle) -> io::Result<Self> {
        let mut endpoint = self.clone();
        if let Some(credentials) = endpoint.credentials.take() {
            Login { username: endpoint.username, password: endpoint.password } = credentials.ask(handle).await?;
        }
        Ok(endpoint)
    }

    /// What redis-rs's handshake needs to know. `CLIENT SETINFO` is skipped: least-privilege users may not run it, and
    /// each refusal would fill the server's ACL log.
    #[must_use]
    pub fn login(&self, protocol: ProtocolVersion) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default().set_db(self.db).set_protocol(protocol).set_skip_set_lib_name();
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        info
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => f.write_str(&host_and_port(host, *port)),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Sentinel { service, sentinels } => {
                let sentinels: Vec<_> = sentinels.iter().map(|(host, port)| host_and_port(host, *port)).collect();
                write!(f, "sentinel({service})@{}", sentinels.join(","))
            }
        }
    }
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `host:port/db`, `path/db` or `sentinel(service)@host:port,host:port/db`: what logs show.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.db)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str) -> Endpoint {
        Endpoint::new(Address::Tcp { host: host.into(), port: 6379 })
    }

    #[test]
    fn shown_without_secrets() {
        let mut endpoint = at("::1");
        endpoint.password = Some("canary".into());
        endpoint.username = Some("user".into());
        assert_eq!(endpoint.to_string(), "[::1]:6379/0");
        assert_eq!(format!("{endpoint:?}"), "Endpoint([::1]:6379/0)");
        assert!(!format!("{:?}", endpoint.login(ProtocolVersion::RESP3)).contains("canary"));
    }

    #[test]
    fn a_service_is_shown_with_its_sentinels() {
        let sentinels = vec![("a".into(), 1), ("::1".into(), 2)];
        let mut endpoint = Endpoint::new(Address::Sentinel { service: "main".into(), sentinels });
        endpoint.sentinel_password = Some("canary".into());
        assert_eq!(endpoint.to_string(), "sentinel(main)@a:1,[::1]:2/0");
        assert!(!format!("{endpoint:?}").contains("canary"));
    }

    #[test]
    fn sentinels_have_a_login_of_their_own() {
        let mut endpoint = at("redis");
        (endpoint.username, endpoint.password, endpoint.db) = (Some("user".into()), Some("secret".into()), 3);
        let open = endpoint.sentinel("a".into(), 1);
        assert_eq!((open.username, open.password, open.db), (None, None, 0));
        endpoint.sentinel_password = Some("theirs".into());
        assert_eq!(endpoint.sentinel("a".into(), 1).password.as_deref(), Some("theirs"));
    }

    #[test]
    fn its_own_timeouts_shorten_and_lengthen() {
        let (short, long) = (Some(Duration::from_millis(100)), Some(Duration::from_secs(30)));
        let patience = |socket_timeout, connect_timeout| {
            let endpoint = Endpoint { socket_timeout, connect_timeout, ..at("redis") };
            (endpoint.answer_patience(), endpoint.connect_patience(), endpoint.link_patience())
        };
        assert_eq!(patience(None, None), (MAX_PATIENCE, CONNECT_PATIENCE, MAX_PATIENCE));
        assert_eq!(
            patience(short, short),
            (Duration::from_millis(100), Duration::from_millis(100), Duration::from_millis(100))
        );
        assert_eq!(patience(short, long), (Duration::from_millis(100), Duration::from_secs(30), MAX_PATIENCE));
        assert_eq!(patience(long, long), (Duration::from_secs(30), Duration::from_secs(30), Duration::from_secs(30)));
    }
}
