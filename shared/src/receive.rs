//! A provider's webhooks: `POST /hooks/{endpointId}/call-started` and `/call-ended`.
//!
//! The order matters. The size is looked at first, then the endpoint is found, which names the organization and the
//! secrets, then the raw bytes are verified, and only what is verified is parsed. One conditional write keeps the event;
//! what follows from it is `relay`'s work. Whoever sent it is answered 2xx exactly when it is kept.

use aws_lambda_events::{
    apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse},
    encodings::Body,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use tracing::{
    Instrument, Span,
    field::{Empty, display},
};
use uuid::Uuid;

use crate::{
    context::Context,
    ids,
    lifecycle::Source,
    provider::{
        Event, ProviderKind, Webhooks,
        events::{self, Said, Side},
    },
    signature::{Refusal, Unverified, Verified},
    store::{ItemKey, NewEvent},
    webhook::Correlation,
};

/// The largest body that is read, in bytes: Lambda takes events of 6 MB, in which a body may be in base64.
pub const MAX_BODY: usize = 4_000_000;

/// An answer to a webhook.
#[derive(Debug)]
struct Answer {
    status: i64,
    message: String,
}

impl Answer {
    fn new(status: i64, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn encode(self) -> ApiGatewayV2httpResponse {
        let mut response = ApiGatewayV2httpResponse::default();
        response.status_code = self.status;
        response.headers.insert(
            "content-type",
            http::HeaderValue::from_static("application/json; charset=utf-8"),
        );
        if self.status == 405 {
            response
                .headers
                .insert("allow", http::HeaderValue::from_static("POST"));
        }
        let reason = u16::try_from(self.status)
            .ok()
            .and_then(|status| http::StatusCode::from_u16(status).ok())
            .and_then(|status| status.canonical_reason());
        response.body = Some(Body::Text(
            json!({ "statusCode": self.status, "message": self.message, "error": reason }).to_string(),
        ));
        response
    }
}

/// Handles one webhook that came to the URL of `event`. What it says of itself counts more than where it was sent.
pub async fn handle(
    ctx: &Context,
    event: Event,
    request: ApiGatewayV2httpRequest,
) -> ApiGatewayV2httpResponse {
    let span = tracing::error_span!(
        "webhook",
        endpointId = Empty,
        runId = Empty,
        itemId = Empty,
        callId = Empty
    );
    if let Some(endpoint) = request.raw_path.as_deref().and_then(endpoint_of) {
        span.record("endpointId", display(endpoint));
    }
    let answer = match take(ctx, event, request).instrument(span).await {
        Ok(answer) | Err(answer) => answer,
    };
    answer.encode()
}

/// The endpoint that the path names: `/hooks/{endpointId}/{event}`.
fn endpoint_of(path: &str) -> Option<Uuid> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.find(|&segment| segment == "hooks")?;
    Uuid::try_parse(segments.next()?).ok()
}

