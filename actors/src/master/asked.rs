//! What the program around this master asks of it, by typed messages.

use super::MasterActor;
use crate::client_error::{ClientError, Failure};
use crate::door::embedded::{Delete, Get, Put, Status};
use actix::prelude::*;
use bytes::Bytes;
use dsm_protocol::command::{Command, Reply};

impl Handler<Put> for MasterActor {
    type Result = ResponseFuture<Result<(), ClientError>>;

    fn handle(&mut self, put: Put, _: &mut Self::Context) -> Self::Result {
        let asked = self.embedded.ask(Command::Put { key: put.key, value: put.value });
        Box::pin(async move {
            match asked.result().await? {
                Reply::Done => Ok(()),
                _ => Err(ClientError::Indeterminate { cause: Failure::Protocol }),
            }
        })
    }
}

impl Handler<Get> for MasterActor {
    type Result = ResponseFuture<Result<Option<Bytes>, ClientError>>;

    fn handle(&mut self, get: Get, _: &mut Self::Context) -> Self::Result {
        let asked = self.embedded.ask(Command::Get { key: get.key });
        Box::pin(async move {
            match asked.result().await? {
                Reply::Value(value) => Ok(Some(value)),
                Reply::NotFound => Ok(None),
                _ => Err(ClientError::NotExecuted { cause: Failure::Protocol }),
            }
        })
    }
}

impl Handler<Delete> for MasterActor {
    type Result = ResponseFuture<Result<bool, ClientError>>;

    fn handle(&mut self, delete: Delete, _: &mut Self::Context) -> Self::Result {
        let asked = self.embedded.ask(Command::Delete { keys: vec![delete.key] });
        Box::pin(async move {
            match asked.result().await? {
                Reply::Count(count) => Ok(count > 0),
                _ => Err(ClientError::Indeterminate { cause: Failure::Protocol }),
            }
        })
    }
}

impl Handler<Status> for MasterActor {
    type Result = ResponseFuture<Result<String, ClientError>>;

    fn handle(&mut self, _: Status, _: &mut Self::Context) -> Self::Result {
        let asked = self.embedded.ask(Command::Status);
        Box::pin(async move {
            match asked.result().await? {
                Reply::Text(text) => Ok(text),
                _ => Err(ClientError::NotExecuted { cause: Failure::Protocol }),
            }
        })
    }
}
