//! The other end of a node's links, played by a test.

use bytes::{Bytes, BytesMut};
use dsm::env::{Env, Stream};
use dsm_protocol::frame;
use dsm_protocol::ids::ClusterId;
use dsm_protocol::message::{Control, Message};
use std::time::Duration;

/// How long something may take before the test has failed, in virtual time.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const CLUSTER: ClusterId = ClusterId(7);

/// A link on which frames go.
pub(crate) struct Link {
    stream: Stream,
    input: BytesMut,
}

impl Link {
    pub(crate) async fn dial(env: &Env, address: &str) -> Link {
        let stream = tokio::time::timeout(LIMIT, env.connect(address)).await.unwrap().unwrap();
        stream.write_all(&frame::PREFACE).await.unwrap();
        Link { stream, input: BytesMut::new() }
    }

    /// Takes over a connection whose other end begins with the preface.
    pub(crate) async fn accepted(stream: Stream) -> Link {
        let mut link = Link { stream, input: BytesMut::new() };
        while link.input.len() < frame::PREFACE.len() {
            assert!(link.stream.read(&mut link.input).await.unwrap() > 0, "closed before the preface");
        }
        assert_eq!(link.input.split_to(frame::PREFACE.len())[..], frame::PREFACE);
        link
    }

    /// The next message; `None` when the other end has closed the link.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = frame::decode(&mut self.input, 1 << 22).unwrap() {
                return Some(message);
            }
            let reading = self.stream.read(&mut self.input);
            if tokio::time::timeout(LIMIT, reading).await.expect("a message in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Waits until the other end refuses: its reason. The link is closed after it.
    pub(crate) async fn refusal(&mut self) -> String {
        let reason = loop {
            match self.message().await.expect("a reason before the end") {
                Message::Control(Control::Reject { reason }) => break reason,
                Message::Control(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(self.message().await.is_none(), "the link is still open");
        reason
    }

    pub(crate) async fn send(&self, message: &Message) {
        self.send_all(std::slice::from_ref(message)).await;
    }

    /// Sends messages that arrive at once.
    pub(crate) async fn send_all(&self, messages: &[Message]) {
        let mut out = Vec::new();
        for message in messages {
            frame::encode(message, &mut out);
        }
        self.stream.write_all(&out).await.unwrap();
    }
}

pub(crate) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
