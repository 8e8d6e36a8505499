//! Where an outgoing request may go: the HTTP clients for targets that the operator chose and for those that a user chose.
//!
//! A user's target never reaches a private, loopback, link-local or metadata address. The addresses are checked in the
//! client's own resolver, so what was checked is what is connected to; a literal address is checked before the request.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{
    Client, ClientBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

/// A target that an untrusted request may not reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is a private, local or otherwise reserved address, or leads only to such addresses")]
pub struct Refused {
    /// The host as the URL names it.
    pub host: String,
}

impl Refused {
    /// The refusal that `error` or one of its causes is.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source()).find_map(<dyn Error>::downcast_ref)
    }
}

/// Why there is no client for a URL.
#[derive(Debug, thiserror::Error)]
pub enum NoClient {
    /// Nobody may go there.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// TLS cannot be set up.
    #[error("the HTTP client cannot be made: {0}")]
    Unmade(#[from] reqwest::Error),
}

/// Whether `address` is one of the public internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

const fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        // This network, private, shared (CGNAT), loopback, link-local with the metadata address.
        [0 | 10 | 127, ..] | [100, 64..=127, ..] | [169, 254, ..] | [172, 16..=31, ..] | [192, 168, ..]
        // Protocol assignments, documentation, the 6to4 relay, benchmarking, multicast, reserved, broadcast.
        | [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _]
        | [224..=255, ..]
        // The platform address of Azure's virtual machines.
        | [168, 63, 129, 16]
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // IPv4 mapped, NAT64 and 6to4 are as public as the IPv4 address within.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments (Teredo among them) and documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast; everything else is local, multicast or reserved.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// What went wrong with a request and why, without its URL: a user may have put a key into it.
#[must_use]
pub fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    let causes = std::iter::successors(error.source(), |&error| error.source());
    std::iter::once(error.to_string())
        .chain(causes.map(ToString::to_string))
        .collect::<Vec<_>>()
        .join(": ")
}

/// The machine's resolver without the addresses that are not public.
#[derive(Debug, Clone, Copy)]
struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let lookup = host.clone();
            let found = tokio::task::spawn_blocking(move || {
                (lookup.as_str(), 0).to_socket_addrs().map(Vec::from_iter)
            })
            .await??;
            let public: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| is_public(address.ip()))
                .collect();
            if public.is_empty() {
                return Err(Refused { host }.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// The beginning of every HTTP client: one with this system's TLS, which reads nothing before the first connection.
#[expect(clippy::disallowed_methods, reason = "the one place where clients begin")]
pub fn client() -> ClientBuilder {
    match crate::tls::config() {
        Ok(tls) => Client::builder().tls_backend_preconfigured(tls),
        // It is no configuration, so the client cannot be built; which is an error and not a panic.
        Err(error) => Client::builder().tls_backend_preconfigured(error),
    }
}

/// A client for requests of functions: HTTP/1.1, no redirects, no proxy.
pub(crate) fn builder() -> ClientBuilder {
    client()
        .http1_only()
        .no_proxy()
        .redirect(Policy::none())
        .user_agent(concat!("ringback/", env!("CARGO_PKG_VERSION")))
}

/// A client that is made with the first request for it, and once for the process: most functions need none of them, or one.
type Lazy = Arc<OnceLock<Client>>;

/// The HTTP clients: HTTP/1.1, kept-alive connections, no redirects followed, no proxy.
#[derive(Debug, Clone)]
pub struct Outbound {
    open: Lazy,
    guarded: Lazy,
    allow_private_targets: bool,
}

/// The client of `lazy`, made as `finish` says if there is none yet.
fn made(lazy: &Lazy, finish: fn(ClientBuilder) -> ClientBuilder) -> Result<&Client, NoClient> {
    if let Some(client) = lazy.get() {
        return Ok(client);
    }
    let client = finish(builder().connect_timeout(Duration::from_secs(10))).build()?;
    Ok(lazy.get_or_init(|| client))
}

impl Outbound {
    /// Both clients. With `allow_private_targets` the guard lets everything pass.
    #[must_use]
    pub fn new(allow_private_targets: bool) -> Self {
        Self {
            open: Lazy::default(),
            guarded: Lazy::default(),
            allow_private_targets,
        }
    }

    /// The client for `url`. `trusted` says that the operator chose it, not a user.
    ///
    /// # Errors
    /// The URL names an address that an untrusted request may not reach. A name that leads to one fails when it is
    /// resolved: see [`Refused::find`]. Or the client cannot be made.
    pub fn client(&self, url: &Url, trusted: bool) -> Result<&Client, NoClient> {
        if trusted || self.allow_private_targets {
            return made(&self.open, |builder| builder);
        }
        let host = url.host_str().unwrap_or_default();
        match host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
        {
            Ok(address) if !is_public(address) => Err(NoClient::Refused(Refused {
                host: host.to_owned(),
            })),
            _ => made(&self.guarded, |builder| {
                builder.dns_resolver(Arc::new(PublicResolver))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        for (address, public) in [
            ("1.1.1.1", true),
            ("100.63.255.255", true),
            ("172.32.0.1", true),
            ("192.0.1.1", true),
            ("2606:4700::1111", true),
            ("::ffff:1.1.1.1", true),
            ("64:ff9b::1.1.1.1", true),
            ("0.0.0.0", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
            ("127.255.0.1", false),
            ("168.63.129.16", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.192", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("64:ff9b:1::1.1.1.1", false),
            ("2002:7f00:1::", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn literal_addresses_are_seen_in_every_spelling() {
        let outbound = Outbound::new(false);
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://[::1]:8080/",
            "http://[::ffff:7f00:1]/",
            "http://user@169.254.169.254/latest",
        ] {
            let url = url.parse().unwrap();
            assert!(
                matches!(outbound.client(&url, false), Err(NoClient::Refused(_))),
                "{url}"
            );
            assert!(outbound.client(&url, true).is_ok());
            assert!(Outbound::new(true).client(&url, false).is_ok());
        }
        assert!(
            outbound
                .client(&"https://example.com/".parse().unwrap(), false)
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_local_address_is_refused() {
        let outbound = Outbound::new(false);
        let url: Url = "http://localhost:1/".parse().unwrap();
        let error = outbound
            .client(&url, false)
            .unwrap()
            .get(url)
            .send()
            .await
            .unwrap_err();
        assert_eq!(
            Refused::find(&error),
            Some(&Refused {
                host: "localhost".into()
            })
        );
    }
}
