//! What log lines and errors show of what others have sent: its beginning, for its sender decides how long it is.

use bytes::Bytes;
use dsm_protocol::message::Message;

/// The payload of a stored value that an error mentions is never shown: keys and values are the users'.
pub(crate) fn shown_key(key: &Bytes) -> String {
    let short = &key[..key.len().min(40)];
    let mut shown = short.escape_ascii().to_string();
    if short.len() < key.len() {
        shown.push_str("...");
    }
    shown
}

/// The longest description of a message that its sender should not have sent, in bytes.
const SHOWN_BYTES_MAX: usize = 80;

/// The beginning of a message for a log line: a peer decides how long the whole would be.
pub(crate) fn shown_message(message: &Message) -> String {
    struct Short(String);
    impl std::fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let room = SHOWN_BYTES_MAX - self.0.len();
            let mut end = room.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            self.0.push_str(&text[..end]);
            // An error ends the formatting: the rest is never produced.
            if end < text.len() {
                Err(std::fmt::Error)
            } else {
                Ok(())
            }
        }
    }
    let mut short = Short(String::new());
    if std::fmt::Write::write_fmt(&mut short, format_args!("{message:?}")).is_err() {
        short.0.push_str("...");
    }
    short.0
}

/// An error with its causes, in one line.
pub(crate) fn shown_error(error: &dyn std::error::Error) -> String {
    let mut shown = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        shown.push_str(": ");
        shown.push_str(&error.to_string());
        cause = error.source();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_shown_by_its_beginning_only() {
        let value = Bytes::from(vec![0_u8; 1 << 20]);
        let version = dsm_protocol::ids::Version::new(1, 2);
        let message = Message::Value { tag: 7, version, reign: dsm_protocol::ids::ReignId(3), value };
        let shown = shown_message(&message);
        assert!(shown.starts_with("Value { tag: 7, "), "{shown}");
        assert!(shown.ends_with("..."), "{shown}");
        assert_eq!(shown.len(), SHOWN_BYTES_MAX + 3);
        assert_eq!(shown_message(&Message::Ping), "Ping");
    }
}
