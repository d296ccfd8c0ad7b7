//! The pools of a process: managers of the same masters, with the same settings, have one.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::{BootClock, Clock, Instant};
use crate::host::per_process::PerProcess;
use crate::host::pool::Pool;
use crate::master::endpoint::Endpoint;
use crate::master::guard::Guards;
use crate::runtime::locked;

/// How long a pool is kept that no manager uses. Programs make a manager for each request or task, and drop it.
const LONGEST_UNUSED: Duration = Duration::from_secs(60);

/// How many of those are kept, at most.
const MOST_UNUSED: usize = 8;

/// How many sessions each of them keeps, at most.
const MOST_SESSIONS: usize = 4;

static POOLS: PerProcess<Pools> = PerProcess::new();

/// There may be some that no manager uses.
static ARE_SOME_UNUSED: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Default)]
struct Pools {
    list: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    pool: Arc<Pool>,
    users: usize,
    /// Since when there are none.
    unused_since: Instant,
}

impl Pools {
    fn take(&self, endpoints: Vec<Arc<Endpoint>>, guards: Guards) -> Arc<Pool> {
        let mut list = locked(&self.list);
        if let Some(entry) = list.iter_mut().find(|entry| entry.pool.is_of(&endpoints, &guards)) {
            entry.users += 1;
            return Arc::clone(&entry.pool);
        }
        let pool = Arc::new(Pool::new(endpoints, guards));
        list.push(Entry { pool: Arc::clone(&pool), users: 1, unused_since: Instant::default() });
        pool
    }

    /// One manager uses a pool no more.
    fn give_back(&self, pool: &Arc<Pool>, now: Instant, is_kept: bool) {
        let mut list = locked(&self.list);
        // It is not shared, or this is a forked child and it is its parent's.
        let Some(place) = list.iter().position(|entry| Arc::ptr_eq(&entry.pool, pool)) else { return };
        let entry = &mut list[place];
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        entry.unused_since = now;
        // Those that were given back last are at the end.
        let entry = list.remove(place);
        if is_kept {
            list.push(entry);
            drop(list);
            pool.here().keep_sessions(MOST_SESSIONS);
        } else {
            drop(list);
            drop(entry);
        }
        self.close_unused(now, MOST_UNUSED);
    }

    /// Close the pools that no manager has used for long, and the oldest of those that are more than `most`.
    fn close_unused(&self, now: Instant, most: usize) {
        let mut list = locked(&self.list);
        let count = list.iter().filter(|entry| entry.users == 0).count();
        let mut too_many = count.saturating_sub(most);
        let mut is_closed = |entry: &mut Entry| {
            let is_closed = entry.users == 0 && (too_many > 0 || now.since(entry.unused_since) > LONGEST_UNUSED);
            too_many = too_many.saturating_sub(usize::from(is_closed));
            is_closed
        };
        let closed: Vec<_> = list.extract_if(.., &mut is_closed).collect();
        ARE_SOME_UNUSED.store(count > closed.len(), Ordering::Relaxed);
        drop(list);
        drop(closed); // this closes connections, and may call Python
    }
}

/// A manager's hold of its pool.
#[derive(Debug)]
pub struct SharedPool {
    pool: Arc<Pool>,
    is_kept: AtomicBool,
}

impl SharedPool {
    /// The pool of these masters, which is made if this process has none.
    #[must_use]
    pub fn of(endpoints: Vec<Arc<Endpoint>>, guards: Guards) -> Self {
        // Those that ask for their login are read again for each manager, which never finds these again.
        let is_kept = endpoints.iter().all(|endpoint| endpoint.credentials.is_none());
        Self { pool: POOLS.here().take(endpoints, guards), is_kept: AtomicBool::new(is_kept) }
    }

    /// A pool that no other manager has.
    #[must_use]
    pub fn alone(endpoints: Vec<Arc<Endpoint>>, guards: Guards) -> Self {
        Self { pool: Arc::new(Pool::new(endpoints, guards)), is_kept: AtomicBool::new(false) }
    }

    /// The manager has other masters from now on: if no other manager uses these, their connections are closed with it.
    pub fn close_with_me(&self) {
        self.is_kept.store(false, Ordering::Relaxed);
    }
}

impl Deref for SharedPool {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Self::Target {
        &self.pool
    }
}

impl Drop for SharedPool {
    fn drop(&mut self) {
        POOLS.here().give_back(&self.pool, BootClock.now(), self.is_kept.load(Ordering::Relaxed));
    }
}