async fn take(ctx: &Context, event: Event, request: ApiGatewayV2httpRequest) -> Result<Answer, Answer> {
    let unavailable = |error: &dyn std::error::Error| {
        tracing::error!(%error, "a webhook was not kept");
        Answer::new(503, "the event could not be kept; send it again")
    };
    if request.request_context.http.method != http::Method::POST {
        return Err(Answer::new(405, "send events with POST"));
    }
    let body = request.body.unwrap_or_default();
    let too_large = || Answer::new(413, format!("the body may have at most {MAX_BODY} bytes"));
    let body = if request.is_base64_encoded {
        if body.len() / 4 * 3 > MAX_BODY + 3 {
            return Err(too_large());
        }
        STANDARD
            .decode(body)
            .map_err(|_| Answer::new(400, "the body is not valid base64"))?
    } else {
        body.into_bytes()
    };
    if body.len() > MAX_BODY {
        return Err(too_large());
    }
    let unknown = || Answer::new(404, "there is no such endpoint");
    let endpoint = request
        .raw_path
        .as_deref()
        .and_then(endpoint_of)
        .ok_or_else(unknown)?;
    // The table is asked first: a look at it costs less than one at the secrets.
    let kind = ctx
        .store
        .endpoint_kind(endpoint)
        .await
        .map_err(|error| unavailable(&error))?
        .ok_or_else(unknown)?;
    let secrets = ctx
        .secrets
        .endpoint(endpoint)
        .await
        .map_err(|error| unavailable(&error))?
        .ok_or_else(unknown)?;
    let now = ctx.clock.now_ms();
    let query = request.raw_query_string.as_deref().unwrap_or_default();
    let url = sent_to(&ctx.config.public_url, event, endpoint, query);
    let delivery = Unverified::new("POST", &url, &request.headers, body);
    let profile = secrets.signature.profile();
    let delivery = match delivery.verify_or_return(&profile, &secrets.accepted(), now) {
        Ok(delivery) => delivery,
        // Its secret may be one that was added a moment ago, or its scheme another one.
        Err((refusal, delivery)) => {
            let anew = ctx
                .secrets
                .endpoint_anew(endpoint)
                .await
                .map_err(|error| unavailable(&error))?
                .ok_or_else(unknown)?;
            if anew.signs_like(&secrets) {
                return Err(refused(ctx, &refusal));
            }
            delivery
                .verify(&anew.signature.profile(), &anew.accepted(), now)
                .map_err(|refusal| refused(ctx, &refusal))?
        }
    };
    // Of an endpoint it is always the same.
    let key = secrets.correlation_key();
    let asked = Asked {
        endpoint,
        kind,
        event,
        named: named_in(query),
    };
    match keep(ctx, &asked, key, &delivery).await {
        Ok(kept) => Ok(kept),
        Err(Unkept::Unavailable(error)) => Err(unavailable(&*error)),
        Err(Unkept::Unknown) => Err(Answer::new(
            404,
            "this correlation value is not of this endpoint's calls",
        )),
        Err(Unkept::Malformed(why)) => {
            // The signature was right, so somebody will look for it.
            tracing::error!("a webhook was quarantined: it cannot be read");
            let text = String::from_utf8_lossy(delivery.body()).into_owned();
            // Not by the sender's id alone, which others may use as well.
            let id = format!("{endpoint}/{}", delivery.digest());
            ctx.store
                .quarantine("webhooks", &id, &text, &why, ctx.clock.now_ms())
                .await
                .map_err(|error| unavailable(&error))?;
            ctx.metrics.quarantined();
            Err(Answer::new(400, why))
        }
    }
}

/// The URL that a webhook was sent to, as its sender knows it. The one in the request is that of whatever stands before this
/// function.
fn sent_to(public_url: &str, event: Event, endpoint: Uuid, query: &str) -> String {
    let webhooks = Webhooks::of(public_url, endpoint);
    let url = match event {
        Event::Started => webhooks.call_started,
        Event::Placed | Event::Ended => webhooks.call_ended,
    };
    match query {
        "" => url,
        query => format!("{url}?{query}"),
    }
}

/// The correlation value in a query: where Ringback chose the URL, the event need not repeat it.
fn named_in(query: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs
        .find(|(name, _)| name == "correlation")
        .map(|(_, token)| token.into_owned())
}

fn refused(ctx: &Context, refusal: &Refusal) -> Answer {
    ctx.metrics.webhook_refused();
    tracing::warn!(%refusal, "a webhook was refused");
    Answer::new(401, refusal.to_string())
}

/// Why a verified event is not kept.
enum Unkept {
    Malformed(String),
    Unknown,
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
}

impl From<crate::store::StoreError> for Unkept {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Unavailable(error.into())
    }
}

/// What is known of an event besides what it says.
struct Asked {
    endpoint: Uuid,
    kind: ProviderKind,
    /// What its URL is for.
    event: Event,
    /// The correlation value in its URL.
    named: Option<String>,
}

