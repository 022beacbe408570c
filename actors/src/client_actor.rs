//! `ClientActor`: the client library as an actor, for programs that are built of actix actors.
//!
//! Owns a [`Client`] and a bound on what it has in flight; beyond it the answer is `BUSY` at once. Takes the messages
//! of [`crate::embed`], as an embedded master does. Never waits in a handler: each request is a plain future.

use crate::client::{Client, ClientConfig, ClientError};
use crate::door::embedded::{busy, failed};
use crate::embed::{Delete, Get, Put, Status};
use actix::prelude::*;
use bytes::Bytes;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

/// The actor. See the module. Its link is closed when it stops and the last request has ended.
#[derive(Debug)]
pub struct ClientActor {
    client: Client,
    requests_max: usize,
    in_flight: Rc<Cell<usize>>,
}

impl ClientActor {
    /// An actor that asks through `client`, with at most `requests_max` requests in flight.
    pub fn new(client: Client, requests_max: usize) -> Self {
        ClientActor { client, requests_max, in_flight: Rc::default() }
    }

    /// Connects a client of its own, with `config.requests_max` as the bound.
    ///
    /// # Errors
    /// As [`Client::connect`]: outside a runtime, or without a master.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let requests_max = config.requests_max;
        Ok(Self::new(Client::connect(config)?, requests_max))
    }

    /// Runs `call` if the bound on requests in flight allows it.
    fn ask<T, F>(&self, call: impl FnOnce(Client) -> F) -> ResponseFuture<Result<T, ClientError>>
    where
        T: 'static,
        F: Future<Output = Result<T, ClientError>> + 'static,
    {
        let Some(place) = Place::take(&self.in_flight, self.requests_max) else {
            return Box::pin(std::future::ready(Err(failed(busy(), false))));
        };
        let calling = call(self.client.clone());
        Box::pin(async move {
            let _place = place;
            calling.await
        })
    }
}

/// One request in flight, until it is dropped.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(in_flight: &Rc<Cell<usize>>, max: usize) -> Option<Self> {
        if in_flight.get() >= max {
            return None;
        }
        in_flight.set(in_flight.get() + 1);
        Some(Place(Rc::clone(in_flight)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Actor for ClientActor {
    type Context = Context<Self>;
}

impl Handler<Put> for ClientActor {
    type Result = ResponseFuture<Result<(), ClientError>>;

    fn handle(&mut self, put: Put, _: &mut Self::Context) -> Self::Result {
        self.ask(|client| async move { client.put(put.key, put.value).await })
    }
}

impl Handler<Get> for ClientActor {
    type Result = ResponseFuture<Result<Option<Bytes>, ClientError>>;

    fn handle(&mut self, get: Get, _: &mut Self::Context) -> Self::Result {
        self.ask(|client| async move { client.get(get.key).await })
    }
}

impl Handler<Delete> for ClientActor {
    type Result = ResponseFuture<Result<bool, ClientError>>;

    fn handle(&mut self, delete: Delete, _: &mut Self::Context) -> Self::Result {
        self.ask(|client| async move { client.delete(delete.key).await })
    }
}

impl Handler<Status> for ClientActor {
    type Result = ResponseFuture<Result<String, ClientError>>;

    fn handle(&mut self, _: Status, _: &mut Self::Context) -> Self::Result {
        self.ask(|client| async move { client.status().await })
    }
}
