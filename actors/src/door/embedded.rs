//! Requests of the program that embeds a master, without a socket: one session, and results of three kinds.

use super::admission::check_sizes;
use super::counters::count;
use super::session::{Coding, Session};
use super::switchboard::{Arrived, Switchboard};
use crate::client_error::{ClientError, Failure};
use crate::config::MasterConfig;
use actix::prelude::*;
use bytes::Bytes;
use dsm_protocol::command::{Command, ErrorWord, Reply, ReplyError};
use dsm_protocol::ids::SessionId;
use dsm_protocol::machine::master::Asker;
use std::rc::Rc;
use tokio::sync::oneshot;

/// Asks for one key to be written.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<(), ClientError>")]
pub struct Put {
    /// Up to 64 KiB, any bytes.
    pub key: Bytes,
    /// Up to `--max-value` bytes, any of them.
    pub value: Bytes,
}

/// Reads one key; `None` when it is not there. Never unknown.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<Option<Bytes>, ClientError>")]
pub struct Get {
    /// Up to 64 KiB, any bytes.
    pub key: Bytes,
}

/// Deletes one key; whether it was there.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<bool, ClientError>")]
pub struct Delete {
    /// Up to 64 KiB, any bytes.
    pub key: Bytes,
}

/// Asks for the state of the node, in the text form of Redis' INFO. A master describes itself, a client the master at
/// the other end. Never unknown.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<String, ClientError>")]
pub struct Status;

/// The session of the embedding program. It is opened with the first request, and opened anew after it had to be
/// closed.
pub(crate) struct EmbeddedCaller {
    switchboard: Rc<Switchboard>,
    config: Rc<MasterConfig>,
    session: Option<Rc<Session>>,
}

impl EmbeddedCaller {
    pub(crate) fn new(switchboard: Rc<Switchboard>, config: Rc<MasterConfig>) -> Self {
        EmbeddedCaller { switchboard, config, session: None }
    }

    /// Asks the master what a client may ask, within the limits.
    pub(crate) fn ask(&mut self, command: Command) -> Asked {
        let is_write = command.is_write();
        let answer = match self.admit(command) {
            Ok(answer) => Answer::Awaited(answer),
            Err(refusal) => {
                self.switchboard.errors.note(&refusal);
                Answer::Here(refusal)
            }
        };
        Asked { answer, is_write }
    }

    fn admit(&mut self, command: Command) -> Result<oneshot::Receiver<Reply>, Reply> {
        if let Some(refusal) = check_sizes(&command, self.config.value_max()) {
            return Err(refusal);
        }
        let session = self.session();
        let (requests, in_flight_bytes) = session.in_flight();
        let bytes = command.payload_bytes();
        if requests >= self.config.max_pipeline
            || in_flight_bytes >= self.config.max_pipeline_bytes.as_u64() as usize
        {
            count(&self.switchboard.gate.counters.busy);
            return Err(Reply::Error(busy()));
        }
        let Some(permit) = self.switchboard.gate.request(bytes) else {
            return Err(Reply::Error(busy()));
        };
        let (caller, answer) = oneshot::channel();
        let permit = permit.measuring(&command);
        let tag = session.ask_for(Coding::Embedded(caller), Some(permit), !command.is_write());
        let asker = Asker { session: session.id(), tag };
        self.switchboard.push(Arrived::Request { asker, command });
        Ok(answer)
    }

    fn session(&mut self) -> Rc<Session> {
        if let Some(session) = self.session.as_ref().filter(|session| !session.is_closed()) {
            return Rc::clone(session);
        }
        let session =
            Rc::new(Session::embedded(SessionId(self.switchboard.next_id()), &self.switchboard.answers));
        self.switchboard.push(Arrived::Opened(Rc::clone(&session)));
        self.session = Some(Rc::clone(&session));
        let (closing, board) = (Rc::clone(&session), Rc::clone(&self.switchboard));
        // A session that is closed after an unknown write gives up its other requests.
        actix::spawn(async move {
            closing.closed().await;
            board.push(Arrived::Closed(closing.id()));
        });
        session
    }
}

impl Drop for EmbeddedCaller {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.close();
            session.abandon();
        }
    }
}

/// The answer when too much is in flight.
pub(crate) fn busy() -> ReplyError {
    ReplyError { word: ErrorWord::Busy, detail: "too many requests in flight".to_owned() }
}

/// An answer that has arrived or is still expected.
pub(crate) struct Asked {
    answer: Answer,
    is_write: bool,
}

enum Answer {
    Here(Reply),
    Awaited(oneshot::Receiver<Reply>),
}

impl Asked {
    /// Waits for the result.
    pub(crate) async fn result(self) -> Result<Reply, ClientError> {
        let reply = match self.answer {
            Answer::Here(reply) => reply,
            Answer::Awaited(answer) => match answer.await {
                Ok(reply) => reply,
                Err(_) if self.is_write => {
                    return Err(ClientError::Indeterminate { cause: Failure::LinkLost });
                }
                Err(_) => return Err(ClientError::NotExecuted { cause: Failure::LinkLost }),
            },
        };
        match reply {
            Reply::Error(error) => Err(failed(error, self.is_write)),
            reply => Ok(reply),
        }
    }
}

/// Which of the two kinds of failure a master's error answer is.
pub(crate) fn failed(error: ReplyError, is_write: bool) -> ClientError {
    if is_write && !error.word.is_not_executed() {
        ClientError::Indeterminate { cause: Failure::Refused(error) }
    } else {
        ClientError::NotExecuted { cause: Failure::Refused(error) }
    }
}
