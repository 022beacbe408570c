//! Who may do what: users with their passwords, and the commands and keys that each may use, in the form of Redis' ACL files.
//!
//! | file | owns |
//! |---|---|
//! | `permissions.rs` | commands and keys: the rules that give them, and the check of a request |
//! | `user.rs` | one user: whether it is on, its passwords, its permissions |
//! | `users.rs` | all users, and the file that names them |
//! | `forwarded.rs` | the check of a request that another master has forwarded |
//! | `accounts.rs` | what the connections of a node share: the users of now, and the log of what was refused |
//!
//! Has no clock of its own and does no IO: whoever reads the file gives its text.
//! Source: Redis 7, "ACL" in its documentation; the texts of the errors are those of redis-server 7.0.

mod accounts;
mod forwarded;
mod permissions;
mod user;
mod users;

pub use accounts::{Accounts, Incident, IncidentKind};
pub use forwarded::{ForwardRefused, ForwardedRequest};
pub(crate) use permissions::{commands_of, CATEGORIES};
pub use permissions::{Denied, RuleError};
pub(crate) use user::Judging;
pub use user::{PasswordHash, User};
pub use users::{FileFault, Users, DEFAULT_USER, USERS_FILE_BYTES_MAX};
