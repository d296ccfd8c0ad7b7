//! `_redlock.Endpoint`: redis-py's settings of one connection, checked and made native.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::master::endpoint::{self, Address, Keepalive};
use crate::master::tls::{CertReqs, Tls, TlsSettings, TlsVersion};
use crate::python::credentials::Asked;

/// Where one Redis master is and how to log in to it.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Endpoint(pub(super) Arc<endpoint::Endpoint>);

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (*, host = "localhost", port = 6379, path = None, db = 0, username = None, password = None,
        credentials = None, client_name = None, protocol = None, socket_timeout = None, socket_connect_timeout = None, socket_keepalive = false,
        socket_keepalive_options = None, health_check_interval = None, tls = None, service = None, sentinels = None, sentinel_username = None,
        sentinel_password = None))]
    #[expect(clippy::too_many_arguments, reason = "redis-py's own keyword arguments")]
    fn new(
        host: &str,
        port: i64,
        path: Option<PathBuf>,
        db: i64,
        username: Option<String>,
        password: Option<String>,
        credentials: Option<Py<PyAny>>,
        client_name: Option<String>,
        protocol: Option<i64>,
        socket_timeout: Option<f64>,
        socket_connect_timeout: Option<f64>,
        socket_keepalive: bool,
        socket_keepalive_options: Option<HashMap<i64, i64>>,
        health_check_interval: Option<f64>,
        tls: Option<&Bound<'_, PyDict>>,
        service: Option<String>,
        sentinels: Option<Vec<(String, i64)>>,
        sentinel_username: Option<String>,
        sentinel_password: Option<String>,
    ) -> PyResult<Self> {
        let address = match (path, service) {
            (Some(path), _) => Address::Unix(path),
            (None, Some(service)) => sentinel(service, sentinels.unwrap_or_default())?,
            (None, None) => Address::Tcp { host: host_name(host)?, port: port_number(port)? },
        };
        let tls = tls.map(|settings| {
            let tls = Tls::new(tls_settings(settings)?).map_err(|error| PyValueError::new_err(error.to_string()))?;
            Ok::<_, PyErr>(Arc::new(tls))
        });
        Ok(Self(Arc::new(endpoint::Endpoint {
            address,
            db: database(db)?,
            username,
            password,
            credentials: credentials.map(|ask| Arc::new(Asked(ask)) as Arc<dyn endpoint::Credentials>),
            sentinel_username,
            sentinel_password,
            client_name,
            resp2: resp2(protocol)?,
            socket_timeout: seconds("socket_timeout", socket_timeout)?,
            connect_timeout: seconds("socket_connect_timeout", socket_connect_timeout)?,
            keepalive: keepalive(socket_keepalive, socket_keepalive_options.unwrap_or_default())?,
            health_check_interval: seconds("health_check_interval", health_check_interval)?,
            tls: tls.transpose()?,
        })))
    }

    #[getter]
    fn address(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

fn host_name(host: &str) -> PyResult<String> {
    if host.is_empty() || host.contains('\0') {
        return Err(PyValueError::new_err(format!("host {host:?}: expected a name or an IP address")));
    }
    Ok(host.to_owned())
}

fn port_number(port: i64) -> PyResult<u16> {
    u16::try_from(port)
        .ok()
        .filter(|&port| port > 0)
        .ok_or_else(|| PyValueError::new_err(format!("port {port}: expected 1 to 65535")))
}

fn sentinel(service: String, sentinels: Vec<(String, i64)>) -> PyResult<Address> {
    if service.is_empty() || sentinels.is_empty() {
        let message = format!("service {service:?}: expected the name of a master and at least one sentinel");
        return Err(PyValueError::new_err(message));
    }
    let checked = |(host, port): (String, i64)| Ok((host_name(&host)?, port_number(port)?));
    let sentinels = sentinels.into_iter().map(checked).collect::<PyResult<_>>()?;
    Ok(Address::Sentinel { service, sentinels })
}

fn database(db: i64) -> PyResult<i64> {
    if db < 0 { Err(PyValueError::new_err(format!("db {db}: expected 0 or more"))) } else { Ok(db) }
}

fn resp2(protocol: Option<i64>) -> PyResult<bool> {
    match protocol {
        None | Some(3) => Ok(false),
        Some(2) => Ok(true),
        Some(other) => Err(PyValueError::new_err(format!("protocol {other}: expected 2 or 3"))),
    }
}

fn seconds(name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if !duration.is_zero() => Ok(Some(duration)),
        _ => Err(PyValueError::new_err(format!("{name} {value}: expected more than 0 seconds"))),
    }
}

