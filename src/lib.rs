//! Redlock: a distributed lock over N independent Redis masters.
//!
//! The algorithm (<https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/>), as one round of
//! [`engine::acquire`] runs it:
//!
//! 1. read the clock;
//! 2. send `SET resource key NX PX ttl` to every master at once;
//! 3. take the replies as they come; the lock is held as soon as a majority said `OK`
//!    and `ttl − elapsed − drift > 0`: that is its validity ([`quorum`]);
//! 4. otherwise release on every master, pause for a random while ([`retry`]) and go again with a new key ([`token`]);
//! 5. to release, delete the key on every master if its value is still ours ([`script`]).
//!
//! The engine never blocks, never sleeps and never starts a thread: it says which descriptors and which instant it is
//! waiting for ([`engine::Session`]), and a [`host`] does the waiting.

#[cfg(all(feature = "planted-bugs", feature = "python"))]
compile_error!("planted bugs are for the simulation, never for anything that is shipped");

pub mod claim;
pub mod clock;
pub mod engine;
pub mod error;
pub mod fence;
pub mod host;
pub mod lease;
pub mod master;
#[cfg(feature = "planted-bugs")]
pub mod planted;
#[cfg(not(feature = "planted-bugs"))]
mod planted;
#[cfg(feature = "python")]
mod python;
pub mod quorum;
pub mod retry;
pub mod runtime;
pub mod script;
pub mod token;
