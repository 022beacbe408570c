//! One user: whether it is on, its passwords, and its permissions.

use super::permissions::{Denied, JudgedSoFar, Permissions, RuleError};
use crate::command::{find_by_full_name, Judgement, ScriptJudge, Spec};
use bytes::Bytes;
use ring::digest::{digest, SHA256};
use std::fmt;
use subtle::{Choice, ConstantTimeEq as _};

/// The most passwords of one user, and the most further sets of permissions.
const PASSWORDS_MAX: usize = 64;
const SELECTORS_MAX: usize = 64;

/// The SHA-256 of a password. Passwords themselves are not kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PasswordHash([u8; 32]);

impl PasswordHash {
    /// Of a password.
    pub fn of(password: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, password).as_ref());
        PasswordHash(hash)
    }

    /// Of its 64 digits in lower case.
    fn from_hex(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        let digits = text.as_bytes();
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(PasswordHash(hash))
    }

    /// As 64 digits.
    fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash")
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    is_on: bool,
    is_without_password: bool,
    passwords: Vec<PasswordHash>,
    permissions: Permissions,
    /// Further sets, of which each alone may allow a request.
    selectors: Vec<Permissions>,
}

impl User {
    /// A user who may do nothing, and who is off.
    pub(super) fn nobody(name: &str) -> Self {
        User {
            name: name.to_owned(),
            is_on: false,
            is_without_password: false,
            passwords: Vec::new(),
            permissions: Permissions::default(),
            selectors: Vec::new(),
        }
    }

