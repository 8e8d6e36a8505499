//! `Idempotency-Key`: a request that is sent again gets the answer that it had, and its work is done once.
//!
//! One keyspace for all endpoints of an organization: a key belongs to the first request that was made with it, by its
//! method, path, query and body. A request that makes a run writes the key in the run's own transaction; one whose answer
//! is made while the client waits goes through [`once`].

use ringback_shared::{context::Context, ids, store::Claimed};
use uuid::Uuid;

use crate::http::{ApiError, Request, Response};

/// The longest key, in characters.
const LONGEST_KEY: usize = 255;
/// How long a request that died holds its key, in milliseconds: somewhat longer than any request is worked on.
const LEASE_MS: i64 = 35_000;

/// The SHA-256 of the client's key and that of its request, if it sent a key.
pub(crate) fn of(request: &Request) -> Result<Option<(String, String)>, ApiError> {
    let Some(key) = &request.idempotency_key else {
        return Ok(None);
    };
    if String::from_utf8_lossy(key).chars().count() > LONGEST_KEY {
        return Err(ApiError::bad_request(format!(
            "the Idempotency-Key may have at most {LONGEST_KEY} characters"
        )));
    }
    // What cannot occur in the parts stands between them.
    let mut whole = format!("{} {}\n{}\n", request.method, request.path, request.raw_query).into_bytes();
    whole.extend_from_slice(&request.body);
    Ok(Some((ids::sha256_hex(key), ids::sha256_hex(&whole))))
}

/// What a request is told whose key belongs to another one.
pub(crate) fn other_request() -> ApiError {
    ApiError::new(
        409,
        "this Idempotency-Key was used for another request; use a new one",
    )
}

/// Does `work` for a request, once for each key: the same request gets the same answer for a day. Only a success is kept;
/// after an error the key is free again, and after a crash when the claim runs out.
pub(crate) async fn once(
    ctx: &Context,
    org: Uuid,
    request: &Request,
    work: impl Future<Output = Result<Response, ApiError>>,
) -> Result<Response, ApiError> {
    let Some((key, wanted)) = of(request)? else {
        return work.await;
    };
    let now = ctx.clock.now_ms();
    let claim = match ctx.store.claim_key(org, &key, &wanted, LEASE_MS, now).await? {
        Claimed::New(claim) => claim,
        Claimed::Answered { status, body } => return Ok(Response::stored(status, body)),
        Claimed::AtWork => {
            return Err(ApiError::new(
                409,
                "the first request with this Idempotency-Key is still being worked on; send it again in a moment to get \
                 its answer",
            ));
        }
        Claimed::OtherRequest => return Err(other_request()),
    };
    let answer = work.await;
    let now = ctx.clock.now_ms();
    // The work is done: what fails from here on costs the client nothing but the memory of it.
    let written = match &answer {
        Ok(response) => {
            let kept = ctx
                .store
                .keep_answer(&claim, response.status(), response.body(), now);
            kept.await.map(|_| ())
        }
        Err(_) => ctx.store.release_key(&claim, now).await,
    };
    if let Err(error) = written {
        tracing::warn!(%error, "an idempotency key is held until its claim runs out");
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Query;

    fn request(key: Option<&[u8]>, method: &str, path: &str, query: &str, body: &str) -> Request {
        Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: Query::parse(query),
            raw_query: query.to_owned(),
            bearer: None,
            idempotency_key: key.map(<[u8]>::to_vec),
            trace: None,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_request_is_its_method_path_query_and_body() {
        let hashes = |key: &[u8], method: &str, path: &str, query: &str, body: &str| {
            of(&request(Some(key), method, path, query, body))
                .unwrap()
                .unwrap()
        };
        let first = hashes(b"k", "POST", "/a", "", "{}");
        assert_eq!(first, hashes(b"k", "POST", "/a", "", "{}"));
        for (method, path, query, body) in [
            ("PATCH", "/a", "", "{}"),
            ("POST", "/b", "", "{}"),
            ("POST", "/a", "force=true", "{}"),
            ("POST", "/a", "", "{ }"),
        ] {
            let other = hashes(b"k", method, path, query, body);
            assert_eq!(other.0, first.0);
            assert_ne!(other.1, first.1);
        }
        assert_ne!(hashes(b"l", "POST", "/a", "", "{}").0, first.0);
        // Whatever bytes a key has, it counts.
        assert_ne!(
            hashes(b"\xff", "POST", "/a", "", "{}").0,
            hashes(b"\xfe", "POST", "/a", "", "{}").0
        );
        assert!(of(&request(None, "POST", "/a", "", "")).unwrap().is_none());
    }

    #[test]
    fn a_key_has_at_most_255_characters() {
        for (length, fits) in [(1, true), (255, true), (256, false), (5000, false)] {
            let key = vec![b'k'; length];
            assert_eq!(
                of(&request(Some(&key), "POST", "/a", "", "")).is_ok(),
                fits,
                "{length}"
            );
        }
    }
}