/// Close the pools that were not used for long. It costs one atomic read where there are none.
pub(super) fn close_unused(now: Instant) {
    if ARE_SOME_UNUSED.load(Ordering::Relaxed) {
        POOLS.here().close_unused(now, MOST_UNUSED);
    }
}

/// Close all pools that no manager uses: a forked child would keep their connections open.
pub fn close_all_unused() {
    POOLS.here().close_unused(BootClock.now(), 0);
}

/// This is a child that was just forked: it shares nothing with its parent, and keeps nothing of it but what managers use.
pub fn forget_parents() {
    // Another thread may have had the mutex at the fork: then it is not to be had in here any more.
    POOLS.before().filter_map(|pools| pools.list.try_lock().ok()).for_each(|mut list| list.clear());
}

/// Managers that are made from now on share nothing with those that are there.
pub fn forget_all() {
    let all = std::mem::take(&mut *locked(&POOLS.here().list));
    drop(all); // this closes connections, and may call Python
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::endpoint::Address;

    const NOW: Instant = Instant::from_zero(Duration::from_secs(1000));

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(Address::Tcp { host: "a".into(), port })
    }

    fn take(pools: &Pools, endpoint: Endpoint) -> Arc<Pool> {
        pools.take(vec![Arc::new(endpoint)], Guards::default())
    }

    fn count(pools: &Pools) -> usize {
        locked(&pools.list).len()
    }

    #[test]
    fn managers_of_the_same_masters_share_a_pool_and_others_do_not() {
        let pools = Pools::default();
        let one = take(&pools, endpoint(1));
        assert!(Arc::ptr_eq(&one, &take(&pools, endpoint(1))));
        let others = [
            Endpoint { password: Some("other".into()), ..endpoint(1) },
            Endpoint { username: Some("other".into()), ..endpoint(1) },
            Endpoint { db: 1, ..endpoint(1) },
            Endpoint { socket_timeout: Some(Duration::from_secs(1)), ..endpoint(1) },
            endpoint(2),
        ];
        for other in others {
            assert!(!Arc::ptr_eq(&one, &take(&pools, other)));
        }
        let guarded = pools.take(vec![Arc::new(endpoint(1))], Guards::new(true, false, 0));
        assert!(!Arc::ptr_eq(&one, &guarded));
        let twice = pools.take(vec![Arc::new(endpoint(1)), Arc::new(endpoint(2))], Guards::default());
        assert!(!Arc::ptr_eq(&one, &twice));
    }

    #[test]
    fn a_pool_is_kept_for_a_while_after_its_last_manager() {
        let pools = Pools::default();
        let (one, other) = (take(&pools, endpoint(1)), take(&pools, endpoint(1)));
        pools.give_back(&one, NOW, true);
        pools.close_unused(NOW.after(LONGEST_UNUSED * 2), MOST_UNUSED);
        assert_eq!(count(&pools), 1, "the other manager uses it");
        pools.give_back(&other, NOW, true);
        pools.close_unused(NOW.after(LONGEST_UNUSED), MOST_UNUSED);
        assert!(Arc::ptr_eq(&one, &take(&pools, endpoint(1))));
        pools.give_back(&one, NOW, true);
        pools.close_unused(NOW.after(LONGEST_UNUSED + Duration::from_nanos(1)), MOST_UNUSED);
        assert_eq!(count(&pools), 0);
    }

    #[test]
    fn of_too_many_the_one_that_is_unused_for_longest_is_closed() {
        let pools = Pools::default();
        let ports: Vec<u16> = (1..).take(MOST_UNUSED + 1).collect();
        let used: Vec<_> = ports.iter().map(|&port| take(&pools, endpoint(port))).collect();
        used.iter().rev().for_each(|pool| pools.give_back(pool, NOW, true));
        assert_eq!(count(&pools), MOST_UNUSED);
        assert!(Arc::ptr_eq(&used[0], &take(&pools, endpoint(ports[0]))));
        assert!(!Arc::ptr_eq(&used[MOST_UNUSED], &take(&pools, endpoint(ports[MOST_UNUSED]))));
    }

    #[test]
    fn the_pool_of_replaced_masters_is_closed_if_no_other_manager_uses_it() {
        let pools = Pools::default();
        let (one, other) = (take(&pools, endpoint(1)), take(&pools, endpoint(1)));
        pools.give_back(&one, NOW, false);
        assert_eq!(count(&pools), 1);
        pools.give_back(&other, NOW, false);
        assert_eq!(count(&pools), 0);
    }
}
