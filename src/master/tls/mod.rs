//! TLS to one master: the settings as redis-py means its `ssl_*` arguments, and the handshake.
//!
//! rustls on the `tokio` I/O traits, without a runtime and without a process-wide crypto provider.

mod certificate;
mod roots;
mod settings;
mod verifier;

#[cfg(test)]
mod tests;

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::Error;
use tokio_rustls::rustls::pki_types::ServerName;

pub use settings::{CertReqs, Tls, TlsError, TlsSettings, TlsVersion};

/// Does the TLS handshake over `stream`, with a master called `server_name`: a DNS name or an IP address, no brackets.
///
/// What the settings name is read now. A file that cannot be used is an error of this connection, which names the file.
///
/// Dropping the result, or this future half way, sends nothing: neither tokio-rustls's `TlsStream` and `Connect` nor
/// rustls's `ClientConnection` implement `Drop`, and a `close_notify` is queued only by `AsyncWrite::poll_shutdown`.
/// That is what lets a forked child let go of its parent's sessions. The error of a refused certificate has the kind
/// `InvalidData`, with the reason in it.
pub async fn connect<S>(tls: &Tls, server_name: &str, stream: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let invalid = |message| io::Error::new(io::ErrorKind::InvalidInput, message);
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| invalid(format!("TLS server name {server_name:?}: expected a DNS name or an IP address")))?;
    let config = tls.config().map_err(|error| invalid(error.to_string()))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| explained(&error).unwrap_or(error))
}

/// The verifier's own reasons, which rustls calls "other error".
fn explained(error: &io::Error) -> Option<io::Error> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::Other(refusal) => Some(io::Error::new(error.kind(), format!("invalid peer certificate: {refusal}"))),
        _ => None,
    }
}
