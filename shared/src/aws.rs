//! How a function reaches AWS: what Lambda says in the environment and nothing else is asked, and requests go out through the
//! same HTTP client as all others. The SDK's own loader and HTTP client would look for credentials in a dozen places that a
//! function does not have, and bring HTTP/2: a tenth of each function's size, and time before it is ready.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider,
    timeout::TimeoutConfig,
};
use aws_sdk_dynamodb::config::{SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        retries::ErrorKind,
    },
    http::StatusCode,
};
use reqwest::Client;

use crate::config::Cloud;

/// A client of a service, made with the first request: for each client the SDK reads its list of the world's regions, which takes
/// longer than all else that a function does before it is ready, and most functions use one service or two.
pub(crate) type Lazy<C> = Arc<LazyLock<C, Box<dyn FnOnce() -> C + Send>>>;

/// A client that `make` makes.
pub(crate) fn lazy<C>(make: impl FnOnce() -> C + Send + 'static) -> Lazy<C> {
    Arc::new(LazyLock::new(Box::new(make)))
}

/// The SDK's requests through an HTTP client that is there anyway.
#[derive(Debug, Clone)]
struct Connector(Client);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|error| ConnectorError::user(error.into()))?;
            let (head, body) = request.into_parts();
            let body = body
                .bytes()
                .ok_or_else(|| ConnectorError::user("a body that is a stream cannot be sent".into()))?
                .to_vec();
            let request = reqwest::Request::try_from(http::Request::from_parts(head, body))
                .map_err(|error| ConnectorError::user(error.into()))?;
            let answer = client.execute(request).await.map_err(failed)?;
            let status = StatusCode::try_from(answer.status().as_u16())
                .map_err(|error| ConnectorError::other(error.into(), None))?;
            let headers = answer.headers().clone();
            let body = answer.bytes().await.map_err(failed)?;
            let mut response = HttpResponse::new(status, body.into());
            for (name, value) in &headers {
                // What is no text is no header of AWS's.
                if let Ok(value) = value.to_str() {
                    response
                        .headers_mut()
                        .append(name.as_str().to_owned(), value.to_owned());
                }
            }
            Ok(response)
        })
    }
}

/// What the SDK should think of a failure: whether it may be repeated.
fn failed(error: reqwest::Error) -> ConnectorError {
    if error.is_timeout() {
        ConnectorError::timeout(error.into())
    } else if error.is_builder() {
        ConnectorError::user(error.into())
    } else if error.is_connect() || error.is_request() || error.is_body() {
        // A kept connection that the other side has closed is among them.
        ConnectorError::io(error.into())
    } else {
        ConnectorError::other(error.into(), Some(ErrorKind::TransientError))
    }
}

/// The HTTP client for AWS's services.
///
/// # Errors
/// TLS cannot be set up.
pub fn http_client() -> Result<SharedHttpClient, reqwest::Error> {
    let client = crate::net::builder()
        .connect_timeout(Duration::from_secs(1))
        .build()?;
    let connector = SharedHttpConnector::new(Connector(client));
    // The time for an attempt is the SDK's to watch over; the time to connect is the client's.
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// The SDK's configuration for a function: its role's credentials, short time limits.
///
/// # Errors
/// TLS cannot be set up.
pub(crate) fn config(cloud: &Cloud) -> Result<SdkConfig, reqwest::Error> {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(1))
        .operation_attempt_timeout(Duration::from_secs(3))
        .operation_timeout(Duration::from_secs(10))
        .build();
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(cloud.region.clone()))
        .credentials_provider(SharedCredentialsProvider::new(
            EnvironmentVariableCredentialsProvider::new(),
        ))
        .timeout_config(timeouts)
        .http_client(http_client()?);
    config.set_endpoint_url(cloud.endpoint.clone());
    Ok(config.build())
}
