//! Protected mode: as long as a master could not tell a friend from a stranger, it serves this machine alone.
//!
//! Owns who is denied, and in which words. What somebody has shown is found out by whoever accepts the connection; the words
//! for Redis clients are those of Redis 7, with our own remedies.
//!
//! | who comes from elsewhere | is served if |
//! |---|---|
//! | a Redis client | `default` needs a password, or clients must show a certificate |
//! | a native client | the same, or it has proved a secret |
//! | a slave or a master | it has shown a node's certificate or proved a secret |

/// Who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comer {
    /// A Redis client.
    Text,
    /// A native client.
    Native,
    /// A slave or another master.
    Node,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Whether its other side is on this machine: it came over the loopback, by a Unix socket or from this process.
    pub is_near: bool,
    /// Whether it has shown a certificate that it had to show.
    pub certificate: bool,
    /// Whether it has proved a secret.
    pub secret: bool,
    /// Whether clients must say who they are before they may do anything.
    pub must_log_in: bool,
}

/// Whether protected mode keeps them out.
pub fn is_denied(comer: Comer, shown: Shown) -> bool {
    let is_known = match comer {
        Comer::Text => shown.certificate || shown.must_log_in,
        Comer::Native => shown.certificate || shown.must_log_in || shown.secret,
        Comer::Node => shown.certificate || shown.secret,
    };
    !shown.is_near && !is_known
}

/// What a Redis client is told, its line's end included.
pub const DENIED_TEXT: &str =
    "-DENIED dsm is running in protected mode because protected mode is enabled and no password is set for the default user. \
     In this mode connections are only accepted from the loopback interface. If you want to connect from external computers \
     to dsm you may adopt one of the following solutions: 1) Set a password for the default user, with --password-file or \
     --users-file. 2) Let clients show certificates, with --tls-cert, --tls-key and --tls-ca. 3) If you started the server \
     manually just for testing, restart it with the '--protected-mode no' option, however MAKE SURE that it is not publicly \
     accessible from internet if you do so. NOTE: You only need to do one of the above things in order for the server to \
     start accepting connections from the outside.\r\n";

/// What a native client is told.
pub const DENIED_NATIVE: &str =
    "DENIED this master is in protected mode: from other machines it serves native clients that show a certificate (--tls-cert, \
     --tls-key and --tls-ca) or prove a secret over TLS (--client-secret-file), or all of them with --protected-mode no";

/// What a slave or another master is told.
pub const DENIED_NODE: &str =
    "DENIED this master is in protected mode: from other machines it takes slaves and masters that show a certificate (give all \
     of them --tls-cert, --tls-key and --tls-ca), or all of them with --protected-mode no";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_from_elsewhere_must_have_shown_what_his_kind_can() {
        let far = Shown::default();
        for comer in [Comer::Text, Comer::Native, Comer::Node] {
            assert!(is_denied(comer, far), "{comer:?}");
            assert!(!is_denied(comer, Shown { is_near: true, ..far }), "{comer:?}");
            assert!(!is_denied(comer, Shown { certificate: true, ..far }), "{comer:?}");
            // A password is asked of clients alone, and a secret of those who speak in frames.
            assert_eq!(is_denied(comer, Shown { must_log_in: true, ..far }), comer == Comer::Node);
            assert_eq!(is_denied(comer, Shown { secret: true, ..far }), comer == Comer::Text);
        }
    }

    #[test]
    fn the_words_are_one_line_and_name_the_way_out() {
        for text in [DENIED_TEXT.trim_end_matches("\r\n"), DENIED_NATIVE, DENIED_NODE] {
            assert!(!text.contains(['\r', '\n']) && !text.contains("  "), "{text}");
            assert!(text.contains("--protected-mode no") && text.contains("--tls-cert"), "{text}");
        }
    }
}
