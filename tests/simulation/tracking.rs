//! Client tracking in its default mode: who read a key is told once of its next change. Source: "Server-assisted client
//! side caching" in the Redis documentation.

use rand::RngExt;

use super::plan::log_uniform;
use super::resp::{Request, invalidate};
use super::time::MS;
use super::world::{Event, World};

impl World {
    /// A tracked connection has read a key: it will be told of the next change.
    pub fn arm_watch(&mut self, conn: usize, request: &Request) {
        if let (b"GET" | b"PTTL", [_, resource]) = (request[0].as_slice(), request.as_slice()) {
            self.watches.insert((self.conns[conn].master, resource.clone(), conn));
        }
    }

    /// Tell of what has changed at a master, once; some of it late, some of it never.
    pub fn tell_of_changes(&mut self, master: usize) {
        for resource in self.nodes[master].master.take_changed() {
            self.plan_reaping(master, &resource);
            for conn in self.watchers(master, &resource) {
                self.watches.remove(&(master, resource.clone(), conn));
                self.tell_of_change(conn, &resource);
            }
        }
    }

    fn watchers(&self, master: usize, resource: &[u8]) -> Vec<usize> {
        let range = (master, resource.to_vec(), 0)..=(master, resource.to_vec(), usize::MAX);
        self.watches.range(range).map(|&(_, _, conn)| conn).collect()
    }

    fn tell_of_change(&mut self, conn: usize, resource: &[u8]) {
        if self.random.random_bool(self.plan.lost_pushes) {
            return self.say(|| format!("conn {conn}: a push is lost"));
        }
        let push = invalidate(resource);
        if self.random.random_bool(0.1) {
            let at = self.now() + log_uniform(&mut self.random, 1, 300) * MS;
            self.schedule(at, Event::Push { conn, push });
        } else {
            self.push(conn, push);
        }
    }

    /// Servers notice the end of a TTL tens of milliseconds late when they are idle, seconds when they have much to do.
    fn plan_reaping(&mut self, master: usize, resource: &[u8]) {
        if let Some(expired) = self.nodes[master].master.held_until(resource) {
            let at = expired + log_uniform(&mut self.random, 1, 3000) * MS;
            self.schedule(at, Event::Reap { master, resource: resource.to_vec() });
        }
    }

    /// A master looks whether a key has expired.
    pub fn reap(&mut self, master: usize, resource: &[u8]) {
        if self.nodes[master].serves(self.now()) {
            self.nodes[master].master.reap(resource);
            self.tell_of_changes(master);
        }
    }
}
