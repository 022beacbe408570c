//! To which channels and patterns one connection has subscribed, and the bytes of what it is told of that.

use super::super::encode::{array, bulk, error, header, null, unsigned};
use super::super::Protocol;
use crate::glob;
use bytes::Bytes;
use std::collections::BTreeSet;

/// The most channels and patterns of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// The longest name of a channel or pattern, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 256;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionKind {
    /// A channel of just that name.
    Channel,
    /// All channels whose names match.
    Pattern,
}

/// The subscriptions of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscriptions {
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
}

impl Subscriptions {
    /// How many channels and how many patterns there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.channels.len(), self.patterns.len())
    }

    /// Whether there are any.
    pub(super) fn is_any(&self) -> bool {
        !self.channels.is_empty() || !self.patterns.is_empty()
    }

    fn total(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    fn of(&mut self, kind: SubscriptionKind) -> &mut BTreeSet<Bytes> {
        match kind {
            SubscriptionKind::Channel => &mut self.channels,
            SubscriptionKind::Pattern => &mut self.patterns,
        }
    }

    /// `SUBSCRIBE name [name ...]` or `PSUBSCRIBE`: as many answers as names, or an error that nothing is done.
    pub(super) fn add(
        &mut self,
        protocol: Protocol,
        kind: SubscriptionKind,
        names: &[Bytes],
        out: &mut Vec<u8>,
    ) {
        if names.iter().any(|name| name.len() > CHANNEL_BYTES_MAX) {
            return error(out, &format!("ERR a channel's name has at most {CHANNEL_BYTES_MAX} bytes"));
        }
        let new: BTreeSet<&Bytes> = names.iter().filter(|name| !self.of(kind).contains(*name)).collect();
        if self.total() + new.len() > SUBSCRIPTIONS_MAX {
            return error(out, &format!("ERR a connection has at most {SUBSCRIPTIONS_MAX} subscriptions"));
        }
        let word = match kind {
            SubscriptionKind::Channel => "subscribe",
            SubscriptionKind::Pattern => "psubscribe",
        };
        for name in names {
            // A name of the request would keep all of it in memory.
            self.of(kind).insert(Bytes::copy_from_slice(name));
            self.tell(protocol, word, Some(name), out);
        }
    }

    /// `UNSUBSCRIBE [name ...]` or `PUNSUBSCRIBE`; without names, of all of that kind.
    pub(super) fn remove(
        &mut self,
        protocol: Protocol,
        kind: SubscriptionKind,
        names: &[Bytes],
        out: &mut Vec<u8>,
    ) {
        let word = match kind {
            SubscriptionKind::Channel => "unsubscribe",
            SubscriptionKind::Pattern => "punsubscribe",
        };
        let all: Vec<Bytes> =
            if names.is_empty() { self.of(kind).iter().cloned().collect() } else { names.to_vec() };
        if all.is_empty() {
            self.tell(protocol, word, None, out);
        }
        for name in all {
            self.of(kind).remove(&name);
            self.tell(protocol, word, Some(&name), out);
        }
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.channels.clear();
        self.patterns.clear();
    }

    fn tell(&self, protocol: Protocol, word: &str, name: Option<&Bytes>, out: &mut Vec<u8>) {
        push(protocol, 3, out);
        bulk(out, word.as_bytes());
        match name {
            Some(name) => bulk(out, name),
            None => null(protocol, out),
        }
        unsigned(out, self.total() as u64);
    }

    /// Tells what is published on `channel`, once for the channel and once for each pattern that it matches, as Redis does.
    pub(super) fn publish(&self, protocol: Protocol, channel: &str, message: &str, out: &mut Vec<u8>) {
        if self.channels.contains(channel.as_bytes()) {
            push(protocol, 3, out);
            [b"message", channel.as_bytes(), message.as_bytes()].into_iter().for_each(|part| bulk(out, part));
        }
        for pattern in &self.patterns {
            if glob::matches_exactly(pattern, channel.as_bytes(), &mut 0) {
                push(protocol, 4, out);
                bulk(out, b"pmessage");
                bulk(out, pattern);
                bulk(out, channel.as_bytes());
                bulk(out, message.as_bytes());
            }
        }
    }
}

/// `>3`: what is told unasked; in RESP2 an array.
fn push(protocol: Protocol, length: usize, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Resp2 => array(out, length),
        Protocol::Resp3 => header(out, b'>', length as u64),
    }
}
