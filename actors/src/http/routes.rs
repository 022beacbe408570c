//! The paths of the HTTP port, and their answers.

use super::carrier::{ConnectionLife, HttpBody, ANSWER_MAX};
use super::guard::MaySee;
use super::{events, metrics, status, HttpHost};
use crate::env::Stream;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    HeaderValue, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use std::rc::Rc;

/// The kinds of text.
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const EVENTS: &str = "text/event-stream";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page: one file with all that it needs.
const PAGE: &str = include_str!("page.html");

/// What the page may load: nothing from elsewhere.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is told of a node whose actor does not answer.
pub(super) const HUNG: &str = "the node does not answer in time\n";

const PATHS: &str = "there are /, /healthz, /readyz, /status, /metrics and /events\n";

/// Answers a request.
pub(super) async fn answer(
    request: Request<Incoming>,
    visitor: (&Stream, &str),
    host: &Rc<HttpHost>,
    life: &ConnectionLife,
) -> Response<HttpBody> {
    life.extend(ANSWER_MAX);
    let (stream, peer) = visitor;
    if !host.guard.lets_in(stream, peer) {
        return text(
            StatusCode::FORBIDDEN,
            "protected mode: from other machines this port is open with TLS or users\n",
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "this port only tells: GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        // A bit each, for those who have no password: load balancers and supervisors.
        "/healthz" => healthz(host).await,
        "/readyz" => readyz(host).await,
        path @ ("/" | "/status" | "/metrics" | "/events") => {
            match host.guard.admit(request.headers(), visitor, &host.env).await {
                MaySee::Everything => tell(path, host, life).await,
                MaySee::Login => log_in(),
                MaySee::Nothing => {
                    text(StatusCode::FORBIDDEN, "this user may not use INFO, which tells the same\n")
                }
            }
        }
        _ => text(StatusCode::NOT_FOUND, PATHS),
    }
}

/// Answers who may see everything.
async fn tell(path: &str, host: &Rc<HttpHost>, life: &ConnectionLife) -> Response<HttpBody> {
    match path {
        "/" => return page(),
        "/events" => return stream(host, life),
        _ => {}
    }
    let Some(told) = host.look().await else { return text(StatusCode::SERVICE_UNAVAILABLE, HUNG) };
    if path == "/status" {
        let status = status::json(&told, host.turns.timings()).to_string();
        return respond(StatusCode::OK, JSON, status + "\n");
    }
    match metrics::text(&told, host.turns.timings()) {
        Ok(metrics) => respond(StatusCode::OK, PROMETHEUS, metrics),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The page, which asks for nothing but the events.
fn page() -> Response<HttpBody> {
    let mut response = respond(StatusCode::OK, HTML, PAGE);
    let head = response.headers_mut();
    head.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    head.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// The events, as long as the connection lasts.
fn stream(host: &Rc<HttpHost>, life: &ConnectionLife) -> Response<HttpBody> {
    let Some(pieces) = events::begin(host) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n");
    };
    life.extend(events::STREAM_LASTS);
    let mut response = respond(StatusCode::OK, EVENTS, "");
    *response.body_mut() = HttpBody::Stream(pieces);
    response
}

/// Whether the node's actor runs.
async fn healthz(host: &HttpHost) -> Response<HttpBody> {
    match host.look().await {
        Some(_) => text(StatusCode::OK, "ok\n"),
        None => text(StatusCode::SERVICE_UNAVAILABLE, HUNG),
    }
}

/// Whether the node does its part.
async fn readyz(host: &HttpHost) -> Response<HttpBody> {
    let Some(told) = host.look().await else { return text(StatusCode::SERVICE_UNAVAILABLE, HUNG) };
    let verdict = told.verdict();
    if verdict.is_ready() {
        return text(StatusCode::OK, "ready\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, verdict.why.join("\n") + "\n")
}

fn log_in() -> Response<HttpBody> {
    let mut refused = text(StatusCode::UNAUTHORIZED, "say who you are: a user that may use INFO\n");
    let basic = HeaderValue::from_static("Basic realm=\"dsm\", charset=\"UTF-8\"");
    refused.headers_mut().insert(WWW_AUTHENTICATE, basic);
    refused
}

fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<HttpBody> {
    respond(code, PLAIN, text)
}

fn respond(code: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<HttpBody> {
    let mut response = Response::new(HttpBody::whole(text));
    *response.status_mut() = code;
    let head = response.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // What was true a moment ago is not to be shown as now.
    head.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
