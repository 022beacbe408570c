//! All users, and the file that names them.

use super::permissions::RuleError;
use super::user::{PasswordHash, User};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

/// The user of a connection that has not said who it is.
pub const DEFAULT_USER: &str = "default";

/// The longest file, in bytes.
pub const USERS_FILE_BYTES_MAX: usize = 4 << 20;

/// The most users.
const USERS_MAX: usize = 10_000;

/// A line of a file of users that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFault {
    /// Its number; the first line has 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// See the module. The user `default` is always among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    by_name: BTreeMap<String, Arc<User>>,
}

impl Default for Users {
    /// Only the user `default`, who may do everything without a password.
    fn default() -> Self {
        Users::of([User::anybody(DEFAULT_USER)])
    }
}

impl Users {
    fn of(users: impl IntoIterator<Item = User>) -> Self {
        let by_name = users.into_iter().map(|user| (user.name().to_owned(), Arc::new(user))).collect();
        Users { by_name }
    }

    /// Only the user `default`, who may do everything with that password.
    pub fn with_password(password: &[u8]) -> Self {
        Users::default().and_password(password)
    }

    /// The same users, with that password for `default` instead of those that it has.
    #[must_use]
    pub fn and_password(mut self, password: &[u8]) -> Self {
        let found = self.by_name.get(DEFAULT_USER).map(|user| User::clone(user));
        let mut user = found.unwrap_or_else(|| User::anybody(DEFAULT_USER));
        user.set_password(PasswordHash::of(password));
        self.by_name.insert(DEFAULT_USER.to_owned(), Arc::new(user));
        self
    }

