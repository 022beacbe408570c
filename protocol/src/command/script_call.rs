//! What is asked of the store for scripts: to execute one, with the rights of whoever asks, and to know them.

use super::{Command, KEYS_MAX};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The longest script, in bytes: it is read in one step.
pub const SCRIPT_BYTES_MAX: usize = 256 * 1024;

/// What each argument of a script counts in the bytes in flight, in addition to its own length.
const ARGUMENT_BYTES: usize = 32;

/// A script that is to be executed, and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptCall {
    /// Its text, or the digest of one that is known.
    pub script: ScriptName,
    /// `KEYS`.
    pub keys: Vec<Bytes>,
    /// `ARGV`.
    pub args: Vec<Bytes>,
    /// Whether it may not write.
    pub is_read_only: bool,
    /// What its user may do. It does not travel: whoever executes it finds that out anew.
    #[serde(skip)]
    pub rights: ScriptRights,
}

/// Which script is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScriptName {
    /// This text.
    Text(Bytes),
    /// The one with this digest: 40 hexadecimal digits, if it is one.
    Digest(Bytes),
}

impl ScriptCall {
    /// How many keys it names.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Bytes that it brings, as the limits on requests in flight count them.
    pub fn payload_bytes(&self) -> usize {
        let (ScriptName::Text(text) | ScriptName::Digest(text)) = &self.script;
        let words = self.keys.iter().chain(&self.args);
        text.len() + words.map(|word| word.len() + ARGUMENT_BYTES).sum::<usize>()
    }

    /// How long its longest key is, in bytes.
    pub fn longest_key(&self) -> usize {
        self.keys.iter().map(Bytes::len).max().unwrap_or_default()
    }

    /// How long its longest argument is, in bytes: it may become a value.
    pub fn longest_value(&self) -> usize {
        self.args.iter().map(Bytes::len).max().unwrap_or_default()
    }

    pub(super) fn asked_as(&self) -> &'static [&'static str] {
        match (&self.script, self.is_read_only) {
            (ScriptName::Text(_), false) => &["eval"],
            (ScriptName::Text(_), true) => &["eval_ro"],
            (ScriptName::Digest(_), false) => &["evalsha"],
            (ScriptName::Digest(_), true) => &["evalsha_ro"],
        }
    }

    /// Why it cannot be executed; `None` if it can.
    fn excess(&self) -> Option<String> {
        let (ScriptName::Text(text) | ScriptName::Digest(text)) = &self.script;
        if text.len() > SCRIPT_BYTES_MAX {
            Some(format!("a script has at most {SCRIPT_BYTES_MAX} bytes"))
        } else if self.keys.len() + self.args.len() > KEYS_MAX {
            Some(format!("a script has at most {KEYS_MAX} keys and arguments"))
        } else {
            None
        }
    }
}

/// Judges the commands that a script calls.
pub trait ScriptJudge: fmt::Debug + Send + Sync {
    /// Whether its user may use the command of that full name, of which `words` are all, judged in as many steps.
    fn judge(&self, name: &'static str, words: &[Bytes], steps: usize) -> Judgement;
}

/// What comes of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may.
    Allowed,
    /// Not this command.
    NotTheCommand,
    /// Not one of these keys.
    NotTheKeys,
    /// To find out takes more steps.
    TakesLonger,
}

/// What the user of a script may do.
#[derive(Clone, Default)]
pub struct ScriptRights(Option<Arc<dyn ScriptJudge>>);

impl ScriptRights {
    /// What `judge` says.
    pub fn of(judge: Arc<dyn ScriptJudge>) -> Self {
        ScriptRights(Some(judge))
    }

    /// Whether the user may use that command; everything, if nobody judges.
    pub fn judge(&self, name: &'static str, words: &[Bytes], steps: usize) -> Judgement {
        self.0.as_ref().map_or(Judgement::Allowed, |judge| judge.judge(name, words, steps))
    }
}

impl fmt::Debug for ScriptRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "of a user" } else { "all" })
    }
}

/// They are no part of what is asked.
impl PartialEq for ScriptRights {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ScriptRights {}

impl Command {
    /// Gives the scripts in it the rights of their user.
    pub fn grant(&mut self, rights: &ScriptRights) {
        match self {
            Command::Evaluate { call } => call.rights.clone_from(rights),
            Command::Transact { transaction } => {
                transaction.commands.iter_mut().for_each(|command| command.grant(rights));
            }
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Put { .. }
            | Command::PutMany { .. }
            | Command::Delete { .. }
            | Command::Exists { .. }
            | Command::KeyCount
            | Command::Status
            | Command::Failover
            | Command::RemoveSlave { .. }
            | Command::ChangeMembers { .. }
            | Command::ValueLength { .. }
            | Command::Update { .. }
            | Command::Swap { .. }
            | Command::Take { .. }
            | Command::PutManyIfNone { .. }
            | Command::TimeToLive { .. }
            | Command::Renew { .. }
            | Command::Examine { .. }
            | Command::Compare { .. }
            | Command::GetVersioned { .. }
            | Command::Scan { .. }
            | Command::Keys { .. }
            | Command::RandomKey
            | Command::DeleteAll
            | Command::Watch { .. }
            | Command::ScriptCache { .. }
            | Command::Transfer { .. }
            | Command::Time => {}
        }
    }

    /// Why what it says of scripts is not done; `None` if it is.
    pub fn script_excess(&self) -> Option<String> {
        if let Command::Evaluate { call } = self {
            call.excess()
        } else if let Command::ScriptCache { request } = self {
            request.excess()
        } else {
            None
        }
    }

    /// Whether it executes scripts.
    pub(crate) fn has_scripts(&self) -> bool {
        if let Command::Transact { transaction } = self {
            return transaction.commands.iter().any(Command::has_scripts);
        }
        matches!(self, Command::Evaluate { .. })
    }
}

/// What is asked about the scripts that are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScriptRequest {
    /// To know this text. Answer: `Value`, its digest.
    Load(Bytes),
    /// Whether those with these digests are known. Answer: `Encoded`, 1 or 0 for each.
    Known(#[serde(deserialize_with = "super::at_most_keys_max")] Vec<Bytes>),
    /// To forget all. Answer: `Done`.
    Forget,
}

impl ScriptRequest {
    /// Bytes that it brings, as the limits on requests in flight count them.
    pub(crate) fn payload_bytes(&self) -> usize {
        match self {
            ScriptRequest::Load(text) => text.len(),
            ScriptRequest::Known(digests) => digests.iter().map(|digest| digest.len() + ARGUMENT_BYTES).sum(),
            ScriptRequest::Forget => 0,
        }
    }

    /// Why it is not done; `None` if it is.
    fn excess(&self) -> Option<String> {
        match self {
            ScriptRequest::Load(text) if text.len() > SCRIPT_BYTES_MAX => {
                Some(format!("a script has at most {SCRIPT_BYTES_MAX} bytes"))
            }
            ScriptRequest::Load(_) | ScriptRequest::Known(_) | ScriptRequest::Forget => None,
        }
    }

    pub(super) fn asked_as(&self) -> &'static [&'static str] {
        match self {
            ScriptRequest::Load(_) => &["script|load"],
            ScriptRequest::Known(_) => &["script|exists"],
            ScriptRequest::Forget => &["script|flush"],
        }
    }
}
