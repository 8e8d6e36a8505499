//! `ringback endpoint`: makes voice providers known to a server, by its HTTP API.

use std::{fmt, io, net::IpAddr, path::Path, time::Duration};

use reqwest::{Method, Url, redirect::Policy};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Where `ringback serve` listens unless it is told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:8787";

/// How long an answer is waited for: as long as an HTTP API of AWS takes for one.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a provider known, of which this is said.
    Create(Map<String, Value>),
    /// Show the endpoints.
    List,
    /// Delete an endpoint.
    Delete(Uuid),
    /// Add a secret that an endpoint's webhooks may be signed with: this one, or a new one.
    AddSecret(Uuid, Option<String>),
    /// Delete one of an endpoint's secrets.
    DeleteSecret(Uuid, Uuid),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor the URL, into which one may be put.
        let name = match self {
            Self::Create(_) => "Create",
            Self::List => "List",
            Self::Delete(_) => "Delete",
            Self::AddSecret(..) => "AddSecret",
            Self::DeleteSecret(..) => "DeleteSecret",
        };
        f.debug_struct(name).finish_non_exhaustive()
    }
}

/// Why it was not done. The texts hold no key.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The server's URL.
    #[error("the server's URL must be an http or https URL, such as http://127.0.0.1:8787")]
    Url,
    /// The key.
    #[error(
        "there is no API key: set RINGBACK_API_KEY, or name the folder of `ringback serve` with --data-dir ({path}: {source})"
    )]
    NoKey {
        /// Where it was looked for.
        path: String,
        /// Why it is not there.
        source: io::Error,
    },
    /// Nobody listens at the server's address.
    #[error(
        "nothing answers at {server}: start `ringback serve`, or name the server with --server ({reason})"
    )]
    Unreachable {
        /// The address.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// There is no answer, or it cannot be read.
    #[error("no answer that can be read came from {server}: {reason}")]
    NoAnswer {
        /// The address.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// The API says no.
    #[error("{0}")]
    Refused(String),
}

/// The key for the API: `given`, or else the one that `ringback serve` keeps in `folder`.
///
/// # Errors
/// There is neither.
pub fn api_key(given: Option<String>, folder: &Path) -> Result<String, EndpointError> {
    if let Some(key) = given {
        return Ok(key);
    }
    let path = folder.join("api-key");
    let missing = |source| EndpointError::NoKey {
        path: path.display().to_string(),
        source,
    };
    let key = std::fs::read_to_string(&path).map_err(missing)?;
    let key = key.trim();
    if key.is_empty() {
        return Err(missing(io::Error::other("it is empty")));
    }
    Ok(key.to_owned())
}

/// What is asked of the API.
struct Ask {
    method: Method,
    path: Vec<String>,
    body: Option<Value>,
}

impl Action {
    fn ask(self) -> Ask {
        let (method, rest, body) = match self {
            Self::Create(body) => (Method::POST, vec![], Some(Value::Object(body))),
            Self::List => (Method::GET, vec![], None),
            Self::Delete(id) => (Method::DELETE, vec![id.to_string()], None),
            Self::AddSecret(id, secret) => (
                Method::POST,
                vec![id.to_string(), "secret".to_owned()],
                secret.map(|secret| json!({ "secret": secret })),
            ),
            Self::DeleteSecret(id, secret) => (
                Method::DELETE,
                vec![id.to_string(), "secret".to_owned(), secret.to_string()],
                None,
            ),
        };
        let path = std::iter::once("endpoint".to_owned()).chain(rest).collect();
        Ask { method, path, body }
    }
}

/// The URL of `path` on `server`, which may have a path of its own.
fn url(server: &str, path: &[String]) -> Result<Url, EndpointError> {
    let mut url: Url = server.parse().map_err(|_| EndpointError::Url)?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(EndpointError::Url);
    }
    url.set_query(None);
    url.set_fragment(None);
    url.path_segments_mut()
        .map_err(|()| EndpointError::Url)?
        .pop_if_empty()
        .extend(path);
    Ok(url)
}

/// Whether `url` leads to this machine, where no proxy is to be asked.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The message in an answer of the API that is not a success.
fn message(status: u16, body: &Value) -> String {
    match &body["message"] {
        Value::String(text) => text.clone(),
        Value::Array(texts) if texts.iter().all(Value::is_string) && !texts.is_empty() => {
            let texts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
            texts.join("; ")
        }
        _ => format!("the server answered with status {status}"),
    }
}

