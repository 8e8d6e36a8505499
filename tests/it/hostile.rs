//! Requests that no honest client sends: each gets an answer, and the server goes on.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fixtures::RUNS,
    server::{KEY, Server, local, until},
    stand_in::StandIn,
};

/// Sends bytes as they are; gives the status of the answer, if there was one.
async fn raw(address: &str, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer, and close, before it has read everything.
    let _closed = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.windows(2).any(|pair| pair == b"\r\n") {
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => answer.extend_from_slice(&chunk[..read]),
            _ => break,
        }
    }
    let line = String::from_utf8_lossy(&answer);
    line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()
}

fn request(line: &[u8], headers: &[&[u8]], body: &[u8]) -> Vec<u8> {
    let mut request = [
        line,
        b" HTTP/1.1\r\nAuthorization: Bearer ",
        KEY.as_bytes(),
        b"\r\nConnection: close\r\n",
    ]
    .concat();
    for header in headers {
        request.extend_from_slice(header);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    request.extend_from_slice(body);
    request
}

/// Every request of the list against one server.
async fn storm(address: &str) {
    const HOST: &[u8] = b"Host: localhost";
    let run = RUNS.as_bytes();
    let get = |target: &[u8]| request(&[b"GET ", target].concat(), &[HOST], b"");
    let run_with = |query: &[u8]| get(&[run, b"?", query].concat());
    let mut requests = Vec::new();
    for query in [
        b"limit=%zz".as_slice(),
        b"limit=%",
        b"%=%&&==&%00",
        b"limit=1&limit=2&limit=",
        b"cursor=%ff%fe",
        b"page=1e400",
        b"page=NaN",
        b"limit=-0",
        b"limit=inf",
        b"createdAtGt=%F0%9F%92%A9",
        b"a=\xff\xfe",
        b"a={}|\\^`\"<>",
        b"?",
        b"??a?=?",
        b"createdAtGt=+292277026596-12-04T15:30:07Z",
        b"createdAtLe=-009999-01-01T00:00:00Z",
        b"page=1000000&limit=1000",
        b"page=99999999999999999999",
        b"sortBy=createdAt&sortOrder=desc",
    ] {
        requests.push(run_with(query));
    }
    for target in [
        b"/%".as_slice(), b"/%ff%fe", b"/\xff\xfe", b"//", b"/../../etc/passwd", b"/eval/simulation/run/%2e%2e/%2f", b"*",
        b"/eval/simulation/run/%00", b"/eval/simulation/%E2%82", b"http://elsewhere/eval/simulation", b"no-slash", b"",
        b"/eval/simulation/run/ffffffff-ffff-ffff-ffff-ffffffffffff/item/ffffffff-ffff-ffff-ffff-ffffffffffff",
    ] {
        requests.push(get(target));
    }
    requests.push(get(&[b"/", b"a".repeat(200_000).as_slice()].concat()));
    requests.push(get(&[b"/", b"a/".repeat(20_000).as_slice()].concat()));
    requests.push(run_with(&b"a=1&".repeat(15_000)));
    for host in [
        b"Host: ".as_slice(),
        b"Host: [::1",
        b"Host: a b",
        b"Host: \xff",
        b"Host: x:99999999",
        b"Host: localhost\r\nHost: other",
        b"X-None: 1",
        b"Host: user:pw@host/..?#",
    ] {
        requests.push(request(&[b"GET ", run].concat(), &[host], b""));
    }
    for method in [
        "BREW", "CONNECT", "TRACE", "OPTIONS", "HEAD", "get", "P\u{e9}T", "", "PROPFIND", "PUT", "DELETE",
    ] {
        requests.push(request(&[method.as_bytes(), b" ", run].concat(), &[HOST], b"{}"));
    }
    for body in [
        b"\xff\xfe\x00".as_slice(),
        b"{\"name\":\"\xff\"}",
        b"{\"name\":\"\\ud800\"}",
        b"[[[[",
        b"1e999",
        b"\"",
        b"{\"a\":1,\"a\":2}",
        b"\x00",
        b"{\"simulations\":{\"length\":3}}",
        b"-",
        b"nul",
        b"{\"iterations\":1e308}",
        b"{\"iterations\":-9223372036854775809}",
    ] {
        for path in ["/eval/simulation/run", "/eval/simulation/scenario", "/assistant"] {
            requests.push(request(
                format!("POST {path}").as_bytes(),
                &[HOST, b"Content-Type: application/json"],
                body,
            ));
        }
    }
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    requests.push(request(b"POST /assistant", &[HOST], &deep));
    let nested = [b"{\"a\":".repeat(50_000), b"1".to_vec(), b"}".repeat(50_000)].concat();
    requests.push(request(b"POST /assistant", &[HOST], &nested));
    for header in [
        b"Idempotency-Key: \xff\xfe".as_slice(),
        b"Authorization: \xff",
        b"Content-Encoding: gzip",
        b"Expect: 100-continue",
        b"Content-Type: multipart/form-data; boundary=\"",
        b"Cookie: \xff=;;=",
        b"Transfer-Encoding: nonsense",
    ] {
        requests.push(request(b"POST /eval/simulation", &[HOST, header], b"{}"));
    }
    requests.push(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec());
    requests.push(b"GET / HTTP/9.9\r\n\r\n".to_vec());
    for request in requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(300)]).into_owned();
        let within = std::time::Duration::from_secs(60);
        let Ok(status) = tokio::time::timeout(within, raw(address, &request)).await else {
            panic!("no answer to {shown}");
        };
        // A server may hang up on what is no HTTP, but a fault of its own is none of the answers.
        assert!(status.is_none_or(|status| status < 500), "{status:?} to {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_answered_and_the_server_goes_on() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    storm(api.base.strip_prefix("http://").unwrap()).await;
    assert_eq!(api.get(RUNS).await, serde_json::json!([]));
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_the_middle_harms_nobody() {
    let stand_in = StandIn::start().await;
    let server = Server::start(&stand_in, &[]).await;
    let address = server.api.base.strip_prefix("http://").unwrap();
    for n in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = request(b"POST /eval/simulation/run", &[b"Host: x"], &b"x".repeat(50_000));
        stream.write_all(&body[..body.len() * n / 20]).await.unwrap();
    }
    until("an answer", std::time::Duration::from_secs(60), async || {
        (server.api.get(RUNS).await == serde_json::json!([])).then_some(())
    })
    .await;
}
