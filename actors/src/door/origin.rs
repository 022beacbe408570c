//! Where a session's requests come from, and what follows from that for their order, their answers and a stop.

use dsm_protocol::machine::front::Kind;
use std::cell::Cell;

/// Where a session's requests come from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A Redis client's connection.
    Resp,
    /// A native client's connection.
    Native {
        /// Whether it has proved the secret of native clients, and may do everything.
        has_proved: bool,
    },
    /// A session of the other master, over the link that all of them share.
    Forwarded {
        /// The generation of the session's stream that came with the last request.
        generation: Cell<u32>,
    },
    /// The program that embeds this master, without a connection.
    Embedded,
}

impl Origin {
    /// A session that the other master forwards, before its first request.
    pub(crate) fn forwarded() -> Self {
        Origin::Forwarded { generation: Cell::new(0) }
    }

    /// Its kind, as the front distinguishes them.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            // Neither of them knows several masters, so a standby forwards their requests.
            Origin::Resp | Origin::Embedded => Kind::Forwardable,
            Origin::Native { .. } => Kind::Native,
            Origin::Forwarded { generation } => Kind::Forwarded { generation: generation.get() },
        }
    }

    /// Whether its requests share their connection with other sessions.
    pub(super) fn shares_its_link(&self) -> bool {
        match self {
            Origin::Forwarded { .. } => true,
            Origin::Resp | Origin::Native { .. } | Origin::Embedded => false,
        }
    }

    /// Whether it is told of a stop by a message, and then leaves by itself.
    pub(super) fn is_told_of_a_stop(&self) -> bool {
        match self {
            Origin::Native { .. } | Origin::Forwarded { .. } => true,
            Origin::Resp | Origin::Embedded => false,
        }
    }

    /// Whether a stop waits until the session has ended.
    pub(crate) fn leaves_at_a_stop(&self) -> bool {
        match self {
            Origin::Resp | Origin::Native { .. } => true,
            Origin::Forwarded { .. } | Origin::Embedded => false,
        }
    }
}