    /// A user who may do everything without a password.
    pub(super) fn anybody(name: &str) -> Self {
        User { is_on: true, is_without_password: true, permissions: Permissions::all(), ..User::nobody(name) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it can be used.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether it can be used, and without a password.
    pub(super) fn is_open(&self) -> bool {
        self.is_on && self.is_without_password
    }

    /// Takes in one rule.
    ///
    /// # Errors
    /// That it is none; then nothing has changed.
    pub(super) fn apply(&mut self, rule: &str) -> Result<(), RuleError> {
        let is = |word: &str| rule.eq_ignore_ascii_case(word);
        let mut letters = rule.chars();
        match letters.next() {
            _ if is("on") => self.is_on = true,
            _ if is("off") => self.is_on = false,
            _ if is("nopass") => (self.is_without_password, self.passwords) = (true, Vec::new()),
            _ if is("resetpass") => (self.is_without_password, self.passwords) = (false, Vec::new()),
            _ if is("reset") => *self = User::nobody(&self.name),
            _ if is("clearselectors") => self.selectors.clear(),
            // About the payload of RESTORE, which there is not.
            _ if is("sanitize-payload") || is("skip-sanitize-payload") => {}
            Some('>') => self.add_password(PasswordHash::of(letters.as_str().as_bytes()))?,
            Some('#') => {
                self.add_password(PasswordHash::from_hex(letters.as_str()).ok_or(RuleError::Hash)?)?
            }
            Some('<') => self.remove_password(PasswordHash::of(letters.as_str().as_bytes()))?,
            Some('!') => {
                self.remove_password(PasswordHash::from_hex(letters.as_str()).ok_or(RuleError::Hash)?)?;
            }
            Some('(') => {
                let rules = letters.as_str().strip_suffix(')').ok_or(RuleError::Unmatched)?;
                if self.selectors.len() >= SELECTORS_MAX {
                    return Err(RuleError::TooMany);
                }
                let mut selector = Permissions::default();
                rules.split_ascii_whitespace().try_for_each(|rule| selector.apply(rule))?;
                self.selectors.push(selector);
            }
            _ => self.permissions.apply(rule)?,
        }
        Ok(())
    }

    fn add_password(&mut self, password: PasswordHash) -> Result<(), RuleError> {
        self.is_without_password = false;
        if self.passwords.contains(&password) {
            return Ok(());
        }
        if self.passwords.len() >= PASSWORDS_MAX {
            return Err(RuleError::TooMany);
        }
        self.passwords.push(password);
        Ok(())
    }

    /// Lets only this password count.
    pub(super) fn set_password(&mut self, password: PasswordHash) {
        (self.is_without_password, self.passwords) = (false, vec![password]);
    }

    fn remove_password(&mut self, password: PasswordHash) -> Result<(), RuleError> {
        let before = self.passwords.len();
        self.passwords.retain(|known| *known != password);
        if self.passwords.len() == before {
            return Err(RuleError::NoSuchPassword);
        }
        Ok(())
    }

    /// Whether that is one of its passwords. How long it takes tells nothing of them.
    pub(super) fn has_password(&self, password: PasswordHash) -> bool {
        let found =
            self.passwords.iter().fold(Choice::from(0), |found, known| found | known.0.ct_eq(&password.0));
        self.is_on && (self.is_without_password || bool::from(found))
    }

    /// Whether it may make a request, of which `words` are all, the name included.
    ///
    /// # Errors
    /// What it may not.
    pub(crate) fn check(&self, spec: &'static Spec, words: &[Bytes]) -> Result<(), Denied> {
        let mut judging = Judging::default();
        loop {
            if let Some(judged) = self.check_on(spec, words, &mut judging, usize::MAX) {
                return judged;
            }
        }
    }

    /// Goes on to judge a request, in as many steps; `None` if it takes more: requests have many keys, and users many patterns.
    pub(crate) fn check_on(
        &self,
        spec: &'static Spec,
        words: &[Bytes],
        judging: &mut Judging,
        steps: usize,
    ) -> Option<Result<(), Denied>> {
        let mut steps = steps;
        loop {
            let set = match judging.set {
                0 => &self.permissions,
                further => match self.selectors.get(further - 1) {
                    Some(selector) => selector,
                    None => break,
                },
            };
            match set.check_on(spec, words, &mut judging.so_far, &mut steps)? {
                Ok(()) => return Some(Ok(())),
                // Of several sets, the one that comes nearest says what is missing.
                Err(nearer @ Denied::Key(_)) => judging.denied = Some(nearer),
                Err(command @ Denied::Command(_)) => {
                    judging.denied.get_or_insert(command);
                }
            }
            (judging.set, judging.so_far) = (judging.set + 1, JudgedSoFar::default());
        }
        // By these anybody says who he is, or leaves.
        if spec.flags.contains(&"no_auth") {
            return Some(Ok(()));
        }
        Some(judging.denied.take().map_or(Ok(()), Err))
    }

    /// As a line of the file, without `user` and its name.
    pub(crate) fn to_rules(&self) -> String {
        let mut words = self.flags().into_iter().map(str::to_owned).collect::<Vec<_>>();
        words.extend(self.passwords().map(|hash| format!("#{hash}")));
        words.push(self.permissions.to_rules());
        words.extend(self.selectors.iter().map(|selector| format!("({})", selector.to_rules())));
        words.join(" ")
    }

    /// `on` or `off`, and `nopass`.
    pub(crate) fn flags(&self) -> Vec<&'static str> {
        let mut flags = vec![if self.is_on { "on" } else { "off" }];
        flags.extend(self.is_without_password.then_some("nopass"));
        flags
    }

    /// The hashes of its passwords, each as 64 digits.
    pub(crate) fn passwords(&self) -> impl Iterator<Item = String> + '_ {
        self.passwords.iter().map(|hash| hash.to_hex())
    }

    /// Its commands, keys and channels, each as rules; and the same of each further set.
    pub(crate) fn permissions(&self) -> [String; 3] {
        told(&self.permissions)
    }

    pub(crate) fn selectors(&self) -> impl Iterator<Item = [String; 3]> + '_ {
        self.selectors.iter().map(told)
    }
}

impl ScriptJudge for User {
    fn judge(&self, name: &'static str, words: &[Bytes], steps: usize) -> Judgement {
        let Some(spec) = find_by_full_name(name.as_bytes()) else { return Judgement::NotTheCommand };
        match self.check_on(spec, words, &mut Judging::default(), steps) {
            None => Judgement::TakesLonger,
            Some(Ok(())) => Judgement::Allowed,
            Some(Err(Denied::Command(_))) => Judgement::NotTheCommand,
            Some(Err(Denied::Key(_))) => Judgement::NotTheKeys,
        }
    }
}