/// redis-py hands these to `setsockopt` by number. The numbers are Linux's and, but for the first, Apple's.
fn keepalive(enabled: bool, options: HashMap<i64, i64>) -> PyResult<Keepalive> {
    const IDLE: i64 = if cfg!(target_vendor = "apple") { 0x10 } else { 4 };
    const INTERVAL: i64 = if cfg!(target_vendor = "apple") { 0x101 } else { 5 };
    const COUNT: i64 = if cfg!(target_vendor = "apple") { 0x102 } else { 6 };
    const USER_TIMEOUT: Option<i64> = if cfg!(target_os = "linux") { Some(18) } else { None };
    let mut keepalive = Keepalive { enabled, ..Keepalive::default() };
    for (option, value) in options {
        let positive = u32::try_from(value).ok().filter(|&value| value > 0 || Some(option) == USER_TIMEOUT);
        let value = positive.ok_or_else(|| {
            PyValueError::new_err(format!("socket_keepalive_options {option}: {value}: expected more than 0"))
        })?;
        match option {
            IDLE => keepalive.idle = Some(Duration::from_secs(value.into())),
            INTERVAL => keepalive.interval = Some(Duration::from_secs(value.into())),
            COUNT => keepalive.count = Some(value),
            option if Some(option) == USER_TIMEOUT => keepalive.user_timeout = Some(value),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "socket_keepalive_options {option}: expected TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT or, on Linux, \
                     TCP_USER_TIMEOUT"
                )));
            }
        }
    }
    Ok(keepalive)
}

fn tls_settings(settings: &Bound<'_, PyDict>) -> PyResult<TlsSettings> {
    let mut tls = TlsSettings::default();
    for (name, value) in settings {
        match name.extract::<&str>()? {
            "cert_reqs" => tls.cert_reqs = cert_reqs(&value.extract::<String>()?)?,
            "check_hostname" => tls.check_hostname = value.extract()?,
            "ca_certs" => tls.ca_file = value.extract()?,
            "ca_path" => tls.ca_path = value.extract()?,
            "ca_data" => tls.ca_data = Some(ca_data(&value)?),
            "partial_chain" => tls.partial_chain = value.extract()?,
            "strict" => tls.strict = value.extract()?,
            "certfile" => tls.cert_file = value.extract()?,
            "keyfile" => tls.key_file = value.extract()?,
            "min_version" => {
                tls.min_version = value.extract::<Option<String>>()?.as_deref().map(tls_version).transpose()?;
            }
            other => return Err(PyTypeError::new_err(format!("tls has no setting {other:?}"))),
        }
    }
    Ok(tls)
}

/// Text is PEM, bytes are DER.
fn ca_data(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    match value.extract::<String>() {
        Ok(text) => Ok(text.into_bytes()),
        Err(_) => value.extract(),
    }
}

fn cert_reqs(value: &str) -> PyResult<CertReqs> {
    match value {
        "required" => Ok(CertReqs::Required),
        "optional" => Ok(CertReqs::Optional),
        "none" => Ok(CertReqs::None),
        other => {
            Err(PyValueError::new_err(format!("cert_reqs {other:?}: expected \"required\", \"optional\" or \"none\"")))
        }
    }
}

fn tls_version(value: &str) -> PyResult<TlsVersion> {
    match value {
        "1.2" => Ok(TlsVersion::Tls12),
        "1.3" => Ok(TlsVersion::Tls13),
        other => Err(PyValueError::new_err(format!("min_version {other:?}: expected \"1.2\" or \"1.3\""))),
    }
}
