//! `/events`: what the page is told, by server-sent events: at first all of the last ten minutes, and then each second what is new.
//!
//! Owns the number of such streams. Nothing waits for a reader: what it is told next is made when it has taken the last.

use super::{status, HttpHost};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde_json::{json, Value};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// The most streams at once.
pub(super) const STREAMS_MAX: usize = 16;

/// How long a stream lasts; the page then begins another one.
pub(super) const STREAM_LASTS: Duration = Duration::from_secs(600);

/// How often something is told.
const EVERY: Duration = Duration::from_secs(1);

/// What is sent of a stream, piece by piece.
pub(super) type EventPieces = Pin<Box<dyn Stream<Item = Bytes>>>;

/// A stream's place among [`STREAMS_MAX`].
struct StreamPlace(Rc<HttpHost>);

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

/// A new stream; `None` if there are too many.
pub(super) fn begin(host: &Rc<HttpHost>) -> Option<EventPieces> {
    if host.streams.get() >= STREAMS_MAX {
        return None;
    }
    host.streams.set(host.streams.get() + 1);
    let place = StreamPlace(Rc::clone(host));
    let users = host.guard.generation();
    let pieces = stream::unfold((place, true), move |(place, is_first)| async move {
        if !is_first {
            tokio::time::sleep(EVERY).await;
        }
        // There are other users: the page has to say again who it is.
        if place.0.guard.generation() != users {
            return None;
        }
        let event = event(&place.0, is_first).await;
        Some((event, (place, false)))
    });
    Some(Box::pin(pieces))
}

/// What is told now.
async fn event(host: &HttpHost, is_first: bool) -> Bytes {
    let told = host.look().await;
    let status = told.map_or(Value::Null, |told| status::json(&told, host.turns.timings()));
    let mut event = json!({
        "status": status,
        "sample": host.history.last_sample(),
        "failovers": host.history.failovers(),
    });
    if is_first {
        event["samples"] = host.history.samples();
    }
    // JSON has no line ends of its own.
    format!("data: {event}\n\n").into()
}
