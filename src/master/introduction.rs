//! Who is it, since when is it there, what does it keep, and what time has it? Asked when a connection is made.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{join, join3};
use redis::{Value, cmd};

use crate::error::Error;
use crate::master::guard::{Introduction, Reading};
use crate::master::health::Health;
use crate::master::link::Link;
use crate::runtime::Handle;

/// Have the server introduce itself. Two names of one server are one master: `run_id` tells.
///
/// Asked once where nothing depends on it, for a user without INFO would fill the ACL log. `Err` where it does and the
/// answer may not be had.
pub(super) async fn introduce(link: &Link, health: &Health, handle: &Handle) -> Result<(), Error> {
    join(ask_identity(link, health, handle), ask_time_if_due(link, health, handle)).await.0
}

async fn ask_identity(link: &Link, health: &Health, handle: &Handle) -> Result<(), Error> {
    if health.is_identified() {
        return Ok(());
    }
    let server = if health.guards().restart { ask_in_full(link).await } else { ask_server(link).await };
    health.identify(server.as_ref(), handle.now());
    if health.guards().restart && server.is_none() {
        return Err(Error::Setup("restart_guard needs the right to INFO".into()));
    }
    Ok(())
}

async fn ask_server(link: &Link) -> Option<Introduction> {
    let info = fields(link.call(cmd("INFO").arg("server"), None).await.ok()?)?;
    let uptime = info
        .get("uptime_in_seconds")
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::MAX, Duration::from_secs);
    Some(Introduction { run_id: info.get("run_id")?.clone(), uptime, is_durable: false })
}

async fn ask_in_full(link: &Link) -> Option<Introduction> {
    let (mut info, mut config) = (cmd("INFO"), cmd("CONFIG"));
    let persistence = link.call(info.arg("persistence"), None);
    let (server, persistence, fsync) =
        join3(ask_server(link), persistence, link.call(config.arg("GET").arg("appendfsync"), None)).await;
    let has_aof = fields(persistence.ok()?)?.get("aof_enabled").is_some_and(|enabled| enabled == "1");
    // Where it may not be asked it may not be relied on.
    let fsync = fsync.ok().and_then(|reply| redis::from_redis_value::<HashMap<String, String>>(reply).ok());
    let always = fsync.is_some_and(|config| config.get("appendfsync").is_some_and(|when| when == "always"));
    Some(Introduction { is_durable: has_aof && always, ..server? })
}

/// The `name:value` lines of an INFO.
fn fields(reply: Value) -> Option<HashMap<String, String>> {
    let text = redis::from_redis_value::<String>(reply).ok()?;
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Some(text.lines().filter_map(field).collect())
}

async fn ask_time_if_due(link: &Link, health: &Health, handle: &Handle) {
    if health.clock_is_due(handle.now()) {
        ask_time(link, health, handle).await;
    }
}

/// Compare the master's clock with ours.
pub(super) async fn ask_time(link: &Link, health: &Health, handle: &Handle) {
    let sent = handle.now();
    let Ok(reply) = link.call(&cmd("TIME"), None).await else { return };
    let shown = redis::from_redis_value::<(u64, u32)>(reply).ok();
    let shown = shown.map(|(seconds, micros)| Duration::new(seconds, micros.min(999_999) * 1000));
    health.read_clock(shown.map(|shown| Reading { shown, sent, received: handle.now() }));
}