/// What went wrong with a request, with its causes and without its URL.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Asks the API at `server` with the key `api_key`; gives its answer, as JSON for people to read.
///
/// # Errors
/// The API refuses or is not there.
pub async fn run(server: &str, api_key: &str, action: Action) -> Result<String, EndpointError> {
    let Ask { method, path, body } = action.ask();
    let url = url(server, &path)?;
    // Without what may be before the host: a password.
    let server = url.origin().ascii_serialization();
    let no_answer = |error| EndpointError::NoAnswer {
        server: server.clone(),
        reason: reason(error),
    };
    // Followed to another place, the key would go there.
    let mut client = ringback_shared::net::client()
        .redirect(Policy::none())
        .timeout(TIMEOUT);
    if is_loopback(&url) {
        client = client.no_proxy();
    }
    let client = client.build().map_err(no_answer)?;
    let mut request = client.request(method, url).bearer_auth(api_key);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.map_err(|error| {
        if error.is_connect() {
            EndpointError::Unreachable {
                server: server.clone(),
                reason: reason(error),
            }
        } else {
            no_answer(error)
        }
    })?;
    let status = answer.status();
    let bytes = answer.bytes().await.map_err(no_answer)?;
    let body = serde_json::from_slice::<Value>(&bytes);
    if !status.is_success() {
        return Err(EndpointError::Refused(message(
            status.as_u16(),
            &body.unwrap_or_default(),
        )));
    }
    let unreadable = |error: serde_json::Error| EndpointError::NoAnswer {
        server: server.clone(),
        reason: format!("it is not JSON: {error}"),
    };
    let body = body.map_err(unreadable)?;
    Ok(format!("{body:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(action: Action) -> (Method, String, Option<Value>) {
        let Ask { method, path, body } = action.ask();
        let url = url("http://127.0.0.1:8787", &path).unwrap();
        (method, url.path().to_owned(), body)
    }

    #[test]
    fn every_action_is_a_request_of_the_api() {
        let (a, b) = (Uuid::from_u128(10), Uuid::from_u128(11));
        let body = json!({ "url": "https://calls.example.com/v1", "name": "Bridge", "apiKey": "the-key" });
        let create = || Action::Create(body.as_object().cloned().unwrap());
        let path = "/endpoint".to_owned();
        assert_eq!(asked(create()), (Method::POST, path.clone(), Some(body.clone())));
        assert_eq!(asked(Action::List), (Method::GET, path, None));
        assert_eq!(
            asked(Action::Delete(a)),
            (Method::DELETE, format!("/endpoint/{a}"), None)
        );
        assert_eq!(
            asked(Action::AddSecret(a, None)),
            (Method::POST, format!("/endpoint/{a}/secret"), None)
        );
        let secret = json!({ "secret": "s" });
        assert_eq!(
            asked(Action::AddSecret(a, Some("s".to_owned()))),
            (Method::POST, format!("/endpoint/{a}/secret"), Some(secret))
        );
        assert_eq!(
            asked(Action::DeleteSecret(a, b)),
            (Method::DELETE, format!("/endpoint/{a}/secret/{b}"), None)
        );
        assert!(!format!("{:?}", create()).contains("the-key"));
    }

    #[test]
    fn a_server_may_have_a_path_of_its_own() {
        let path = ["endpoint".to_owned(), "x y".to_owned()];
        for (server, whole) in [
            ("http://127.0.0.1:8787", "http://127.0.0.1:8787/endpoint/x%20y"),
            ("http://[::1]:8787/", "http://[::1]:8787/endpoint/x%20y"),
            (
                "https://a.example/stage/?q#f",
                "https://a.example/stage/endpoint/x%20y",
            ),
        ] {
            assert_eq!(url(server, &path).unwrap().as_str(), whole);
        }
        for server in [
            "",
            "127.0.0.1:8787",
            "localhost:8787",
            "file:///tmp",
            "mailto:a@b.c",
        ] {
            assert!(matches!(url(server, &path), Err(EndpointError::Url)), "{server}");
        }
        for (server, here) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]:1", true),
            ("https://a.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&server.parse().unwrap()), here, "{server}");
        }
    }

    #[test]
    fn the_message_is_the_apis() {
        assert_eq!(
            message(404, &json!({ "message": "Endpoint x not found" })),
            "Endpoint x not found"
        );
        let faults = json!({ "message": ["url is odd", "name is too long"] });
        assert_eq!(message(400, &faults), "url is odd; name is too long");
        for odd in [json!(null), json!({}), json!({ "message": [] }), json!([1])] {
            assert_eq!(message(502, &odd), "the server answered with status 502");
        }
    }

    #[test]
    fn the_key_is_the_given_one_or_the_folders() {
        let folder = tempfile::tempdir().unwrap();
        let key = |given: Option<&str>| api_key(given.map(str::to_owned), folder.path());
        let missing = key(None).unwrap_err().to_string();
        assert!(
            missing.contains("RINGBACK_API_KEY") && missing.contains("api-key"),
            "{missing}"
        );
        std::fs::write(folder.path().join("api-key"), " \n").unwrap();
        assert!(key(None).is_err());
        std::fs::write(folder.path().join("api-key"), "rb_1\n").unwrap();
        assert_eq!(key(None).unwrap(), "rb_1");
        assert_eq!(key(Some("rb_2")).unwrap(), "rb_2");
    }

    #[tokio::test]
    async fn who_is_not_there_is_to_be_started() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = run(&server, "rb_1", Action::List).await.unwrap_err().to_string();
        assert!(
            error.contains(&server) && error.contains("ringback serve"),
            "{error}"
        );
        assert!(!error.contains("rb_1"), "{error}");
    }
}