    /// Those of a file: `user NAME RULE …`, a user a line; empty lines and such as begin with `#` say nothing. Where `default`
    /// is not among them, it may do everything without a password, as in Redis.
    ///
    /// # Errors
    /// Every line that is wrong.
    pub fn parse(text: &str) -> Result<Self, Vec<FileFault>> {
        let mut users: BTreeMap<String, Arc<User>> = BTreeMap::new();
        let mut faults = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fail = |what: String| faults.push(FileFault { line: at + 1, what });
            let user = match parse_user(line) {
                Ok(user) => user,
                Err(what) => {
                    fail(what);
                    continue;
                }
            };
            if users.len() >= USERS_MAX {
                fail(format!("there may be {USERS_MAX} users"));
                break;
            }
            if users.insert(user.name().to_owned(), Arc::new(user)).is_some() {
                fail("this user is there already".to_owned());
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        users.entry(DEFAULT_USER.to_owned()).or_insert_with(|| Arc::new(User::anybody(DEFAULT_USER)));
        Ok(Users { by_name: users })
    }

    /// The user with that name.
    pub fn get(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<User>> {
        self.by_name.values()
    }

    /// Those whose names come after this one; all without one.
    pub(crate) fn after(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<User>> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_name.range::<str, _>((from, Bound::Unbounded)).map(|(_, user)| user)
    }

    /// Who a connection is that has not said it: `default`, if that needs no password.
    pub fn anonymous(&self) -> Option<&Arc<User>> {
        self.get(DEFAULT_USER).filter(|user| user.is_open())
    }

    /// Whether somebody must say who he is, or may not do everything.
    pub fn is_guarded(&self) -> bool {
        *self != Users::default()
    }

    /// Who that is, if the password is right. It takes as long where there is no such user.
    pub fn authenticate(&self, name: &[u8], password: &[u8]) -> Option<&Arc<User>> {
        let password = PasswordHash::of(password);
        let found = std::str::from_utf8(name).ok().and_then(|name| self.get(name));
        found.filter(|user| user.has_password(password))
    }
}

fn parse_user(line: &str) -> Result<User, String> {
    let words = split_rules(line).map_err(|error| error.to_string())?;
    let mut words = words.iter();
    let (Some(&"user"), Some(name)) = (words.next(), words.next()) else {
        return Err("a line begins with `user` and a name".to_owned());
    };
    let mut user = User::nobody(name);
    for (at, rule) in words.enumerate() {
        user.apply(rule).map_err(|error| match shown(rule) {
            Some(rule) => format!("{rule}: {error}"),
            None => format!("rule {}: {error}", at + 1),
        })?;
    }
    Ok(user)
}

/// A rule as it may be told: only the name of a command or category, as any other word may be a password.
fn shown(rule: &str) -> Option<&str> {
    let name = rule.strip_prefix(['+', '-'])?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphabetic() || b"@|-".contains(&byte));
    (is_name && name.len() <= 32).then_some(rule)
}

/// The words of a line; those in brackets are one word, which ends with a word's end.
pub(super) fn split_rules(line: &str) -> Result<Vec<&str>, RuleError> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let end = if rest.starts_with('(') {
            let ends_word = |end: usize| rest[end..].chars().next().is_none_or(char::is_whitespace);
            let mut ends = rest.match_indices(')').map(|(at, _)| at + 1);
            ends.find(|end| ends_word(*end)).ok_or(RuleError::Unmatched)?
        } else {
            rest.find(char::is_whitespace).unwrap_or(rest.len())
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_users_and_default_is_open_where_it_is_not_named() {
        let text = "# who may do what\n\nuser alice on >pw ~app:* +@read\n  user bob off nopass (~a +get) (~b +set)  \n";
        let users = Users::parse(text).unwrap();
        let names: Vec<_> = users.iter().map(|user| user.name()).collect();
        assert_eq!(names, ["alice", "bob", "default"]);
        assert!(users.is_guarded());
        assert_eq!(users.anonymous().map(|user| user.name()), Some("default"));
        assert!(users.authenticate(b"alice", b"pw").is_some());
        for (name, password) in
            [(&b"alice"[..], &b"no"[..]), (b"bob", b""), (b"eve", b"pw"), (b"\xff", b"pw")]
        {
            assert!(users.authenticate(name, password).is_none());
        }
        let closed = Users::parse("user default off").unwrap();
        assert!(closed.anonymous().is_none() && closed.is_guarded());
        assert!(!Users::parse("").unwrap().is_guarded());
    }

    #[test]
    fn every_wrong_line_is_named_and_no_password_is() {
        let text =
            "user a +nosuch\nfoo b\nuser\nuser c on\nuser c off\nuser d (+get\nuser e #12\nuser f <pass";
        let faults = Users::parse(text).unwrap_err();
        let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [1, 2, 3, 5, 6, 7, 8]);
        let told = faults.iter().map(FileFault::to_string).collect::<Vec<_>>().join("\n");
        assert!(told.contains("line 1: +nosuch: Unknown command or category name in ACL"), "{told}");
        assert!(!told.contains("<pass"), "{told}");
        for rules in [
            ">open s3cret",
            "(+get >s3cret)",
            "s3cret",
            "nopass>s3cret",
            "+get>s3cret",
            "#s3cret",
            "%s3cret",
            "+s3cret",
        ] {
            let faults = Users::parse(&format!("user a on {rules}")).unwrap_err();
            assert!(!faults[0].what.contains("s3cret"), "{}", faults[0]);
            assert!(faults[0].what.contains("rule "), "{}", faults[0]);
        }
        let user = Users::parse("user a (~b %W~x)) ~c").unwrap().get("a").unwrap().to_rules();
        assert!(user.contains("(~b %W~x) resetchannels"), "{user}");
    }

    #[test]
    fn a_password_alone_closes_the_door_for_those_who_do_not_say_it() {
        let users = Users::with_password(b"pw");
        assert!(users.anonymous().is_none() && users.is_guarded());
        assert!(users.authenticate(b"default", b"pw").is_some());
        assert!(users.authenticate(b"default", b"").is_none());
        let both = Users::parse("user default on nopass ~a +get").unwrap().and_password(b"pw");
        assert!(both.anonymous().is_none());
        assert!(both.get("default").unwrap().to_rules().ends_with("~a resetchannels -@all +get"));
    }
}
