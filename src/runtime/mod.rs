//! What lies under the engine instead of an async runtime: tasks, timers and descriptors that somebody else waits for.
//!
//! Nothing here blocks. A host runs the [`Executor`] until it stalls, asks it for its [`Wait`], waits, tells each
//! [`Source`] what it is ready for, and runs it again.

mod bell;
mod descriptor;
mod effects;
mod executor;
mod race;
mod source;

pub use bell::{Bell, Rung, bell};
pub use descriptor::Descriptor;
pub use effects::{Alarm, Effects, Stream};
pub(crate) use executor::locked;
pub use executor::{Executor, Handle, Sleep, Wait};
pub(crate) use race::race;
pub use source::{Socket, Source};
