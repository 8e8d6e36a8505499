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
use uuid::Uuid;

use crate::{
    context::Context,
    lifecycle::Source,
    provider::{CallReport, Event},
    store::{ItemKey, NewEvent},
    webhook::{Correlation, Refusal, UnverifiedDelivery, VerifiedDelivery},
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
    let answer = match take(ctx, event, request).await {
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
    if !ctx
        .store
        .is_endpoint(endpoint)
        .await
        .map_err(|error| unavailable(&error))?
    {
        return Err(unknown());
    }
    let secrets = ctx
        .secrets
        .endpoint(endpoint)
        .await
        .map_err(|error| unavailable(&error))?
        .ok_or_else(unknown)?;
    let now = ctx.clock.now_ms();
    let accepted = secrets.secrets().map_err(|error| unavailable(&error))?;
    let delivery = match UnverifiedDelivery::new(&request.headers, body).verify_or_return(&accepted, now) {
        Ok(delivery) => delivery,
        Err((Refusal::NoSignatureFits, delivery)) => {
            // Its secret may be one that was added a moment ago.
            let anew = ctx
                .secrets
                .endpoint_anew(endpoint)
                .await
                .map_err(|error| unavailable(&error))?
                .ok_or_else(unknown)?;
            if anew.signs_like(&secrets) {
                return Err(refused(endpoint, Refusal::NoSignatureFits));
            }
            let accepted = anew.secrets().map_err(|error| unavailable(&error))?;
            delivery
                .verify(&accepted, now)
                .map_err(|refusal| refused(endpoint, refusal))?
        }
        Err((refusal, _)) => return Err(refused(endpoint, refusal)),
    };
    // Of an endpoint it is always the same.
    let key = secrets.correlation_key();
    match keep(ctx, endpoint, key, event, &delivery).await {
        Ok(kept) => Ok(kept),
        Err(Unkept::Unavailable(error)) => Err(unavailable(&*error)),
        Err(Unkept::Unknown) => Err(Answer::new(
            404,
            "this correlation value is not of this endpoint's calls",
        )),
        Err(Unkept::Malformed(why)) => {
            // The signature was right, so somebody will look for it.
            let text = String::from_utf8_lossy(delivery.body()).into_owned();
            // Not by the sender's id alone, which others may use as well.
            let id = format!("{endpoint}/{}", delivery.digest());
            ctx.store
                .quarantine("webhooks", &id, &text, &why, ctx.clock.now_ms())
                .await
                .map_err(|error| unavailable(&error))?;
            Err(Answer::new(400, why))
        }
    }
}

fn refused(endpoint: Uuid, refusal: Refusal) -> Answer {
    tracing::warn!(%endpoint, %refusal, "a webhook was refused");
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

/// What is wrong with an event, without any of it: the parser's own words would repeat what was said.
fn unreadable(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "the event is not what the contract says",
        _ => "the event is not JSON",
    };
    format!("{what}: line {}, column {}", error.line(), error.column())
}

async fn keep(
    ctx: &Context,
    endpoint: Uuid,
    key: Option<[u8; 32]>,
    event: Event,
    delivery: &VerifiedDelivery,
) -> Result<Answer, Unkept> {
    let report: CallReport = delivery
        .parse()
        .map_err(|error| Unkept::Malformed(unreadable(&error)))?;
    let event = match report.kind.as_deref() {
        None => event,
        Some("call.started") => Event::Started,
        Some("call.ended") => Event::Ended,
        Some(_) => {
            return Err(Unkept::Malformed(
                "type must be call.started or call.ended".to_owned(),
            ));
        }
    };
    let facts = report
        .facts(Source::Report, event, ctx.clock.now_ms())
        .map_err(|odd| Unkept::Malformed(odd.to_string()))?;
    let new = NewEvent {
        event,
        source: Source::Report,
        digest: delivery.digest(),
        facts,
        body: String::from_utf8_lossy(delivery.body()).into_owned(),
    };
    let kept = match &report.correlation {
        Some(token) => {
            let Correlation { run, index } = key
                .and_then(|key| Correlation::from_token(token, &key))
                .ok_or(Unkept::Unknown)?;
            ctx.store.keep_event(ItemKey { run, index }, &new).await?
        }
        None => {
            ctx.store
                .keep_stray_event(endpoint, &report.call_id, &new, ctx.clock.now_ms())
                .await?
        }
    };
    Ok(Answer::new(200, if kept { "kept" } else { "kept before" }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