async fn keep(
    ctx: &Context,
    asked: &Asked,
    key: Option<[u8; 32]>,
    delivery: &Verified,
) -> Result<Answer, Unkept> {
    let endpoint = asked.endpoint;
    // Who has the URL of an order from Ringback was made to call by Ringback.
    let agent = match asked.named {
        Some(_) => Side::Tester,
        None => Side::Target,
    };
    let said = events::said(
        asked.kind,
        asked.event,
        delivery.body(),
        delivery.content_type(),
        agent,
    )
    .map_err(Unkept::Malformed)?;
    let (event, report) = match said {
        Said::Report { event, report } => (event, report),
        Said::Ignored(kind) => {
            // It is of no use to send it again for the count's sake.
            if let Err(error) = ctx.store.count_ignored(endpoint, &kind).await {
                tracing::warn!(%error, "an ignored event was not counted");
            }
            return Ok(Answer::new(200, format!("ignored: {kind}")));
        }
    };
    if !report.call_id.is_empty() {
        let call = ids::shown_call_id(endpoint, &report.call_id);
        Span::current().record("callId", display(call));
    }
    let facts = report
        .facts(Source::Report, event, ctx.clock.now_ms())
        .map_err(|odd| Unkept::Malformed(odd.to_string()))?;
    let body = match asked.kind {
        ProviderKind::Generic => String::from_utf8_lossy(delivery.body()).into_owned(),
        // As the generic contract says it, so that whoever reads it later need know no other.
        _ => serde_json::to_string(&report).map_err(|error| Unkept::Unavailable(error.into()))?,
    };
    let digest = match asked.kind {
        ProviderKind::Generic => delivery.digest(),
        // Not every scheme signs a body's bytes: what says the same is the same.
        _ => {
            let id = delivery.id().unwrap_or_default();
            ids::sha256_hex(&[id.as_bytes(), b".", body.as_bytes()].concat())
        }
    };
    let new = NewEvent {
        event,
        source: Source::Report,
        digest,
        facts,
        body,
    };
    let kept = match report.correlation.as_ref().or(asked.named.as_ref()) {
        Some(token) => {
            let Correlation { run, index } = key
                .and_then(|key| Correlation::from_token(token, &key))
                .ok_or(Unkept::Unknown)?;
            let at = ItemKey { run, index };
            let span = Span::current();
            span.record("runId", display(run));
            span.record("itemId", display(at.id()));
            ctx.store.keep_event(at, &new).await?
        }
        None => {
            ctx.store
                .keep_stray_event(endpoint, &report.call_id, &new, ctx.clock.now_ms())
                .await?
        }
    };
    tracing::debug!(new = kept, "a webhook was kept");
    Ok(Answer::new(200, if kept { "kept" } else { "kept before" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_signs_the_public_url() {
        let id = Uuid::from_u128(7);
        assert_eq!(
            sent_to("https://r.example.com/", Event::Ended, id, "a=b&c"),
            format!("https://r.example.com/hooks/{id}/call-ended?a=b&c")
        );
        assert_eq!(
            sent_to("https://r.example.com", Event::Started, id, ""),
            format!("https://r.example.com/hooks/{id}/call-started")
        );
        assert_eq!(
            named_in("a=b&correlation=rbc1.x&correlation=y").as_deref(),
            Some("rbc1.x")
        );
        assert_eq!(named_in("a=b"), None);
    }

    #[test]
    fn the_path_names_the_endpoint() {
        let id = Uuid::from_u128(7);
        assert_eq!(endpoint_of(&format!("/hooks/{id}/call-started")), Some(id));
        assert_eq!(
            endpoint_of(&format!("/prod/hooks/{id}/call-ended")),
            Some(id),
            "behind a stage"
        );
        for path in ["/", "/hooks", "/hooks/", "/hooks/7/call-ended", "/call-started"] {
            assert_eq!(endpoint_of(path), None, "{path}");
        }
    }
}
