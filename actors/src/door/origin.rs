//! Where a session's requests come from, and what follows from that for their order, their answers and a stop.

use dsm_protocol::machine::front::Kind;
use std::cell::Cell;

/// Where a session's requests come from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A Redis client's connection.
    Resp,
    /// A native client's connection.
    Native,
    /// A session of the other master, over the link that all of them share.
    Forwarded {
        /// That of the session's stream with which the last request came.
        generation: Cell<u32>,
    },
    /// The program around this master, without a connection.
    Embedded,
}

impl Origin {
    /// A session that the other master forwards, of which nothing has come yet.
    pub(crate) fn forwarded() -> Self {
        Origin::Forwarded { generation: Cell::new(0) }
    }

    /// What the front is to know of it.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            // Neither knows of masters: a standby forwards for them.
            Origin::Resp | Origin::Embedded => Kind::Forwardable,
            Origin::Native => Kind::Native,
            Origin::Forwarded { generation } => Kind::Forwarded { generation: generation.get() },
        }
    }

    /// Whether its requests share their connection with other sessions.
    pub(super) fn shares_its_link(&self) -> bool {
        match self {
            Origin::Forwarded { .. } => true,
            Origin::Resp | Origin::Native | Origin::Embedded => false,
        }
    }

    /// Whether a stop is told to it by messages, so that it goes by itself.
    pub(super) fn is_told_of_a_stop(&self) -> bool {
        match self {
            Origin::Native | Origin::Forwarded { .. } => true,
            Origin::Resp | Origin::Embedded => false,
        }
    }

    /// Whether a stop waits until it has gone.
    pub(crate) fn leaves_at_a_stop(&self) -> bool {
        match self {
            Origin::Resp | Origin::Native => true,
            Origin::Forwarded { .. } | Origin::Embedded => false,
        }
    }
}
