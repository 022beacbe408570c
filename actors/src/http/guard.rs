//! Who may see what at the HTTP port.
//!
//! Owns no rule: whom protected mode keeps out, and what a user may do, is decided where it is for clients. Whoever may use INFO
//! may see all of this port, which tells the same.

use crate::door::switchboard::Switchboard;
use crate::door::{self, Context};
use crate::env::{Env, Stream};
use base64::prelude::{Engine as _, BASE64_STANDARD};
use bytes::BytesMut;
use dsm_protocol::handshake::Security;
use dsm_protocol::resp::{Args, Conversation, Handling, Parser};
use hyper::header::{HeaderValue, AUTHORIZATION};
use hyper::HeaderMap;
use std::rc::Rc;
use std::time::Duration;

/// The longest name and password together, in bytes: what a client that must say who it is may send.
const CREDENTIALS_BYTES_MAX: usize = 8 * 1024;

/// How many steps of a turn judge whether a request is allowed, some nanoseconds each.
const JUDGED_STEPS: usize = 100_000;

/// By what a node tells friends from strangers.
pub(crate) enum Guard {
    /// A master: by protected mode, and by its users where it has some.
    Master(Box<Context>),
    /// A slave, which has no users: from elsewhere by certificates alone.
    Slave,
}

/// What somebody may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MaySee {
    /// Everything.
    Everything,
    /// Nothing before he has said who he is.
    Login,
    /// Nothing: he is not allowed to.
    Nothing,
}

impl Guard {
    /// What the connections of a master share.
    pub(super) fn switchboard(&self) -> Option<&Switchboard> {
        match self {
            Guard::Master(context) => Some(&context.switchboard),
            Guard::Slave => None,
        }
    }

    /// Changes when there are other users.
    pub(super) fn generation(&self) -> u64 {
        self.switchboard().map_or(0, |board| board.accounts.generation())
    }

    /// Whether the other side may come in at all.
    pub(super) fn lets_in(&self, stream: &Stream, peer: &str) -> bool {
        match self {
            Guard::Master(context) => door::lets_in(stream, peer, context),
            Guard::Slave => stream.is_near(peer) || matches!(stream.security(), Security::Tls { .. }),
        }
    }

    /// What the sender of a request with this head may see, who was let in. A wrong password takes its time.
    pub(super) async fn admit(&self, head: &HeaderMap, (stream, peer): (&Stream, &str), env: &Env) -> MaySee {
        let Guard::Master(context) = self else { return MaySee::Everything };
        let board = &context.switchboard;
        let mut conversation = Conversation::new(board.next_id(), context.facts, Rc::clone(&board.accounts))
            .with_addresses(peer, stream.local_address());
        let credentials = head.get(AUTHORIZATION).and_then(credentials);
        if let Some((name, password)) = credentials.as_ref().filter(|_| board.accounts.is_guarded()) {
            let (is_right, pause) = log_in(context, &mut conversation, [b"AUTH", name, password]);
            env.pause(pause).await;
            if !is_right {
                return MaySee::Login;
            }
        }
        let Some(args) = words(context, &[b"INFO"]) else { return MaySee::Nothing };
        while !conversation.judge(&args, JUDGED_STEPS) {
            tokio::task::yield_now().await;
        }
        match conversation.handle(args, &mut Vec::new()) {
            Handling::Ask { .. } => MaySee::Everything,
            _ if credentials.is_none() => MaySee::Login,
            _ => MaySee::Nothing,
        }
    }
}

/// Says a name and a password; whether they are right, and how long the answer is to wait.
fn log_in(context: &Context, conversation: &mut Conversation, said: [&[u8]; 3]) -> (bool, Duration) {
    let mut out = Vec::new();
    let Some(args) = words(context, &said) else { return (false, Duration::ZERO) };
    while !conversation.judge(&args, JUDGED_STEPS) {}
    match conversation.handle(args, &mut out) {
        Handling::Answered => (out.starts_with(b"+"), Duration::ZERO),
        Handling::AnsweredLate(pause) => (out.starts_with(b"+"), pause),
        _ => (false, Duration::ZERO),
    }
}

/// These words as a request of a Redis client.
fn words(context: &Context, words: &[&[u8]]) -> Option<Args> {
    let mut coded = BytesMut::new();
    coded.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        coded.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        coded.extend_from_slice(word);
        coded.extend_from_slice(b"\r\n");
    }
    Parser::new(context.facts.limits).next(&mut coded).ok().flatten()
}

/// The name and the password of `Basic` and base64 of `NAME:PASSWORD`; an empty name is that of Redis' `default`.
fn credentials(field: &HeaderValue) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = field.to_str().ok().filter(|text| text.len() <= CREDENTIALS_BYTES_MAX)?;
    let (scheme, coded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(coded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (name, password) = (decoded[..colon].to_vec(), decoded[colon + 1..].to_vec());
    Some((if name.is_empty() { b"default".to_vec() } else { name }, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_password_are_read_of_basic_authorization() {
        let read = |text: &str| credentials(&HeaderValue::from_str(text).unwrap());
        let pair =
            |name: &str, password: &str| Some((name.as_bytes().to_vec(), password.as_bytes().to_vec()));
        assert_eq!(read("Basic QWxhZGRpbjpvcGVuOnNlc2FtZQ=="), pair("Aladdin", "open:sesame"));
        assert_eq!(read("basic OnNlY3JldA=="), pair("default", "secret"));
        for text in ["Basic", "Bearer QWxhZGRpbjpvcGVu", "Basic !!", "Basic QWxhZGRpbg=="] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
