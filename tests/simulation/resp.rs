//! RESP as a server sees it: requests in, replies out.

/// A request, word by word.
pub type Request = Vec<Vec<u8>>;

/// Bytes as they come, requests as they are complete.
#[derive(Debug, Default)]
pub struct Requests(Vec<u8>);

impl Requests {
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next complete request.
    ///
    /// # Panics
    ///
    /// If the bytes are no request: the engine wrote nonsense.
    pub fn next(&mut self) -> Option<Request> {
        let mut rest = self.0.as_slice();
        let count = header(&mut rest, b'*')?;
        let words = (0..count).map(|_| word(&mut rest)).collect::<Option<Vec<&[u8]>>>()?;
        let words = words.into_iter().map(<[u8]>::to_vec).collect();
        let used = self.0.len() - rest.len();
        self.0.drain(..used);
        Some(words)
    }
}

fn header(rest: &mut &[u8], kind: u8) -> Option<usize> {
    let end = rest.iter().position(|&byte| byte == b'\n')?.saturating_sub(1);
    assert_eq!(rest[0], kind, "not a request: {}", rest.escape_ascii());
    let number = std::str::from_utf8(&rest[1..end]).unwrap().parse().unwrap();
    *rest = &rest[end + 2..];
    Some(number)
}

fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = header(rest, b'$')?;
    let word = rest.get(..len)?;
    *rest = rest.get(len + 2..)?;
    Some(word)
}

/// The protocol version of a connection decides what a nil, a map and a text look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Resp2,
    Resp3,
}

pub fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

pub fn integer(number: i64) -> Vec<u8> {
    format!(":{number}\r\n").into_bytes()
}

impl Protocol {
    pub fn nil(self) -> Vec<u8> {
        match self {
            Self::Resp2 => b"$-1\r\n".to_vec(),
            Self::Resp3 => b"_\r\n".to_vec(),
        }
    }

    pub fn map(self, fields: &[(&str, &str)]) -> Vec<u8> {
        let head = match self {
            Self::Resp2 => format!("*{}\r\n", 2 * fields.len()),
            Self::Resp3 => format!("%{}\r\n", fields.len()),
        };
        let body = fields.iter().flat_map(|(name, value)| [bulk(name.as_bytes()), bulk(value.as_bytes())].concat());
        head.bytes().chain(body).collect()
    }

    pub fn text(self, text: &str) -> Vec<u8> {
        match self {
            Self::Resp2 => bulk(text.as_bytes()),
            Self::Resp3 => format!("={}\r\ntxt:{text}\r\n", text.len() + 4).into_bytes(),
        }
    }
}

/// What is pushed when a key that was read has changed.
pub fn invalidate(resource: &[u8]) -> Vec<u8> {
    [b">2\r\n$10\r\ninvalidate\r\n*1\r\n".as_slice(), &bulk(resource)].concat()
}

/// A push that nobody asked for and that answers nothing.
pub const PUSH: &[u8] = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$5\r\nother\r\n";
