//! A cluster counts as one master: each key has one node, and a node that is asked for another's key says whose it is.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;

use crate::claim::Claim;
use crate::master::node::Node;

/// A bound on what a server that makes up redirections can make us remember; the cluster specification recommends no
/// more nodes.
const MOST_NODES: usize = 1000;

/// What redirections have told so far. Nodes are never dropped: one connection per node keeps a release behind its
/// `SET`.
#[derive(Debug)]
pub(super) struct Routes {
    nodes: Vec<Arc<Node>>,
    slots: HashMap<u16, Arc<Node>>,
}

impl Routes {
    /// No routes: everything goes to the `seed`, the node the caller named, which for most masters is the only one.
    pub(super) fn new(seed: Arc<Node>) -> Self {
        Self { nodes: vec![seed], slots: HashMap::new() }
    }

    /// The node to ask for `key`.
    pub(super) fn node_for(&self, key: &[u8]) -> Arc<Node> {
        let seed = &self.nodes[0];
        let node = if self.slots.is_empty() { seed } else { self.slots.get(&slot(key)).unwrap_or(seed) };
        Arc::clone(node)
    }

    /// Whether the answer of some node to a claim is still to come: to that with this key, or to any.
    pub(super) fn awaits(&self, key: Option<&[u8]>) -> bool {
        self.nodes.iter().any(|node| node.awaits(key))
    }

    /// How many commands that take this claim have no answer yet from any node.
    pub(super) fn unanswered(&self, claim: &Claim) -> usize {
        self.nodes.iter().map(|node| node.unanswered(claim)).sum()
    }

    /// Whether a connection to some node is being made.
    pub(super) fn is_connecting(&self) -> bool {
        self.nodes.iter().any(|node| node.is_connecting())
    }

    /// Remember the node that `reply`, which `asked` gave, says to ask for `key`; `None` unless it is a redirection.
    pub(super) fn learn(&mut self, key: &[u8], reply: &Value, asked: &Node) -> Option<Arc<Node>> {
        let (host, port) = moved_to(reply)?;
        let endpoint = asked.sibling(host, port)?;
        let known = self.nodes.iter().find(|node| node.endpoint().address == endpoint.address);
        let node = match known {
            Some(node) => Arc::clone(node),
            None if self.nodes.len() >= MOST_NODES => return None,
            None => {
                self.nodes.push(Arc::new(asked.elsewhere(endpoint)));
                Arc::clone(self.nodes.last()?)
            }
        };
        self.slots.insert(slot(key), Arc::clone(&node));
        Some(node)
    }

    /// Ask the seed again for whatever `node` was asked for.
    pub(super) fn forget(&mut self, node: &Arc<Node>) {
        self.slots.retain(|_, known| !Arc::ptr_eq(known, node));
    }
}

/// Host, empty for that of the node that says so, and port in `MOVED slot host:port`.
///
/// Only that is followed: an `ASK` is for one question while a slot is on its way, and says nothing on where a release
/// would find the key.
fn moved_to(reply: &Value) -> Option<(&str, u16)> {
    let Value::ServerError(error) = reply else { return None };
    let details = error.details().filter(|_| error.code() == "MOVED")?;
    let (_, address) = details.split_once(' ')?;
    let (host, port) = address.rsplit_once(':')?;
    Some((host, port.parse().ok()?))
}

/// The slot of a key: CRC-16/XMODEM of it, or of its hash tag, modulo 16384.
///
/// Source: "Key distribution model" and "Hash tags" in the Redis cluster specification.
fn slot(key: &[u8]) -> u16 {
    let crc = hashed_part(key).iter().fold(0_u16, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    });
    crc % 16_384
}

/// What stands between the first `{` and the next `}`, if anything does; else all of it.
fn hashed_part(key: &[u8]) -> &[u8] {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|&byte| byte == b'}').map(|close| &rest[..close])
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b""), 0);
    }

    #[test]
    fn a_hash_tag_is_hashed_alone() {
        for (key, part) in [
            ("{user1000}.following", "user1000"),
            ("foo{bar}{zap}", "bar"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{bar", "foo{bar"),
            ("foo}{bar}", "bar"),
        ] {
            assert_eq!(hashed_part(key.as_bytes()), part.as_bytes(), "{key}");
        }
    }

    fn reply(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn only_moved_is_a_redirection() {
        assert_eq!(moved_to(&reply("MOVED 3999 10.0.0.1:6381")), Some(("10.0.0.1", 6381)));
        assert_eq!(moved_to(&reply("MOVED 3999 2001:db8::1:6381")), Some(("2001:db8::1", 6381)));
        assert_eq!(moved_to(&reply("MOVED 3999 :6381")), Some(("", 6381)));
        for other in [
            "ASK 3999 10.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN The cluster is down",
            "MOVED",
            "MOVED 3999",
            "MOVED 3999 10.0.0.1",
            "MOVED 3999 10.0.0.1:65536",
        ] {
            assert_eq!(moved_to(&reply(other)), None, "{other}");
        }
        assert_eq!(moved_to(&Value::SimpleString("MOVED 3999 10.0.0.1:6381".into())), None);
    }
}
