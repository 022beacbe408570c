//! What is said between a machine that wants to become a member and those that it asks: the body of a frame.
//!
//! Owns the texts below. Lists have at most [`NAMED_MAX`] addresses.
//!
//! ```text
//! offset  bytes  content
//! 0       1      kind: 80 asks, 81 is empty, 82 members
//! 1       ..     text, to the end
//!
//! asks, is empty:  token=7f3a9c0e51d24b88 address=10.0.0.2:12345 named=10.0.0.1:12345,10.0.0.2:12345
//! members:         cluster=7f3a9c0e51d24b88 seq=41 MEMBERS next=…
//! ```
//!
//! A member that has not heard who the members are leaves out the record, and the space in front of it.

use super::WireError;
use crate::members::Members;
use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Seq};

/// The most addresses of a list.
pub const NAMED_MAX: usize = crate::members::MEMBERS_MAX;

const ASKS: u8 = 80;
const IS_EMPTY: u8 = 81;
const MEMBERS: u8 = 82;

/// A machine whose log is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptyMachine {
    /// Drawn at random when its process started.
    pub token: u64,
    /// Where it is reached.
    pub address: String,
    /// The masters that its settings name, in their order.
    pub named: Vec<String>,
}

/// A message to or from a machine that wants to become a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinMessage {
    /// Its log is empty, and it asks what the other one has.
    Asks(EmptyMachine),
    /// The answer: the other one's log is empty, too.
    IsEmpty(EmptyMachine),
    /// The answer of a member. One that was removed is told so by it.
    Members {
        /// Whose log it has.
        cluster: ClusterId,
        /// Through where it knows the log to be committed.
        seq: Seq,
        /// The members by that; none if it does not know them.
        members: Members,
    },
}

impl JoinMessage {
    /// Whether the body is of such a message, judged by its kind.
    pub fn is_one(body: &[u8]) -> bool {
        body.first().is_some_and(|kind| [ASKS, IS_EMPTY, MEMBERS].contains(kind))
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let machine = |machine: &EmptyMachine| {
            let EmptyMachine { token, address, named } = machine;
            format!("token={token:016x} address={address} named={}", named.join(","))
        };
        let (kind, text) = match self {
            JoinMessage::Asks(asks) => (ASKS, machine(asks)),
            JoinMessage::IsEmpty(empty) => (IS_EMPTY, machine(empty)),
            JoinMessage::Members { cluster, seq, members } if members.is_empty() => {
                (MEMBERS, format!("cluster={cluster} seq={seq}"))
            }
            JoinMessage::Members { cluster, seq, members } => {
                (MEMBERS, format!("cluster={cluster} seq={seq} {members}"))
            }
        };
        out.push(kind);
        out.extend_from_slice(text.as_bytes());
    }

    /// Reads a whole body.
    ///
    /// # Errors
    /// [`WireError`], for whatever bytes.
    pub fn decode(body: &Bytes) -> Result<Self, WireError> {
        let (kind, text) = body.split_first().ok_or(WireError::TooShort)?;
        let malformed = WireError::Malformed("the text of a machine that joins makes no sense");
        let text = std::str::from_utf8(text).map_err(|_| malformed)?;
        let message = match *kind {
            ASKS => empty_machine(text).map(JoinMessage::Asks),
            IS_EMPTY => empty_machine(text).map(JoinMessage::IsEmpty),
            MEMBERS => members(text),
            other => return Err(WireError::Kind(other)),
        };
        let message = message.ok_or(malformed)?;
        // Written again it must be the same text.
        let mut again = Vec::new();
        message.encode(&mut again);
        (again == body[..]).then_some(message).ok_or(malformed)
    }
}

fn empty_machine(text: &str) -> Option<EmptyMachine> {
    let mut words = text.split(' ');
    let mut value = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
    let token = u64::from_str_radix(value("token")?, 16).ok()?;
    let address = value("address")?.to_owned();
    let named: Vec<String> = value("named")?.split(',').map(str::to_owned).collect();
    (words.next().is_none() && named.len() <= NAMED_MAX).then_some(EmptyMachine { token, address, named })
}

fn members(text: &str) -> Option<JoinMessage> {
    let (cluster, rest) = text.strip_prefix("cluster=")?.split_once(' ')?;
    let cluster = ClusterId(u64::from_str_radix(cluster, 16).ok()?);
    let (seq, members) = match rest.strip_prefix("seq=")?.split_once(' ') {
        Some((seq, members)) => (seq, Members::parse(members.as_bytes())?),
        None => (rest.strip_prefix("seq=")?, Members::default()),
    };
    Some(JoinMessage::Members { cluster, seq: Seq(seq.parse().ok()?), members })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::NewMachine;
    use proptest::prelude::*;

    fn messages() -> Vec<JoinMessage> {
        let machine = EmptyMachine {
            token: 0x7f3a,
            address: "10.0.0.2:12345".to_owned(),
            named: vec!["10.0.0.1:12345".to_owned(), "10.0.0.2:12345".to_owned()],
        };
        let first = NewMachine { address: "10.0.0.1:12345".to_owned(), token: 9 };
        let members = Members::first(&[first]).unwrap();
        let told = |members| JoinMessage::Members { cluster: ClusterId(7), seq: Seq(41), members };
        vec![
            JoinMessage::Asks(machine.clone()),
            JoinMessage::IsEmpty(machine),
            told(members),
            told(Members::default()),
        ]
    }

    fn encoded(message: &JoinMessage) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }

    #[test]
    fn each_comes_back_from_its_bytes() {
        for message in messages() {
            let bytes = encoded(&message);
            assert!(JoinMessage::is_one(&bytes));
            assert_eq!(JoinMessage::decode(&bytes.into()), Ok(message));
        }
    }

    #[test]
    fn each_is_readable_text() {
        let text = |at: usize| String::from_utf8(encoded(&messages()[at])[1..].to_vec()).unwrap();
        assert_eq!(
            text(0),
            "token=0000000000007f3a address=10.0.0.2:12345 named=10.0.0.1:12345,10.0.0.2:12345"
        );
        assert_eq!(
            text(2),
            "cluster=0000000000000007 seq=41 MEMBERS next=2,prefer=1 1=voter@10.0.0.1:12345~0000000000000009"
        );
    }

    #[test]
    fn a_list_of_too_many_is_refused() {
        let named = |count| vec!["a:1".to_owned(); count];
        let machine = |count| EmptyMachine { token: 1, address: "a:1".to_owned(), named: named(count) };
        let decoded = |count| JoinMessage::decode(&encoded(&JoinMessage::Asks(machine(count))).into());
        assert!(decoded(NAMED_MAX).is_ok());
        assert!(decoded(NAMED_MAX + 1).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(which in 0..4_usize, at in 0..110_usize, byte: u8) {
            let mut bytes = encoded(&messages()[which]);
            let place = at.min(bytes.len() - 1);
            bytes[place] = byte;
            if let Ok(message) = JoinMessage::decode(&bytes.clone().into()) {
                prop_assert_eq!(encoded(&message), bytes);
            }
        }
    }
}
