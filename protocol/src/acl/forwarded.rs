//! Whether a request may be executed that another master has forwarded: its user is judged here once more, as he may have lost
//! his rights, or this master's file may give him none.
//!
//! The other master has judged the words of the request. What it forwards is a command, which may have several names (`DEL` and
//! `UNLINK`): here it is enough that its user may use one of them.

use super::accounts::Accounts;
use super::permissions::Denied;
use super::user::{Judging, User};
use crate::command::{find_by_full_name, Command, ErrorWord, Operands, Reply, Spec};
use crate::message::StreamUser;
use bytes::Bytes;
use std::sync::Arc;

/// A forwarded request that is being judged.
#[derive(Debug)]
pub struct ForwardedRequest {
    user: Arc<User>,
    names: Vec<&'static Spec>,
    /// As a client would say it, but for its name.
    words: Vec<Bytes>,
    judging: Judging,
    denied: Option<Denied>,
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
        let names = command.asked_as();
        let names = names.iter().filter_map(|name| find_by_full_name(name.as_bytes())).collect();
        Ok(Some(ForwardedRequest {
            user,
            names,
            words: words_of(command),
            judging: Judging::default(),
            denied: None,
        }))
    }

    /// Who asks.
    pub fn user(&self) -> &str {
        self.user.name()
    }

    /// Goes on, in as many steps; `None` if it takes more.
    pub fn go_on(&mut self, steps: usize) -> Option<Result<(), ForwardRefused>> {
        while let Some(spec) = self.names.last() {
            match self.user.check_on(spec, &self.words, &mut self.judging, steps)? {
                Ok(()) => return Some(Ok(())),
                Err(denied) => {
                    // What comes nearest is told; of several commands, the first name.
                    if !matches!(self.denied, Some(Denied::Key(_))) {
                        self.denied = Some(denied);
                    }
                    self.judging = Judging::default();
                    self.names.pop();
                }
            }
        }
        Some(Err(ForwardRefused { denied: self.denied.take() }))
    }
}

fn words_of(command: &Command) -> Vec<Bytes> {
    let mut words = vec![Bytes::new()];
    match command.operands() {
        Operands::None => {}
        Operands::Key(key) => words.push(key.clone()),
        Operands::KeyAndValue(key, value) => {
            words.extend([key.clone(), value.clone()]);
            // A `SET` that reads.
            words.extend(matches!(command, Command::Swap { .. }).then(|| Bytes::from_static(b"GET")));
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
        let no_auth = Err("NOAUTH Authentication required.".to_owned());
        for stranger in [named("gone"), named("nobody"), StreamUser::Anonymous] {
            assert_eq!(judged(&accounts, &stranger, &set("app:1")), no_auth, "{stranger:?}");
        }
        assert_eq!(judged(&accounts, &StreamUser::Program, &Command::Failover), Ok(()));
        let open = Accounts::default();
        assert_eq!(judged(&open, &named("nobody"), &Command::Failover), Ok(()), "here everybody may");
    }
}
