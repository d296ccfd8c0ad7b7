//! The network: delays, order within a connection, stalls, resets, silence; and the masters' ends of the connections.

use std::io::ErrorKind;
use std::task::Waker;

use rand::RngExt;

use super::plan::log_uniform;
use super::resp::{PUSH, Protocol, Request, Requests};
use super::time::{MS, Nanos};
use super::wire::{Deed, Wire, open};
use super::world::{Event, World};

/// A resource and the key it is taken with.
pub type Taken = (Vec<u8>, Vec<u8>);

/// What travels.
#[derive(Debug, Clone, Hash)]
pub enum Item {
    Syn,
    SynAck,
    Refused,
    Bytes(Vec<u8>),
    /// The last bytes of a reply; to what takes a lock, with its resource and key.
    Reply(Vec<u8>, Option<Taken>),
    Fin,
    Reset,
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) | Self::Reply(bytes, _) => write!(f, "{}", bytes.escape_ascii()),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A connection between a session and a master.
pub struct Conn {
    pub session: usize,
    pub client: usize,
    pub master: usize,
    pub wire: Wire,
    /// Whether the engine still holds its end.
    pub is_held: bool,
    /// Whether something befell it.
    pub is_faulty: bool,
    /// For which a `SET` was written, a release was, and a `SET` was answered.
    pub set: Vec<Taken>,
    pub released: Vec<Taken>,
    pub answered: Vec<Taken>,
    written: Requests,
    commands: u64,
    replies: u64,
    server: Option<Serving>,
    is_silent: bool,
    /// When all that was sent will have arrived.
    pub last_up: Nanos,
    last_down: Nanos,
}

/// The master's end.
struct Serving {
    requests: Requests,
    protocol: Protocol,
    tracking: bool,
    closing: bool,
}

impl World {
    /// What the engine did takes its way through the network.
    pub fn carry_out(&mut self, deed: Deed) {
        match deed {
            Deed::Dialled { session, master, wire } => self.dial(session, master, wire),
            Deed::Wrote { conn, bytes } => self.write(conn, bytes),
            Deed::HungUp { conn } => self.hang_up(conn),
        }
    }

    fn dial(&mut self, session: usize, master: usize, wire: Wire) {
        let client = self.seats[session].client;
        let conn = self.conns.len();
        assert_eq!(open(&wire).conn, conn);
        self.say(|| format!("conn {conn}: session {session} of client {client} dials master {master}"));
        self.conns.push(Conn {
            session,
            client,
            master,
            wire,
            is_held: true,
            is_faulty: false,
            set: Vec::new(),
            released: Vec::new(),
            answered: Vec::new(),
            written: Requests::default(),
            commands: 0,
            replies: 0,
            server: None,
            is_silent: false,
            last_up: 0,
            last_down: 0,
        });
        self.send_up(conn, Item::Syn);
    }

    fn write(&mut self, conn: usize, bytes: Vec<u8>) {
        self.conns[conn].written.push(&bytes);
        while let Some(request) = self.conns[conn].written.next() {
            self.expect_reply(conn);
            self.note_written(conn, &request);
        }
        self.send_up(conn, Item::Bytes(bytes));
    }

    fn hang_up(&mut self, conn: usize) {
        self.say(|| format!("conn {conn}: hung up"));
        self.check_hang_up(conn);
        let Conn { client, master, is_faulty, .. } = self.conns[conn];
        self.conns[conn].is_held = false;
        if is_faulty {
            self.trouble_between(client, master, self.now());
        }
        self.send_up(conn, Item::Fin);
    }

    fn send_up(&mut self, conn: usize, item: Item) {
        for item in pieces(item, self.plan.piece) {
            let at = self.arrival(conn, self.conns[conn].last_up);
            self.conns[conn].last_up = at;
            self.schedule(at, Event::Up { conn, item });
        }
    }

    fn send_down(&mut self, conn: usize, item: Item) {
        for item in pieces(item, self.plan.piece) {
            let at = self.arrival(conn, self.conns[conn].last_down);
            self.conns[conn].last_down = at;
            self.schedule(at, Event::Down { conn, item });
        }
    }

