//! Whom protected mode keeps out, and who has to show first who he is.
//!
//! Owns nothing: the rule is `dsm_protocol::machine::protected`'s; here is what is known of a connection.

use super::counters::count;
use super::Context;
use crate::config::{ClientAuth, ProtectedMode};
use crate::env::Stream;
use dsm_protocol::handshake::{Accepting, Security};
use dsm_protocol::machine::protected::{self, Comer, Shown};

/// Whether whoever comes so has to show first who he is, though he may be a Redis client: for his connection may have to make
/// room for others. One that would be served as it is may be silent, as those of a pool are.
pub(super) fn is_stranger(stream: &Stream, address: &str, context: &Context) -> bool {
    context.switchboard.accounts.must_log_in()
        || stream.is_in_handshake()
        || is_kept_out(Comer::Text, false, stream, address, context)
}

/// Whether protected mode keeps the other side out. Then it is counted.
pub(super) fn is_denied(
    comer: Comer,
    handshake: &Accepting,
    stream: &Stream,
    address: &str,
    context: &Context,
) -> bool {
    let is_denied = is_kept_out(comer, handshake.has_proved(), stream, address, context);
    if is_denied {
        count(&context.switchboard.gate.counters.denied);
        log::debug!("connection denied in protected mode address={address} who={comer:?}");
    }
    is_denied
}

/// Whether whoever comes so is let in as a Redis client would be that has shown nothing else. If not, it is counted.
pub(super) fn lets_in(stream: &Stream, address: &str, context: &Context) -> bool {
    let is_kept_out = is_kept_out(Comer::Text, false, stream, address, context);
    if is_kept_out {
        count(&context.switchboard.gate.counters.denied);
    }
    !is_kept_out
}

/// Whether protected mode keeps out who comes so.
fn is_kept_out(comer: Comer, has_proved: bool, stream: &Stream, address: &str, context: &Context) -> bool {
    if context.config.protected_mode == ProtectedMode::No {
        return false;
    }
    let certificate = match stream.security() {
        Security::Plain | Security::Missing => false,
        Security::Tls { is_node } => is_node || context.config.tls_client_auth == ClientAuth::Yes,
    };
    let shown = Shown {
        is_near: stream.is_near(address),
        certificate,
        secret: has_proved,
        must_log_in: context.switchboard.accounts.must_log_in(),
    };
    protected::is_denied(comer, shown)
}
