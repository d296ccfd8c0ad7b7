//! Who waits for a key to change: redis-rs hands over what a server pushes, and whoever waits is woken.
//!
//! Source: "Server-assisted client side caching" in the Redis documentation: a server that tracks a connection tells it
//! once when a key that it has read was deleted, has expired or was changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::oneshot;

use crate::master::bounded::Expected;
use crate::runtime::locked;

/// The keys that somebody on one connection waits for.
#[derive(Debug, Default)]
pub struct Watches(Mutex<HashMap<Vec<u8>, Vec<oneshot::Sender<()>>>>);

/// Resolves when a key has changed since it was last read; with an error when nobody is there any more to say so.
#[derive(Debug)]
pub struct Change {
    told: oneshot::Receiver<()>,
    key: Vec<u8>,
    watches: Arc<Watches>,
    _expected: Expected,
}

impl Watches {
    /// Wait for a change of `key`; the server is told by reading it. It is `expected` to say so once.
    #[must_use]
    pub(super) fn change_of(self: &Arc<Self>, key: &[u8], expected: Expected) -> Change {
        let (tell, told) = oneshot::channel();
        locked(&self.0).entry(key.to_vec()).or_default().push(tell);
        Change { told, key: key.to_vec(), watches: Arc::clone(self), _expected: expected }
    }

    /// Take what the server pushed. Other pushes than these are nobody's.
    pub fn take(&self, push: &PushInfo) {
        match (&push.kind, push.data.first()) {
            (PushKind::Disconnection, _) => locked(&self.0).clear(),
            (PushKind::Invalidate, Some(Value::Array(keys))) => keys.iter().for_each(|key| self.changed(key)),
            // Everything was flushed.
            (PushKind::Invalidate, _) => locked(&self.0).drain().flat_map(|(_, waiting)| waiting).for_each(wake),
            _ => {}
        }
    }

    fn changed(&self, key: &Value) {
        let Value::BulkString(key) = key else { return };
        let waiting = locked(&self.0).remove(key);
        waiting.into_iter().flatten().for_each(wake);
    }
}

fn wake(waiting: oneshot::Sender<()>) {
    // Whoever gave up waiting need not know.
    _ = waiting.send(());
}

impl Change {
    /// Wait for it. `Err`: the connection is gone, and it will never be known.
    pub async fn told(&mut self) -> Result<(), oneshot::error::RecvError> {
        (&mut self.told).await
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.told.close();
        let mut waiting = locked(&self.watches.0);
        if let Some(others) = waiting.get_mut(&self.key) {
            others.retain(|other| !other.is_closed());
            if others.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::bounded::Outstanding;
    use futures_util::FutureExt;

    fn change_of(watches: &Arc<Watches>, key: &[u8]) -> Change {
        watches.change_of(key, Outstanding::default().expect())
    }

    fn push(kind: PushKind, data: Vec<Value>) -> PushInfo {
        PushInfo { kind, data }
    }

    fn invalidate(keys: &[&str]) -> PushInfo {
        let keys = keys.iter().map(|key| Value::BulkString(key.as_bytes().to_vec())).collect();
        push(PushKind::Invalidate, vec![Value::Array(keys)])
    }

    #[test]
    fn whoever_waits_for_the_key_is_told() {
        let watches = Arc::new(Watches::default());
        let (mut one, mut two, mut other) =
            (change_of(&watches, b"a"), change_of(&watches, b"a"), change_of(&watches, b"b"));
        watches.take(&invalidate(&["c", "a"]));
        assert_eq!(one.told().now_or_never(), Some(Ok(())));
        assert_eq!(two.told().now_or_never(), Some(Ok(())));
        assert_eq!(other.told().now_or_never(), None);
    }

    #[test]
    fn a_flush_changes_every_key() {
        let watches = Arc::new(Watches::default());
        let mut change = change_of(&watches, b"a");
        watches.take(&push(PushKind::Invalidate, vec![Value::Nil]));
        assert_eq!(change.told().now_or_never(), Some(Ok(())));
    }

    #[test]
    fn the_end_of_the_connection_is_no_change() {
        let watches = Arc::new(Watches::default());
        let mut change = change_of(&watches, b"a");
        watches.take(&push(PushKind::Disconnection, vec![]));
        assert!(matches!(change.told().now_or_never(), Some(Err(_))));
    }

    #[test]
    fn nothing_is_kept_for_those_who_left() {
        let watches = Arc::new(Watches::default());
        drop(change_of(&watches, b"a"));
        assert!(locked(&watches.0).is_empty());
    }
}