/// How far a request is judged: by that many sets of permissions, and in part by the next one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judging {
    set: usize,
    so_far: JudgedSoFar,
    denied: Option<Denied>,
}

fn told(permissions: &Permissions) -> [String; 3] {
    [permissions.command_rules(), permissions.key_rules(), permissions.channel_rules()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::find_command;

    fn user(rules: &str) -> User {
        let mut user = User::nobody("alice");
        super::super::users::split_rules(rules)
            .unwrap()
            .iter()
            .for_each(|rule| user.apply(rule).unwrap_or_else(|error| panic!("{rule}: {error}")));
        user
    }

    fn may(user: &User, words: &str) -> Result<(), Denied> {
        let words: Vec<Bytes> =
            words.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        user.check(find_command(&words[0]).expect("a command"), &words)
    }

    #[test]
    fn a_password_is_known_by_its_hash_and_taken_away_by_either() {
        // `echo -n secret | sha256sum`
        let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        for rules in [">secret".to_owned(), format!("#{hash}")] {
            let mut alice = user(&format!("on {rules}"));
            assert!(alice.has_password(PasswordHash::of(b"secret")));
            assert!(
                !alice.has_password(PasswordHash::of(b"secre")) && !alice.has_password(PasswordHash::of(b""))
            );
            assert_eq!(alice.passwords().collect::<Vec<_>>(), [hash]);
            alice.apply("off").unwrap();
            assert!(!alice.has_password(PasswordHash::of(b"secret")), "it is off");
            alice.apply(&format!("!{hash}")).unwrap();
            assert_eq!(alice.apply("<secret"), Err(RuleError::NoSuchPassword));
            assert!(
                !user("on").has_password(PasswordHash::of(b"")),
                "it has none, which is not the empty one"
            );
        }
        assert_eq!(User::nobody("a").apply("#ABC"), Err(RuleError::Hash));
        assert_eq!(User::nobody("a").apply(&format!("#{}", hash.to_uppercase())), Err(RuleError::Hash));
        assert!(user("on nopass").has_password(PasswordHash::of(b"anything")));
        assert!(!user("on nopass >secret").has_password(PasswordHash::of(b"anything")));
        assert!(!user("on nopass resetpass").has_password(PasswordHash::of(b"")));
    }

    #[test]
    fn each_set_of_permissions_may_allow_a_request_alone() {
        let alice = user("on nopass ~a +get (~b +set) (%R~c +@read)");
        for allowed in ["GET a", "SET b 1", "MGET c"] {
            assert_eq!(may(&alice, allowed), Ok(()), "{allowed}");
        }
        assert_eq!(may(&alice, "GET b"), Err(Denied::Key("b".into())), "no set has both");
        assert_eq!(may(&alice, "MGET a c"), Err(Denied::Key("a".into())));
        assert_eq!(may(&alice, "DEL a"), Err(Denied::Command("del")));
        assert_eq!(
            may(&user("on clearselectors (~* +@all) clearselectors"), "GET a"),
            Err(Denied::Command("get"))
        );
        assert_eq!(User::nobody("a").apply("(+get"), Err(RuleError::Unmatched));
        assert_eq!(User::nobody("a").apply("(+nosuch)"), Err(RuleError::UnknownName));
    }

    #[test]
    fn a_user_is_told_as_rules_that_make_it_again_and_never_with_its_password() {
        for rules in [
            "",
            "on nopass ~* &* +@all",
            "on >one >two %R~x ~y +@read -get",
            "off (~a +set) ~b (&c +@all -ping)",
        ] {
            let alice = user(rules);
            assert_eq!(user(&alice.to_rules()), alice, "{rules}");
        }
        let alice = user("on >open-sesame ~a +get");
        let shown = format!("{alice:?} {}", alice.to_rules());
        assert!(!shown.contains("open-sesame"), "{shown}");
        assert!(!format!("{alice:?}").contains(&alice.passwords().next().unwrap()));
        assert_eq!(user("on >a ~* +@all (+get) reset"), user(""));
    }
}
