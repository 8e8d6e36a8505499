//! The HTTP API: a web server that hands every request to the API's function as API Gateway does (payload format 2.0).

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use aws_lambda_events::{
    apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse},
    encodings::Body,
};
use axum::{
    body::Bytes,
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE},
        request::Parts,
    },
    response::IntoResponse,
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use ringback_shared::clock::{Deadline, SharedClock};
use tokio::net::TcpListener;

use crate::drivers::{Stop, invoke};

/// The largest request body, as API Gateway's.
pub const LARGEST_BODY: usize = 10 * 1024 * 1024;

/// The longest that the function may take, as API Gateway's.
const TIMEOUT: Duration = Duration::from_secs(29);

type Handler = dyn Fn(ApiGatewayV2httpRequest) -> BoxFuture<'static, ApiGatewayV2httpResponse> + Send + Sync;

/// What every request needs.
struct Api {
    handler: Box<Handler>,
    clock: SharedClock,
}

/// Serves `handler` until the stop. `GET /health` is answered here.
///
/// # Errors
/// The server failed.
pub async fn serve<H, F>(
    listener: TcpListener,
    handler: H,
    clock: SharedClock,
    mut stop: Stop,
) -> std::io::Result<()>
where
    H: Fn(ApiGatewayV2httpRequest) -> F + Send + Sync + 'static,
    F: Future<Output = ApiGatewayV2httpResponse> + Send + 'static,
{
    let api = Api {
        handler: Box::new(move |event| Box::pin(handler(event))),
        clock,
    };
    let router = axum::Router::new()
        .route("/health", get(health).fallback(answer))
        .fallback(answer)
        .with_state(Arc::new(api))
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.stopped().await })
        .await
}

async fn health() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

