//! RESP, told apart as far as the oracle needs it: where a reply ends, and whether it is one at all.
//!
//! On purpose not redis-rs's parser: what that makes of the bytes is what is being tested. Where bytes are malformed this
//! is the more lenient of the two; then it believes in more grants, never in fewer.

/// redis-rs gives up on deeper nesting.
const DEEPEST: usize = 100;

/// What a reply begins with.
const TYPES: &[u8] = b"+-:_,#($!=*~>%|";

/// The length of the first whole reply in `bytes`; `None` when more bytes are needed, or it is no RESP.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    value(bytes, 0)
}

/// A reply without the bytes before it that begin none: redis-rs passes over such a byte where a read ends with it.
pub(crate) fn stripped(reply: &[u8]) -> &[u8] {
    let begin = reply.iter().position(|byte| TYPES.contains(byte)).unwrap_or_default();
    &reply[begin..]
}

/// Whether a whole reply answers no command.
pub(crate) fn is_push(reply: &[u8]) -> bool {
    reply.first() == Some(&b'>') && !ANSWERING.iter().any(|kind| starts_with_kind(reply, kind))
}

/// Pushes that are answers to commands, and as such take the place of one.
const ANSWERING: [&str; 6] = ["subscribe", "unsubscribe", "psubscribe", "punsubscribe", "ssubscribe", "sunsubscribe"];

fn starts_with_kind(push: &[u8], kind: &str) -> bool {
    let Some(head) = line(push) else { return false };
    let first = &push[head..];
    let Some(end) = length(first) else { return false };
    [format!("+{kind}\r\n"), format!("${}\r\n{kind}\r\n", kind.len())]
        .iter()
        .any(|text| text.as_bytes() == &first[..end])
}

fn value(bytes: &[u8], depth: usize) -> Option<usize> {
    let skipped = bytes.iter().position(|byte| TYPES.contains(byte))?;
    typed(&bytes[skipped..], depth).map(|length| skipped + length)
}

fn typed(bytes: &[u8], depth: usize) -> Option<usize> {
    let head = line(bytes).filter(|_| depth <= DEEPEST)?;
    match bytes[0] {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => Some(head),
        b'$' | b'!' | b'=' => blob(bytes, head),
        b'*' | b'~' | b'>' => values(bytes, head, number(bytes, head)?, depth),
        b'%' => values(bytes, head, number(bytes, head)?.checked_mul(2)?, depth),
        _ => values(bytes, head, number(bytes, head)?.checked_mul(2)?.checked_add(1)?, depth),
    }
}

fn blob(bytes: &[u8], head: usize) -> Option<usize> {
    let Ok(size) = usize::try_from(number(bytes, head)?) else { return Some(head) };
    let end = head.checked_add(size)?.checked_add(2)?;
    bytes.get(head..end)?.ends_with(b"\r\n").then_some(end)
}

fn values(bytes: &[u8], head: usize, count: i64, depth: usize) -> Option<usize> {
    let mut end = head;
    for _ in 0..count.max(0) {
        end += value(&bytes[end..], depth + 1)?;
    }
    Some(end)
}

/// Where the first line ends, its line break included.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2)
}

fn number(bytes: &[u8], head: usize) -> Option<i64> {
    std::str::from_utf8(&bytes[1..head]).ok()?.trim().parse().ok()
}
