//! The AWS SDK's way to the emulators of the same process: its requests and answers are the ones that go over HTTP, but
//! no socket lies between. A third of what a conversation costs on a laptop was loopback traffic and its parsing.

use std::sync::Arc;

use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
    },
    http::StatusCode,
};
use axum::body::Bytes;
use dynoxide::{Database, DynoxideError};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;

use crate::emulator::{Jobs, Queues};

/// The way to the embedded table.
#[derive(Debug, Clone)]
pub(crate) struct ToTable {
    pub(crate) jobs: Jobs,
    /// Told of every write.
    pub(crate) written: Arc<Notify>,
}

/// The way to the embedded queues.
#[derive(Debug, Clone)]
pub(crate) struct ToQueues(pub(crate) Arc<Queues>);

/// An HTTP client of the SDK that goes this way.
pub(crate) fn by(way: impl HttpConnector + 'static) -> SharedHttpClient {
    let way = SharedHttpConnector::new(way);
    http_client_fn(move |_, _| way.clone())
}

/// The operation that a request's target names.
fn operation(request: &HttpRequest) -> String {
    let target = request.headers().get("x-amz-target").unwrap_or_default();
    target.rsplit('.').next().unwrap_or_default().to_owned()
}

fn status(code: u16) -> Result<StatusCode, ConnectorError> {
    StatusCode::try_from(code).map_err(|error| ConnectorError::other(error.into(), None))
}

impl HttpConnector for ToTable {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let way = self.clone();
        HttpConnectorFuture::new(async move {
            let operation = operation(&request);
            // The body is shared, not copied.
            let body = request.into_body();
            let writes = WRITES.contains(&operation.as_str());
            let (code, answer) = way
                .jobs
                .run(move |_, database| answer(database, &operation, body.bytes().unwrap_or_default()))
                .await
                .map_err(|error| ConnectorError::io(error.into()))?;
            if writes && code == 200 {
                way.written.notify_one();
            }
            Ok(HttpResponse::new(status(code)?, answer.into()))
        })
    }
}

impl HttpConnector for ToQueues {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let queues = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|error| ConnectorError::user(error.into()))?;
            let (parts, body) = request.into_parts();
            let body = Bytes::copy_from_slice(body.bytes().unwrap_or_default());
            let answer = queues.answer(parts, body).await;
            Ok(HttpResponse::new(status(answer.status)?, answer.body.into()))
        })
    }
}

/// The operations after which the stream has something new.
const WRITES: [&str; 5] = [
    "PutItem",
    "UpdateItem",
    "DeleteItem",
    "BatchWriteItem",
    "TransactWriteItems",
];

/// Performs an operation that a function or the set-up asks for; gives the status and the JSON body of the answer.
fn answer(database: &Database, operation: &str, body: &[u8]) -> (u16, String) {
    macro_rules! perform {
        ($($name:literal => $method:ident),* $(,)?) => {
            match operation {
                $($name => run(body, |request| database.$method(request)),)*
                _ => Err(DynoxideError::ValidationException(format!(
                    "{operation} is not for the embedded table's own process"
                ))),
            }
        };
    }
    let done = perform! {
        "PutItem" => put_item,
        "GetItem" => get_item,
        "Query" => query,
        "TransactWriteItems" => transact_write_items,
        "BatchGetItem" => batch_get_item,
        "BatchWriteItem" => batch_write_item,
        "UpdateItem" => update_item,
        "DeleteItem" => delete_item,
        "CreateTable" => create_table,
        "DescribeTable" => describe_table,
        "UpdateTimeToLive" => update_time_to_live,
        "DescribeTimeToLive" => describe_time_to_live,
    };
    match done {
        Ok(body) => (200, body),
        Err(error) => (error.status_code(), error.to_json()),
    }
}

fn run<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    perform: impl FnOnce(Q) -> Result<A, DynoxideError>,
) -> Result<String, DynoxideError> {
    let internal = |error: serde_json::Error| DynoxideError::InternalServerError(error.to_string());
    let request = serde_json::from_slice(body)
        .map_err(|error| DynoxideError::SerializationException(error.to_string()))?;
    serde_json::to_string(&perform(request)?).map_err(internal)
}