async fn answer(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response<axum::body::Body> {
    let (parts, body) = request.into_parts();
    let announced = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > LARGEST_BODY) {
        return message(StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long");
    }
    let body = match axum::body::to_bytes(body, LARGEST_BODY).await {
        Ok(body) => body,
        // Either it is too long or the client went away, and then nobody reads the answer.
        Err(_) => return message(StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long"),
    };
    let event = request_event(&parts, &body, peer.ip(), api.clock.now_ms());
    let deadline = Deadline::after(TIMEOUT);
    // A task of its own: on Lambda a client that hangs up does not stop the function either.
    let call =
        tokio::spawn(async move { invoke("api", deadline, async { Ok((api.handler)(event).await) }).await });
    match call.await {
        Ok(Some(answer)) => response(answer),
        Ok(None) if deadline.left().is_zero() => {
            message(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable")
        }
        Ok(None) | Err(_) => message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
    }
}

fn message(status: StatusCode, text: &str) -> Response<axum::body::Body> {
    let body = serde_json::json!({ "message": text }).to_string();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

/// The event that API Gateway makes of a request.
#[must_use]
pub fn request_event(parts: &Parts, body: &Bytes, source: IpAddr, now_ms: i64) -> ApiGatewayV2httpRequest {
    let path = parts.uri.path();
    let query = parts.uri.query().unwrap_or_default();
    let mut event = ApiGatewayV2httpRequest::default();
    event.version = Some("2.0".to_owned());
    event.route_key = Some("$default".to_owned());
    event.raw_path = Some(path.to_owned());
    event.raw_query_string = Some(query.to_owned());
    event.query_string_parameters = query_parameters(query).into();
    event.headers = joined(&parts.headers);
    match std::str::from_utf8(body) {
        Ok("") => {}
        Ok(text) => event.body = Some(text.to_owned()),
        Err(_) => {
            event.body = Some(STANDARD.encode(body));
            event.is_base64_encoded = true;
        }
    }
    let context = &mut event.request_context;
    context.route_key = Some("$default".to_owned());
    context.stage = Some("$default".to_owned());
    context.account_id = Some("000000000000".to_owned());
    context.apiid = Some("local".to_owned());
    context.request_id = Some(uuid::Uuid::now_v7().to_string());
    context.domain_name = parts
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .map(ToOwned::to_owned);
    context.time_epoch = now_ms;
    context.http.method = parts.method.clone();
    context.http.path = Some(path.to_owned());
    context.http.protocol = Some(format!("{:?}", parts.version));
    context.http.source_ip = Some(source.to_string());
    context.http.user_agent = parts
        .headers
        .get("user-agent")
        .and_then(|agent| agent.to_str().ok())
        .map(ToOwned::to_owned);
    event
}

/// One value per header, repeated ones joined by a comma. (Names are lower case already.)
fn joined(headers: &HeaderMap) -> HeaderMap {
    let mut all = HeaderMap::with_capacity(headers.keys_len());
    for name in headers.keys() {
        let mut values = headers.get_all(name).iter();
        let Some(first) = values.next() else { continue };
        let mut rest = values.peekable();
        if rest.peek().is_none() {
            all.insert(name.clone(), first.clone());
            continue;
        }
        let mut bytes = first.as_bytes().to_vec();
        for value in rest {
            bytes.push(b',');
            bytes.extend_from_slice(value.as_bytes());
        }
        // Valid values joined by a comma are a valid value.
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            all.insert(name.clone(), value);
        }
    }
    all
}

/// The parameters of a query. What is not valid is taken as it stands; a client's mistake is for the function to answer.
fn query_parameters(query: &str) -> HashMap<String, Vec<String>> {
    let mut all: HashMap<String, Vec<String>> = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.entry(decoded(name)).or_default().push(decoded(value));
    }
    all
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => out.push(b' '),
            b'%' => match after {
                [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    out.push(hex(*high) << 4 | hex(*low));
                    rest = after;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

/// The response that API Gateway makes of a function's answer. An answer that makes none is a 500, as there.
#[must_use]
pub fn response(answer: ApiGatewayV2httpResponse) -> Response<axum::body::Body> {
    let broken = |what: &str| {
        tracing::error!(what, "the API's function gave an answer that is no HTTP response");
        message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
    };
    let Some(status) = u16::try_from(answer.status_code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
    else {
        return broken("status");
    };
    let body = match answer.body {
        None | Some(Body::Empty) => Vec::new(),
        Some(Body::Text(text)) if answer.is_base64_encoded => match STANDARD.decode(text) {
            Ok(bytes) => bytes,
            Err(_) => return broken("base64"),
        },
        Some(Body::Text(text)) => text.into_bytes(),
        Some(Body::Binary(bytes)) => bytes,
        Some(_) => return broken("body"),
    };
    let mut response = Response::new(axum::body::Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in answer.headers.iter().chain(&answer.multi_value_headers) {
        // The length is counted here.
        if name != CONTENT_LENGTH {
            append(headers, name, value);
        }
    }
    for cookie in &answer.cookies {
        if let Ok(value) = HeaderValue::from_str(cookie) {
            append(headers, &SET_COOKIE, &value);
        }
    }
    response
}

/// Adds a value; one that is there already (in both maps of an answer) is not repeated.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    if !headers.get_all(name).iter().any(|present| present == value) {
        headers.append(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringback_shared::clock::SystemClock;

    fn parts(request: axum::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn event(request: axum::http::request::Builder, body: &[u8]) -> ApiGatewayV2httpRequest {
        request_event(
            &parts(request),
            &Bytes::copy_from_slice(body),
            [127, 0, 0, 1].into(),
            1_774_522_365_565,
        )
    }

    #[test]
    fn a_request_becomes_the_gateways_event() {
        let request = axum::http::Request::builder()
            .method("PATCH")
            .uri("/eval/simulation/run/1?idAny=a&idAny=b&limit=5")
            .header("Authorization", "Bearer x")
            .header("X-Multi", "one")
            .header("x-multi", "two");
        let event = event(request, r#"{"a":"é"}"#.as_bytes());
        assert_eq!(event.raw_path.as_deref(), Some("/eval/simulation/run/1"));
        assert_eq!(event.raw_query_string.as_deref(), Some("idAny=a&idAny=b&limit=5"));
        assert_eq!(event.query_string_parameters.all("idAny"), Some(vec!["a", "b"]));
        assert_eq!(event.headers["authorization"], "Bearer x");
        assert_eq!(event.headers["x-multi"], "one,two");
        assert_eq!(event.body.as_deref(), Some(r#"{"a":"é"}"#));
        assert!(!event.is_base64_encoded);
        assert_eq!(event.request_context.http.method, "PATCH");
        assert_eq!(event.request_context.http.source_ip.as_deref(), Some("127.0.0.1"));
        // It is also what arrives on Lambda: through JSON and back.
        let json = serde_json::to_string(&event).unwrap();
        let back: ApiGatewayV2httpRequest = serde_json::from_str(&json).unwrap();
        assert_eq!(back.headers, event.headers);
        assert_eq!(back.body, event.body);
    }

    #[test]
    fn a_body_that_is_not_text_is_base64() {
        let event = event(axum::http::Request::builder().uri("/"), &[0xff, 0x00, 0xfe]);
        assert!(event.is_base64_encoded);
        assert_eq!(STANDARD.decode(event.body.unwrap()).unwrap(), [0xff, 0x00, 0xfe]);
        let empty = self::event(axum::http::Request::builder().uri("/"), b"");
        assert_eq!((empty.body, empty.is_base64_encoded), (None, false));
    }

    #[test]
    fn odd_queries_are_taken_as_they_stand() {
        for (query, name, value) in [
            ("a=%zz", "a", "%zz"),
            ("a=%", "a", "%"),
            ("a=%2", "a", "%2"),
            ("a=%ff", "a", "\u{fffd}"),
            ("a=b=c", "a", "b=c"),
            ("a", "a", ""),
            ("=v", "", "v"),
            ("&&a=1&", "a", "1"),
            ("a=1+2%2B", "a", "1 2+"),
            ("%61=%E2%82%AC", "a", "€"),
        ] {
            let parameters = query_parameters(query);
            assert_eq!(
                parameters.get(name).map(Vec::as_slice),
                Some([value.to_owned()].as_slice()),
                "{query}"
            );
        }
        assert!(query_parameters("").is_empty());
    }

    fn answer(status: i64, body: Option<Body>) -> ApiGatewayV2httpResponse {
        let mut answer = ApiGatewayV2httpResponse::default();
        answer.status_code = status;
        answer.body = body;
        answer
    }

    async fn bytes(response: Response<axum::body::Body>) -> Bytes {
        axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn an_answer_becomes_a_response() {
        let mut made = answer(201, Some(Body::Text("{}".to_owned())));
        made.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        made.multi_value_headers
            .append("x-two", HeaderValue::from_static("1"));
        made.multi_value_headers
            .append("x-two", HeaderValue::from_static("2"));
        made.cookies.push("a=b".to_owned());
        let made = response(made);
        assert_eq!(made.status(), 201);
        assert_eq!(made.headers()["content-type"], "application/json");
        assert_eq!(made.headers().get_all("x-two").iter().count(), 2);
        assert_eq!(made.headers()["set-cookie"], "a=b");
        assert_eq!(bytes(made).await, "{}");

        let mut binary = answer(200, Some(Body::Text(STANDARD.encode([0xff, 0]))));
        binary.is_base64_encoded = true;
        assert_eq!(bytes(response(binary)).await.as_ref(), [0xff, 0]);
    }

    #[test]
    fn an_answer_that_is_no_response_is_a_500() {
        let mut bad = answer(200, Some(Body::Text("§".to_owned())));
        bad.is_base64_encoded = true;
        assert_eq!(response(bad).status(), 500);
        assert_eq!(response(answer(0, None)).status(), 500);
        assert_eq!(response(answer(70_000, None)).status(), 500);
    }

    #[tokio::test]
    async fn a_server_answers_echoes_survives_panics_and_refuses_long_bodies() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (switch, stop) = Stop::new();
        let server = tokio::spawn(serve(
            listener,
            |event: ApiGatewayV2httpRequest| async move {
                assert_ne!(event.raw_path.as_deref(), Some("/panic"), "asked to");
                let mut echo = answer(200, event.body.map(Body::Text));
                echo.is_base64_encoded = event.is_base64_encoded;
                echo
            },
            Arc::new(SystemClock),
            stop,
        ));
        let client = ringback_shared::net::client().build().unwrap();
        let health = client.get(format!("{base}/health")).send().await.unwrap();
        assert_eq!(health.status(), 200);
        assert_eq!(health.text().await.unwrap(), r#"{"status":"ok"}"#);
        let binary = vec![0xff_u8, 0, 1, 2];
        let echo = client
            .post(format!("{base}/x?q=%zz"))
            .body(binary.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(echo.bytes().await.unwrap(), binary);
        let panicked = client.get(format!("{base}/panic")).send().await.unwrap();
        assert_eq!(panicked.status(), 500);
        let long = client.post(&base).body(vec![b'x'; LARGEST_BODY + 1]).send().await;
        // The server may close before the client has written everything.
        assert!(long.is_err() || long.unwrap().status() == 413);
        switch.send_replace(true);
        server.await.unwrap().unwrap();
    }
}