    /// When what is sent now arrives: never before what was sent earlier on the same connection.
    fn arrival(&mut self, conn: usize, last: Nanos) -> Nanos {
        let Conn { client, master, .. } = self.conns[conn];
        let shortest = self.plan.delays[client][master];
        let delay = shortest + self.random.random_range(0..=shortest * self.plan.jitter);
        let mut at = self.now().max(self.blocked[client][master]) + delay;
        if self.plan.late_per_mille > 0 && self.random.random_ratio(self.plan.late_per_mille, 1000) {
            at += log_uniform(&mut self.random, 10, 500) * MS;
            self.trouble_between(client, master, at);
        }
        at.max(last + self.random.random_range(1..=10_000))
    }

    pub fn arrive_at_master(&mut self, conn: usize, item: Item) {
        let (now, master) = (self.now(), self.conns[conn].master);
        if !self.nodes[master].has_power(now) {
            return;
        }
        match item {
            Item::Syn if self.nodes[master].is_up(now) => {
                let (requests, protocol) = (Requests::default(), Protocol::Resp2);
                self.conns[conn].server = Some(Serving { requests, protocol, tracking: false, closing: false });
                self.send_down(conn, Item::SynAck);
            }
            Item::Syn => self.send_down(conn, Item::Refused),
            Item::Bytes(bytes) => self.take_in(conn, &bytes),
            Item::Fin => {
                if let Some(server) = &mut self.conns[conn].server {
                    server.closing = true;
                }
            }
            other => unreachable!("no client sends {other:?}"),
        }
        if self.nodes[master].serves(now) {
            self.serve(conn);
        }
    }

    fn take_in(&mut self, conn: usize, bytes: &[u8]) {
        let here = &mut self.conns[conn];
        if here.is_silent {
            return;
        }
        let wakers = {
            let mut end = open(&here.wire);
            end.room += bytes.len();
            end.wake()
        };
        match &mut here.server {
            Some(server) => server.requests.push(bytes),
            None => self.send_down(conn, Item::Reset),
        }
        self.wake(conn, wakers);
    }

    /// Let a master carry out all that has come in over all connections, in any order among them.
    pub fn serve_all(&mut self, master: usize) {
        let mut conns: Vec<usize> = (0..self.conns.len()).filter(|&conn| self.conns[conn].master == master).collect();
        while !conns.is_empty() {
            let conn = conns.swap_remove(self.random.random_range(0..conns.len()));
            self.serve(conn);
        }
    }

    fn serve(&mut self, conn: usize) {
        while let Some(request) = self.conns[conn].server.as_mut().and_then(|server| server.requests.next()) {
            self.execute(conn, &request);
        }
        if self.conns[conn].server.as_ref().is_some_and(|server| server.closing) {
            self.conns[conn].server = None;
            self.conns[conn].is_silent = true;
        }
    }

    fn execute(&mut self, conn: usize, request: &Request) {
        let here = &mut self.conns[conn];
        let Some(server) = &mut here.server else { return };
        // No server pushes into a handshake.
        let may_push = self.plan.pushes && server.protocol == Protocol::Resp3;
        let (reply, did) = self.nodes[here.master].master.execute(request, &mut server.protocol);
        server.tracking |= request[0] == b"CLIENT" && request[1] == b"TRACKING" && reply[0] == b'+';
        let tracking = server.tracking;
        let pushes = may_push && self.random.random_bool(0.2);
        let master = here.master;
        self.oracle.changes += 1;
        self.say(|| format!("master {master}: {did:?}"));
        self.note_done(conn, &did);
        if pushes {
            self.send_down(conn, Item::Bytes(PUSH.to_vec()));
        }
        let taken = taking(request).map(|(resource, key, _)| (resource.to_vec(), key.to_vec()));
        // Servers differ in whether who changes a key is told of it before its answer.
        let told_first = self.random.random_bool(0.5);
        if told_first {
            self.tell_of_changes(master);
        }
        self.send_down(conn, Item::Reply(reply, taken));
        self.tell_of_changes(master);
        if tracking {
            self.arm_watch(conn, request);
        }
    }

    /// Push to a client, if it is still there.
    pub fn push(&mut self, conn: usize, push: Vec<u8>) {
        if self.conns[conn].server.is_some() {
            self.send_down(conn, Item::Bytes(push));
        }
    }

    pub fn arrive_at_client(&mut self, conn: usize, item: Item) {
        let here = &mut self.conns[conn];
        if !here.is_held {
            return;
        }
        let wakers = {
            let mut end = open(&here.wire);
            match item {
                Item::SynAck => end.connected = true,
                Item::Refused => end.error = Some(ErrorKind::ConnectionRefused),
                Item::Reset => end.error = Some(ErrorKind::ConnectionReset),
                Item::Fin => end.at_eof = true,
                Item::Bytes(bytes) => end.inbox.extend(bytes),
                Item::Reply(bytes, key) => {
                    end.inbox.extend(bytes);
                    here.replies += 1;
                    here.answered.extend(key);
                }
                Item::Syn => unreachable!("no master dials"),
            }
            end.wake()
        };
        self.wake(conn, wakers);
    }

