//! Whether a request may be executed that another master has forwarded: its user is judged here once more, as he may have lost
//! his rights, or this master's file may give him none.
//!
//! The other master has judged the words of the request. What it forwards is a command, which may have several names (`DEL` and
//! `UNLINK`): here it is enough that its user may use one of them.

use super::accounts::Accounts;
use super::permissions::Denied;
use super::user::{Judging, User};
use crate::command::{
    find_by_full_name, Command, ErrorWord, Operands, Reply, ScriptJudge, ScriptRights, Spec,
};
use crate::message::StreamUser;
use bytes::Bytes;
use std::sync::Arc;

/// How many steps the judgement of one command counts as, of those that a turn has.
const PART_STEPS: usize = 1000;

/// A forwarded request that is being judged.
#[derive(Debug)]
pub struct ForwardedRequest {
    user: Arc<User>,
    /// What is still to be judged: of a transaction, each of its commands.
    parts: Vec<ForwardedPart>,
    judging: Judging,
    denied: Option<Denied>,
}

#[derive(Debug)]
struct ForwardedPart {
    names: Vec<&'static Spec>,
    /// As a client would say it, but for its name.
    words: Vec<Bytes>,
}

impl ForwardedPart {
    fn of(names: &[&str], words: Vec<Bytes>) -> Self {
        let names = names.iter().filter_map(|name| find_by_full_name(name.as_bytes())).collect();
        ForwardedPart { names, words }
    }
}

/// Why a forwarded request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRefused {
    /// Its user may not do that; `None` if there is no such user.
    pub denied: Option<Denied>,
}

impl ForwardRefused {
    /// The answer.
    pub fn reply(&self) -> Reply {
        match &self.denied {
            None => Reply::error(ErrorWord::NoAuth, "Authentication required."),
            Some(Denied::Command(name)) => {
                let why = format!("this user has no permissions to run the '{name}' command");
                Reply::error(ErrorWord::NoPermission, why)
            }
            Some(Denied::Key(_)) => Reply::error(
                ErrorWord::NoPermission,
                "this user has no permissions to access one of the keys used as arguments",
            ),
        }
    }
}

impl ForwardedRequest {
    /// Begins to judge a request of that user; `None` if he may do everything.
    ///
    /// # Errors
    /// There is no such user here, or he must say a password first.
    pub fn begin(
        accounts: &Accounts,
        user: &StreamUser,
        command: &Command,
    ) -> Result<Option<Self>, ForwardRefused> {
        if !accounts.is_guarded() {
            return Ok(None);
        }
        let users = accounts.users();
        let found = match user {
            StreamUser::Program => return Ok(None),
            StreamUser::Anonymous => users.anonymous(),
            StreamUser::Named(name) => users.get(name).filter(|user| user.is_on()),
        };
        let user = Arc::clone(found.ok_or(ForwardRefused { denied: None })?);
        Ok(Some(ForwardedRequest {
            user,
            parts: parts_of(command),
            judging: Judging::default(),
            denied: None,
        }))
    }

    /// By what the commands of its scripts are judged.
    pub fn rights(&self) -> ScriptRights {
        ScriptRights::of(Arc::clone(&self.user) as Arc<dyn ScriptJudge>)
    }

    /// Who asks.
    pub fn user(&self) -> &str {
        self.user.name()
    }

    /// Goes on, in as many steps; `None` if it takes more.
    pub fn go_on(&mut self, steps: usize) -> Option<Result<(), ForwardRefused>> {
        let mut left = steps;
        while let Some(part) = self.parts.last_mut() {
            let Some(spec) = part.names.last() else {
                return Some(Err(ForwardRefused { denied: self.denied.take() }));
            };
            if left == 0 {
                return None;
            }
            match self.user.check_on(spec, &part.words, &mut self.judging, left)? {
                Ok(()) => {
                    self.parts.pop();
                    self.denied = None;
                }
                Err(denied) => {
                    // What comes nearest is told; of several commands, the first name.
                    if !matches!(self.denied, Some(Denied::Key(_))) {
                        self.denied = Some(denied);
                    }
                    part.names.pop();
                }
            }
            self.judging = Judging::default();
            left = left.saturating_sub(PART_STEPS);
        }
        Some(Ok(()))
    }
}

