//! A web application with a replicated store inside: actix-web serves `GET`, `PUT` and `DELETE` of `/kv/{key}`, and two
//! masters and three slaves run as actors in the same process.
//!
//! Run with `cargo run --example embed_in_actix_web [HOST:PORT [LOG]]`, then
//!
//! ```text
//! curl -X PUT --data Alice http://127.0.0.1:8080/kv/user1
//! curl http://127.0.0.1:8080/kv/user1
//! ```
//!
//! Ctrl+C ends it. Without LOG the values are kept in a temporary directory and are gone with the process.

use actix::{Addr, MailboxError};
use actix_web::{http::StatusCode, web, App, HttpResponse, HttpServer, ResponseError};
use anyhow::Context as _;
use dsm::client::{ClientError, ErrorWord, Failure, VALUE_MAX_DEFAULT};
use dsm::embed::{self, Delete, Get, LocalConfig, Put, Status};
use dsm::master::MasterActor;
use std::fmt;
use std::io::Write as _;

/// The store, as the workers of the web server see it: they run on other threads than the nodes.
type Store = web::Data<Addr<MasterActor>>;

#[actix_web::main]
async fn main() -> anyhow::Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let directory = tempfile::tempdir().context("no place for the log")?;
    let log = args.next().map_or_else(|| directory.path().join("kv_store.log"), Into::into);

    // The nodes live in this System, beside the web server.
    let cluster = embed::start_local(LocalConfig::new(log, 3)).await?;
    let store = Store::new(cluster.primary().master().clone());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(store.clone())
            .app_data(web::PayloadConfig::new(VALUE_MAX_DEFAULT))
            .route("/kv/{key}", web::get().to(get))
            .route("/kv/{key}", web::put().to(put))
            .route("/kv/{key}", web::delete().to(delete))
            .route("/status", web::get().to(status))
    })
    .workers(2)
    .shutdown_timeout(2)
    .bind(&address)
    .with_context(|| format!("cannot listen at {address}"))?;
    for address in server.addrs() {
        println!("listening at http://{address}/kv/");
    }
    std::io::stdout().flush()?;
    server.run().await?;
    cluster.stop().await?;
    Ok(())
}

async fn get(store: Store, key: web::Path<String>) -> Result<HttpResponse, Error> {
    Ok(match store.send(Get { key: key.into_inner().into() }).await?? {
        Some(value) => HttpResponse::Ok().content_type("application/octet-stream").body(value),
        None => HttpResponse::NotFound().body("no such key\n"),
    })
}

async fn put(store: Store, key: web::Path<String>, value: web::Bytes) -> Result<HttpResponse, Error> {
    store.send(Put { key: key.into_inner().into(), value }).await??;
    Ok(HttpResponse::NoContent().finish())
}

async fn delete(store: Store, key: web::Path<String>) -> Result<HttpResponse, Error> {
    Ok(match store.send(Delete { key: key.into_inner().into() }).await?? {
        true => HttpResponse::NoContent().finish(),
        false => HttpResponse::NotFound().body("no such key\n"),
    })
}

async fn status(store: Store) -> Result<HttpResponse, Error> {
    Ok(HttpResponse::Ok().content_type("text/plain").body(store.send(Status).await??))
}

/// Why a request did not end in a result.
#[derive(Debug)]
enum Error {
    Store(ClientError),
    /// The node is gone. Whether a write took effect is not known.
    Gone(MailboxError),
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        Error::Store(error)
    }
}

impl From<MailboxError> for Error {
    fn from(error: MailboxError) -> Self {
        Error::Gone(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Store(error) => write!(f, "{error}"),
            Error::Gone(error) => write!(f, "the store is gone: {error}"),
        }
    }
}

impl ResponseError for Error {
    /// 400 and 503 say: not executed. 504 says: it may have been.
    fn status_code(&self) -> StatusCode {
        match self {
            Error::Store(ClientError::NotExecuted { cause: Failure::Refused(error) })
                if error.word == ErrorWord::Bad =>
            {
                StatusCode::BAD_REQUEST
            }
            Error::Store(ClientError::NotExecuted { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Store(_) | Error::Gone(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}
