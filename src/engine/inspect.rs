//! Who holds a lock, and for how long.

use futures_util::future::{join, join_all};
use redis::Value;

use crate::engine::Masters;
use crate::error::Error;
use crate::master::Master;
use crate::master::link::Link;
use crate::script::{self, unexpected};

/// A holder, as one master knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The proof of its ownership.
    pub key: Vec<u8>,
    /// How long the master will keep the lock, in milliseconds; `None`: for ever.
    pub ttl_ms: Option<u64>,
}

/// What one master knows of a lock: its holder, if any.
pub type Sighting = Result<Option<Holder>, Error>;

/// Ask every master who holds `resource`.
pub async fn inspect(masters: &Masters, resource: &[u8]) -> Vec<Sighting> {
    join_all(masters.iter().map(|master| look(master, resource))).await
}

async fn look(master: &Master, resource: &[u8]) -> Sighting {
    let (get, pttl) = (script::get(resource), script::pttl(resource));
    let exchange = |link: Link| {
        let (get, pttl) = (&get, &pttl);
        async move {
            match join(link.call(get, None), link.call(pttl, None)).await {
                (Ok(error @ Value::ServerError(_)), _) => Ok(error),
                (key, ttl) => Ok(Value::Array(vec![key?, ttl?])),
            }
        }
    };
    holder(master.call(resource, exchange, || true).await?.value)
}

fn holder(reply: Value) -> Sighting {
    let (key, ttl) = redis::from_redis_value::<(Value, i64)>(reply.extract_error()?)
        .map_err(|_| Error::Reply("unexpected reply to PTTL: no integer".into()))?;
    match key.extract_error()? {
        // Gone before the second question.
        found if ttl == -2 || found == Value::Nil => Ok(None),
        Value::BulkString(key) => Ok(Some(Holder { key, ttl_ms: u64::try_from(ttl).ok() })),
        other => Err(unexpected("GET", &other)),
    }
}