/// What is to be judged of a command, the last one first.
fn parts_of(command: &Command) -> Vec<ForwardedPart> {
    if matches!(command, Command::Watch { .. }) {
        return vec![ForwardedPart::of(&["watch"], words_of(command))];
    }
    let Command::Transact { transaction } = command else {
        return vec![ForwardedPart::of(command.asked_as(), words_of(command))];
    };
    let mut parts: Vec<_> = transaction.commands.iter().flat_map(parts_of).collect();
    parts.reverse();
    if !transaction.watched.is_empty() {
        let mut words = vec![Bytes::new()];
        words.extend(transaction.watched.iter().map(|(key, _)| key.clone()));
        parts.push(ForwardedPart::of(&["watch"], words));
    }
    parts.push(ForwardedPart::of(&["exec"], vec![Bytes::new()]));
    parts
}

fn words_of(command: &Command) -> Vec<Bytes> {
    // Without the name; and without that of a subcommand.
    let is_sub = command.asked_as().iter().any(|name| name.contains('|'));
    let mut words = vec![Bytes::new(); 1 + usize::from(is_sub)];
    match command.operands() {
        // Its commands are judged one by one.
        Operands::None | Operands::Words(_) | Operands::All(_) => {}
        // What it calls is judged when it does.
        Operands::Script(call) => {
            words.extend([Bytes::new(), Bytes::from(call.keys.len().to_string())]);
            words.extend(call.keys.iter().cloned());
        }
        Operands::Key(key) => words.push(key.clone()),
        Operands::KeyAndValue(key, value) => {
            words.extend([key.clone(), value.clone()]);
            // A `SET` that reads.
            words.extend(matches!(command, Command::Swap { .. }).then(|| Bytes::from_static(b"GET")));
        }
        Operands::Compared(key, change) => {
            words.push(key.clone());
            words.extend(change.value().cloned());
            // It reads.
            words.push(Bytes::from_static(b"IFEQ"));
        }
        Operands::Keys(keys) => words.extend(keys.iter().cloned()),
        Operands::Pairs(pairs) => {
            words.extend(pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()]));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::Users;
    use crate::command::{Judgement, KeyTrait, ScriptCall, ScriptName};
    use crate::ids::Millis;

    fn named(name: &str) -> StreamUser {
        StreamUser::Named(name.to_owned())
    }

    fn judged(accounts: &Accounts, user: &StreamUser, command: &Command) -> Result<(), String> {
        let told = |refused: ForwardRefused| {
            let Reply::Error(error) = refused.reply() else { panic!("{refused:?}") };
            error.to_string()
        };
        let Some(mut request) = ForwardedRequest::begin(accounts, user, command).map_err(told)? else {
            return Ok(());
        };
        loop {
            if let Some(judged) = request.go_on(1) {
                return judged.map_err(told);
            }
        }
    }

    fn set(key: &'static str) -> Command {
        Command::Put { key: key.into(), value: "v".into() }
    }

    #[test]
    fn a_forwarded_request_is_judged_by_the_rules_of_its_user_here() {
        let users = "user app on >pw ~app:* +@read +set\nuser gone off\nuser tidy on >pw ~* +unlink\nuser default on >pw";
        let accounts = Accounts::new(Users::parse(users).unwrap(), || Millis(0));
        let app = named("app");
        assert_eq!(judged(&accounts, &app, &set("app:1")), Ok(()));
        assert_eq!(judged(&accounts, &app, &Command::Get { key: "app:1".into() }), Ok(()));
        let no_key =
            Err("NOPERM this user has no permissions to access one of the keys used as arguments".to_owned());
        assert_eq!(judged(&accounts, &app, &set("other")), no_key);
        let keys = vec!["app:1".into(), "other".into()];
        assert_eq!(judged(&accounts, &app, &Command::GetMany { keys: keys.clone() }), no_key);
        let pairs = vec![("app:1".into(), "other".into())];
        let no_mset = Err("NOPERM this user has no permissions to run the 'mset' command".to_owned());
        assert_eq!(judged(&accounts, &app, &Command::PutMany { pairs }), no_mset);
        let delete = Command::Delete { keys };
        assert_eq!(
            judged(&accounts, &app, &delete),
            Err("NOPERM this user has no permissions to run the 'del' command".to_owned())
        );
        assert_eq!(judged(&accounts, &named("tidy"), &delete), Ok(()), "it may be an UNLINK");
        let both = |watched: &'static str, written: &'static str| Command::Transact {
            transaction: Box::new(crate::command::Transaction {
                watched: vec![(watched.into(), None)],
                commands: vec![Command::Get { key: "app:1".into() }, set(written)],
            }),
        };
        let no_exec = Err("NOPERM this user has no permissions to run the 'exec' command".to_owned());
        assert_eq!(judged(&accounts, &app, &both("app:1", "app:2")), no_exec);
        let able = "user app on >pw ~app:* +@read +set +@transaction";
        let able = Accounts::new(Users::parse(able).unwrap(), || Millis(0));
        assert_eq!(judged(&able, &app, &both("app:1", "app:2")), Ok(()));
        assert_eq!(judged(&able, &app, &both("app:1", "other")), no_key, "each of its commands");
        assert_eq!(judged(&able, &app, &both("other", "app:2")), no_key, "and what it watches");
        assert_eq!(judged(&able, &app, &Command::Watch { keys: vec!["other".into()] }), no_key);
        let script = |key: &'static str| Command::Evaluate {
            call: Box::new(ScriptCall {
                script: ScriptName::Digest("ffff".into()),
                keys: vec!["app:1".into(), key.into()],
                args: vec!["other".into()],
                is_read_only: false,
                rights: ScriptRights::default(),
            }),
        };
        let no_eval = Err("NOPERM this user has no permissions to run the 'evalsha' command".to_owned());
        assert_eq!(judged(&able, &app, &script("app:2")), no_eval);
        let scripting = "user app on >pw ~app:* %R~see:* +@read +set +@scripting";
        let scripting = Accounts::new(Users::parse(scripting).unwrap(), || Millis(0));
        assert_eq!(judged(&scripting, &app, &script("app:2")), Ok(()), "arguments are no keys");
        assert_eq!(judged(&scripting, &app, &script("other")), no_key);
        assert_eq!(judged(&scripting, &app, &script("see:1")), no_key, "who knows what is done to them");
        let Ok(Some(request)) = ForwardedRequest::begin(&scripting, &app, &script("app:2")) else {
            panic!("it is judged")
        };
        let rights = request.rights();
        let judge = |name, words: &[&'static str]| {
            let words: Vec<Bytes> = words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
            rights.judge(name, &words, 1000)
        };
        assert_eq!(judge("set", &["set", "app:1", "v"]), Judgement::Allowed);
        assert_eq!(judge("get", &["get", "see:1"]), Judgement::Allowed);
        assert_eq!(judge("set", &["set", "see:1", "v"]), Judgement::NotTheKeys);
        assert_eq!(judge("del", &["del", "app:1"]), Judgement::NotTheCommand);
        assert_eq!(rights.judge("mget", &vec![Bytes::from_static(b"see:1"); 9], 3), Judgement::TakesLonger);
        let no_auth = Err("NOAUTH Authentication required.".to_owned());
        for stranger in [named("gone"), named("nobody"), StreamUser::Anonymous] {
            assert_eq!(judged(&accounts, &stranger, &set("app:1")), no_auth, "{stranger:?}");
        }
        assert_eq!(judged(&accounts, &StreamUser::Program, &Command::Failover), Ok(()));
        let open = Accounts::default();
        assert_eq!(judged(&open, &named("nobody"), &Command::Failover), Ok(()), "here everybody may");
    }

    #[test]
    fn whoever_may_look_at_a_key_may_not_read_it_and_its_key_stands_after_the_subcommand() {
        let looks = "user app on >pw ~app:* +object";
        let accounts = Accounts::new(Users::parse(looks).unwrap(), || Millis(0));
        let app = named("app");
        let examine = |key: &'static str| Command::Examine { key: key.into(), what: KeyTrait::Encoding };
        assert_eq!(judged(&accounts, &app, &examine("app:1")), Ok(()));
        let no_key =
            Err("NOPERM this user has no permissions to access one of the keys used as arguments".to_owned());
        assert_eq!(judged(&accounts, &app, &examine("other")), no_key);
        let no_get = Err("NOPERM this user has no permissions to run the 'get' command".to_owned());
        assert_eq!(judged(&accounts, &app, &Command::Get { key: "app:1".into() }), no_get);
    }
}