    fn wake(&mut self, conn: usize, wakers: Vec<Waker>) {
        self.dirty.insert(self.conns[conn].session);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The planted bug in the protocol library: a command that waited too long is forgotten, so that its reply, when it
    /// comes after all, is taken for the next one's.
    fn expect_reply(&mut self, conn: usize) {
        self.conns[conn].commands += 1;
        if super::desyncs_replies(self.bug) {
            let command = self.conns[conn].commands;
            let at = self.now() + self.plan.socket_timeout + MS;
            self.schedule(at, Event::Forget { conn, command });
        }
    }

    pub fn forget_command(&mut self, conn: usize, command: u64) {
        if self.conns[conn].is_held && self.conns[conn].replies < command {
            self.arrive_at_client(conn, Item::Reply(b"-ERR too late\r\n".to_vec(), None));
        }
    }

    /// The connections between two that the engine still holds.
    fn between(&self, client: usize, master: usize) -> Vec<usize> {
        let is_between = |conn: &Conn| conn.client == client && conn.master == master && conn.is_held;
        (0..self.conns.len()).filter(|&conn| is_between(&self.conns[conn])).collect()
    }

    /// Both ends learn that the connection is over; what was on its way is lost.
    pub fn reset_all(&mut self, client: usize, master: usize) {
        self.trouble_between(client, master, self.now());
        for conn in self.between(client, master) {
            self.conns[conn].server = None;
            self.conns[conn].is_silent = true;
            self.conns[conn].is_faulty = true;
            self.arrive_at_client(conn, Item::Reset);
        }
    }

    /// The master's end is gone, and the client never learns.
    pub fn half_open(&mut self, client: usize, master: usize) {
        self.trouble_between(client, master, self.now());
        for conn in self.between(client, master) {
            self.conns[conn].server = None;
            self.conns[conn].is_silent = true;
            self.conns[conn].is_faulty = true;
        }
    }

    pub fn stall(&mut self, client: usize, master: usize, lasting: Nanos, reset: bool) {
        let until = self.now() + lasting;
        self.blocked[client][master] = self.blocked[client][master].max(until);
        // What was held back arrives after the stall has ended.
        self.trouble_between(client, master, until + self.plan.longest_delay());
        if reset {
            self.schedule(until, Event::Break { client, master });
        }
    }

    /// A master's connections die with it; a kernel that goes on says so.
    pub fn drop_connections(&mut self, master: usize, says_so: bool) {
        for conn in (0..self.conns.len()).filter(|&conn| self.conns[conn].master == master).collect::<Vec<_>>() {
            if self.conns[conn].server.take().is_some() {
                self.conns[conn].is_faulty = true;
                if says_so {
                    self.send_down(conn, Item::Reset);
                }
            }
        }
    }
}

/// The resource, key and TTL of a request that takes a lock, with or without a token.
pub fn taking(request: &Request) -> Option<(&[u8], &[u8], u64)> {
    let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
    let (resource, key, ttl_ms) = match *words {
        [b"SET", resource, key, _, _, ttl_ms] => (resource, key, ttl_ms),
        [b"EVAL" | b"EVALSHA", _, b"2", lock, _, key, ttl_ms, _, _] => (lock, key, ttl_ms),
        _ => return None,
    };
    Some((resource, key, std::str::from_utf8(ttl_ms).unwrap().parse().unwrap()))
}

/// An item as the network carries it: bytes in pieces, the rest as it is.
fn pieces(item: Item, size: usize) -> Vec<Item> {
    let (bytes, key) = match item {
        Item::Bytes(bytes) if bytes.len() > size => (bytes, None),
        Item::Reply(bytes, key) if bytes.len() > size => (bytes, Some(key)),
        other => return vec![other],
    };
    let mut items: Vec<Item> = bytes.chunks(size).map(|piece| Item::Bytes(piece.to_vec())).collect();
    if let (Some(key), Some(Item::Bytes(piece))) = (key, items.last_mut()) {
        let piece = std::mem::take(piece);
        items.pop();
        items.push(Item::Reply(piece, key));
    }
    items
}
