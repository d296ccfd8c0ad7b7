//! The limit: what lock and unlock on N Redis masters cost over plain blocking sockets, without any library.
//!
//! A lock is `SET NX PX` written to all masters, then all replies read; an unlock is `EVALSHA` of the release script,
//! the same way. No quorum, no deadline, no retry, no key from the operating system: nothing can be left out but the
//! network itself. `make bench` runs it beside the others, with the commands of `benches/worker.py`.
//!
//! ```text
//! raw_probe HOST:PORT...    says {"version": ...}; then answers, a line of JSON for a line each:
//! pairs SECONDS MOST        -> {"locked": [microseconds], "pairs": [microseconds], "failed": {}}
//! ```
#![allow(clippy::print_stdout, reason = "a program's answer")]
#![allow(clippy::disallowed_methods, reason = "a stopwatch, not a lock's clock")]

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

const SCRIPT: &str = "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

/// One master: a socket, and its replies by line.
struct Master(BufReader<TcpStream>);

impl Master {
    fn connect(address: &str) -> Outcome<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, command: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(command)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn expect(&mut self, wanted: &str) -> Outcome<()> {
        match self.line()? {
            line if line == wanted => Ok(()),
            other => Err(format!("expected {wanted}, got {other:?}").into()),
        }
    }

    /// Loads the release script and returns its digest.
    fn load(&mut self) -> Outcome<String> {
        self.send(&command(&["SCRIPT", "LOAD", SCRIPT]))?;
        self.expect("$40")?;
        Ok(self.line()?)
    }
}

/// A command as RESP2 writes it.
fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        // Writing to a String cannot fail.
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text.into_bytes()
}

/// Writes to all, then reads from all.
fn round(masters: &mut [Master], command: &[u8], wanted: &str) -> Outcome<()> {
    for master in &mut *masters {
        master.send(command)?;
    }
    masters.iter_mut().try_for_each(|master| master.expect(wanted))
}

/// One lock and unlock; microseconds until held and until released.
fn pair(masters: &mut [Master], digest: &str, key: &str) -> Outcome<(f64, f64)> {
    let resource = format!("bench:{}", process::id());
    let begin = Instant::now();
    round(masters, &command(&["SET", &resource, key, "NX", "PX", "10000"]), "+OK")?;
    let held = begin.elapsed();
    round(masters, &command(&["EVALSHA", digest, "1", &resource, key]), ":1")?;
    Ok((held.as_secs_f64() * 1e6, begin.elapsed().as_secs_f64() * 1e6))
}

/// Pairs until the time is over or there are enough, at least one.
fn pairs(masters: &mut [Master], digest: &str, seconds: f64, most: usize) -> Outcome<String> {
    let (begin, mut locked, mut both) = (Instant::now(), Vec::new(), Vec::new());
    while both.is_empty() || (begin.elapsed().as_secs_f64() < seconds && both.len() < most) {
        let (lock, pair) = pair(masters, digest, &format!("{:022}", both.len()))?;
        locked.push(lock);
        both.push(pair);
    }
    // A slice of numbers is written as JSON writes it.
    Ok(format!(r#"{{"locked": {locked:?}, "pairs": {both:?}, "failed": {{}}}}"#))
}

fn main() -> Outcome<()> {
    let mut masters = env::args().skip(1).map(|address| Master::connect(&address)).collect::<Outcome<Vec<_>>>()?;
    let digest = masters.iter_mut().map(Master::load).last().ok_or("usage: raw_probe HOST:PORT...")??;
    println!(r#"{{"version": "sockets"}}"#);
    for line in io::stdin().lines() {
        let line = line?;
        let (seconds, most) =
            line.strip_prefix("pairs ").and_then(|words| words.split_once(' ')).ok_or("unknown command")?;
        println!("{}", pairs(&mut masters, &digest, seconds.parse()?, most.parse()?)?);
    }
    Ok(())
}
