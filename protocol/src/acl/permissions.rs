//! Commands and keys that a user may use, and the rules that give them.

use crate::command::{find_by_full_name, Spec, COMMANDS, KEYS_MAX};
use crate::glob;
use crate::integer::parse_integer;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use thiserror::Error;

/// The categories of Redis 7, so that its files can be read; some have no command here.
pub(crate) const CATEGORIES: [&str; 21] = [
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

/// The longest pattern; and the longest that is more than the beginning of a key, because the work for those is their length times
/// that of the key. In bytes.
const PATTERN_BYTES_MAX: usize = 1024;
const WILD_PATTERN_BYTES_MAX: usize = 64;

/// The most rules about commands that are kept of one set of permissions: those that a later one supersedes are not.
const RULES_MAX: usize = 1024;

/// Why a rule is not one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// It names a command or a category that there is not.
    #[error("Unknown command or category name in ACL")]
    UnknownName,
    /// It has no meaning.
    #[error("Syntax error")]
    Syntax,
    /// A pattern after one that is met by everything.
    #[error(
        "Adding a pattern after the * pattern (or the 'allkeys' flag) is not valid and does not have any effect. Try \
         'resetkeys' to start with an empty list of patterns"
    )]
    PatternAfterAll,
    /// A pattern is too long.
    #[error("A pattern has at most {WILD_PATTERN_BYTES_MAX} bytes, or {PATTERN_BYTES_MAX} if its only wildcard is a star at its end")]
    LongPattern,
    /// It is no SHA-256.
    #[error(
        "The password hash must be exactly 64 characters and contain only lowercase hexadecimal characters"
    )]
    Hash,
    /// A password is to be taken away that the user has not.
    #[error("The password you are trying to remove from the user does not exist")]
    NoSuchPassword,
    /// A set of permissions in brackets has no end.
    #[error("Unmatched parenthesis in acl selector")]
    Unmatched,
    /// There are too many.
    #[error("Too many rules")]
    TooMany,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its user may not use this command.
    Command(&'static str),
    /// Its user may not use this key so.
    Key(Bytes),
}

/// What may be done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Touch {
    read: bool,
    write: bool,
}

/// Keys by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyPattern {
    pattern: Bytes,
    may: Touch,
}

impl KeyPattern {
    /// Whether it lets a key be used so. What that costs is taken off `steps`.
    fn covers(&self, key: &[u8], needs: Touch, steps: &mut usize) -> bool {
        let mut taken = 1;
        let may = (self.may.read || !needs.read) && (self.may.write || !needs.write);
        // As in Redis, where no star covers an empty key.
        let covers = may
            && match glob::plain_prefix(&self.pattern).filter(|_| !key.is_empty()) {
                None if key.is_empty() => self.pattern.is_empty(),
                Some((prefix, true)) => key.starts_with(prefix),
                Some((whole, false)) => key == whole,
                None => glob::matches_exactly(&self.pattern, key, &mut taken),
            };
        *steps = steps.saturating_sub(taken);
        covers
    }
}

/// How far a request is judged by one set of permissions: that many keys, and the next one by that many patterns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JudgedSoFar {
    keys: usize,
    patterns: usize,
}

/// A set of commands with the keys that they may be used on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Permissions {
    /// By their full names, as `config|get`.
    commands: BTreeSet<&'static str>,
    /// Whether that is every one, so that none needs to be looked up.
    is_every_command: bool,
    /// First arguments with which a command may be used that is not among them: `+select|0`. Redis has given that up, and its
    /// files still have it.
    first_words: BTreeMap<&'static str, Vec<String>>,
    /// The rules that gave them, as they are told.
    rules: Vec<String>,
    keys: Vec<KeyPattern>,
    is_every_key: bool,
    /// There are no channels here; told as they were given.
    channels: Vec<String>,
    is_every_channel: bool,
}

/// Every command, subcommands among them.
fn every_command() -> impl Iterator<Item = &'static Spec> {
    COMMANDS.iter().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
}

/// The names of the commands of that category.
pub(crate) fn commands_of(category: &str) -> impl Iterator<Item = &'static str> + '_ {
    every_command().filter(move |spec| spec.categories.contains(&category)).map(|spec| spec.name)
}

impl Permissions {
    /// Everything.
    pub(super) fn all() -> Self {
        Permissions {
            commands: every_command().map(|spec| spec.name).collect(),
            is_every_command: true,
            is_every_key: true,
            is_every_channel: true,
            ..Permissions::default()
        }
    }

    /// Takes in one rule.
    ///
    /// # Errors
    /// That it is none; then nothing has changed.
    pub(super) fn apply(&mut self, rule: &str) -> Result<(), RuleError> {
        let is = |word: &str| rule.eq_ignore_ascii_case(word);
        if is("allkeys") || rule == "~*" {
            (self.is_every_key, self.keys) = (true, Vec::new());
        } else if is("resetkeys") {
            (self.is_every_key, self.keys) = (false, Vec::new());
        } else if is("allchannels") || rule == "&*" {
            (self.is_every_channel, self.channels) = (true, Vec::new());
        } else if is("resetchannels") {
            (self.is_every_channel, self.channels) = (false, Vec::new());
        } else if is("allcommands") || is("+@all") {
            self.commands = every_command().map(|spec| spec.name).collect();
            (self.is_every_command, self.rules) = (true, Vec::new());
            self.first_words.clear();
        } else if is("nocommands") || is("-@all") {
            self.commands.clear();
            (self.is_every_command, self.rules) = (false, Vec::new());
            self.first_words.clear();
        } else {
            let Some(sign) = rule.chars().next() else { return Err(RuleError::Syntax) };
            let rest = &rule[sign.len_utf8()..];
            match sign {
                '~' => self.add_keys(rest, Touch { read: true, write: true })?,
                '%' => {
                    let (letters, pattern) = rest.split_once('~').ok_or(RuleError::Syntax)?;
                    self.add_keys(pattern, touch(letters).ok_or(RuleError::Syntax)?)?;
                }
                '&' => self.add_channels(rest)?,
                '+' => self.change_commands('+', rest)?,
                '-' => self.change_commands('-', rest)?,
                _ => return Err(RuleError::Syntax),
            }
        }
        Ok(())
    }

    fn add_keys(&mut self, pattern: &str, may: Touch) -> Result<(), RuleError> {
        if self.is_every_key {
            return Err(RuleError::PatternAfterAll);
        }
        if pattern.contains(|letter: char| letter.is_whitespace() || letter == '\0') {
            return Err(RuleError::Syntax);
        }
        let pattern = Bytes::copy_from_slice(pattern.as_bytes());
        let is_plain = glob::plain_prefix(&pattern).is_some();
        if pattern.len() > if is_plain { PATTERN_BYTES_MAX } else { WILD_PATTERN_BYTES_MAX } {
            return Err(RuleError::LongPattern);
        }
        let is_full = self.keys.len() >= RULES_MAX;
        match self.keys.iter_mut().find(|known| known.pattern == pattern) {
            Some(known) => {
                known.may = Touch { read: known.may.read | may.read, write: known.may.write | may.write };
            }
            None if is_full => return Err(RuleError::TooMany),
            None => self.keys.push(KeyPattern { pattern, may }),
        }
        Ok(())
    }

    fn add_channels(&mut self, pattern: &str) -> Result<(), RuleError> {
        if self.is_every_channel {
            return Err(RuleError::PatternAfterAll);
        }
        if self.channels.len() >= RULES_MAX {
            return Err(RuleError::TooMany);
        }
        if !self.channels.iter().any(|known| known == pattern) {
            self.channels.push(pattern.to_owned());
        }
        Ok(())
    }

    fn change_commands(&mut self, sign: char, name: &str) -> Result<(), RuleError> {
        let name = name.to_ascii_lowercase();
        if let Some((command, word)) = with_first_word(&name).filter(|_| sign == '+') {
            return self.add_first_word(command, word);
        }
        let named: Vec<&'static str> = match name.strip_prefix('@') {
            Some(category) if CATEGORIES.contains(&category) => commands_of(category).collect(),
            Some(_) => return Err(RuleError::UnknownName),
            None => commands_by(&name).ok_or(RuleError::UnknownName)?,
        };
        // What the rule is about is decided by it alone, so an earlier one about the same says nothing any more.
        let is_superseded = |earlier: &str| {
            let earlier = &earlier[1..];
            earlier == name || earlier.strip_prefix(&*name).is_some_and(|rest| rest.starts_with('|'))
        };
        self.rules.retain(|earlier| !is_superseded(earlier));
        if self.rules.len() >= RULES_MAX {
            return Err(RuleError::TooMany);
        }
        self.first_words.retain(|command, _| !named.contains(command));
        if sign == '+' {
            self.commands.extend(named);
        } else {
            self.is_every_command_until_now();
            self.commands.retain(|name| !named.contains(name));
            self.is_every_command = false;
        }
        self.rules.push(format!("{sign}{name}"));
        Ok(())
    }

    fn add_first_word(&mut self, command: &'static str, word: &str) -> Result<(), RuleError> {
        let rule = format!("+{command}|{word}");
        if self.rules.contains(&rule) {
            return Ok(());
        }
        if self.rules.len() >= RULES_MAX {
            return Err(RuleError::TooMany);
        }
        self.first_words.entry(command).or_default().push(word.to_owned());
        self.rules.push(rule);
        Ok(())
    }

    /// Whether a command that may not be used may be with this first argument.
    fn has_first_word(&self, command: &str, words: &[Bytes]) -> bool {
        let (Some(first_words), Some(first)) = (self.first_words.get(command), words.get(1)) else {
            return false;
        };
        first_words.iter().any(|word| first.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Tells `+@all` as a rule, now that another one follows it.
    fn is_every_command_until_now(&mut self) {
        if self.is_every_command && !self.rules.iter().any(|rule| rule == "+@all") {
            self.rules.insert(0, "+@all".to_owned());
        }
    }

    /// Goes on to judge a request, of which `words` are all, the name included, until `steps` are used up; `None` if they are
    /// before it is judged.
    pub(super) fn check_on(
        &self,
        spec: &'static Spec,
        words: &[Bytes],
        at: &mut JudgedSoFar,
        steps: &mut usize,
    ) -> Option<Result<(), Denied>> {
        let is_named = self.is_every_command || self.commands.contains(spec.name);
        if !is_named && !self.has_first_word(spec.name, words) {
            return Some(Err(Denied::Command(spec.name)));
        }
        if self.is_every_key {
            return Some(Ok(()));
        }
        if let Some(flags) = spec.counted_keys {
            let counted = words.get(2).and_then(|count| parse_integer(count)).unwrap_or_default();
            let end = usize::try_from(counted).unwrap_or_default().saturating_add(3).min(words.len());
            let needs = touch_of(flags);
            return self.covers_all(
                words.get(3..end).unwrap_or_default().iter().map(|key| (key, needs)),
                at,
                steps,
            );
        }
        let Some(keys) = spec.keys else { return Some(Ok(())) };
        let needs = Touch {
            // `SET` reads only if it is asked for what is there, or compares that.
            read: spec.reads(&keys, words),
            write: ["update", "insert", "delete"].iter().any(|flag| keys.flags.contains(flag)),
        };
        let first = spec.first_key();
        let last = match usize::try_from(keys.last) {
            Ok(further) => (first + further).min(words.len().saturating_sub(1)),
            Err(_) => words.len().saturating_sub(1),
        };
        let step = usize::try_from(keys.step).unwrap_or(1).max(1);
        let names = words.get(first..=last).unwrap_or_default();
        if names.len() / step > KEYS_MAX {
            // It would be refused for this in any case.
            return Some(Err(Denied::Key(names[0].clone())));
        }
        let second = spec.second_key.zip(words.get(first + 1)).map(|(flags, key)| (key, touch_of(flags)));
        self.covers_all(names.iter().step_by(step).map(|key| (key, needs)).chain(second), at, steps)
    }

    fn covers_all<'k>(
        &self,
        names: impl Iterator<Item = (&'k Bytes, Touch)>,
        at: &mut JudgedSoFar,
        steps: &mut usize,
    ) -> Option<Result<(), Denied>> {
        for (key, needs) in names.skip(at.keys) {
            loop {
                if *steps == 0 {
                    return None;
                }
                let Some(pattern) = self.keys.get(at.patterns) else {
                    return Some(Err(Denied::Key(key.clone())));
                };
                at.patterns += 1;
                if pattern.covers(key, needs, steps) {
                    break;
                }
            }
            (at.keys, at.patterns) = (at.keys + 1, 0);
        }
        Some(Ok(()))
    }

    /// The commands as rules: `-@all +@read +set`.
    pub(super) fn command_rules(&self) -> String {
        let first = match self.rules.first() {
            Some(rule) if rule == "+@all" => "",
            _ if self.is_every_command => "+@all",
            _ => "-@all",
        };
        let words = std::iter::once(first).chain(self.rules.iter().map(String::as_str));
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// The keys as rules: `~app:* %R~public:*`.
    pub(super) fn key_rules(&self) -> String {
        if self.is_every_key {
            return "~*".to_owned();
        }
        let mut rules = String::new();
        for KeyPattern { pattern, may } in &self.keys {
            let pattern = String::from_utf8_lossy(pattern);
            let letters = match may {
                Touch { read: true, write: true } => "",
                Touch { read: true, write: false } => "%R",
                Touch { read: false, .. } => "%W",
            };
            let space = if rules.is_empty() { "" } else { " " };
            let _ = write!(rules, "{space}{letters}~{pattern}");
        }
        rules
    }

    /// The channels as rules: `&*`, or nothing.
    pub(super) fn channel_rules(&self) -> String {
        if self.is_every_channel {
            return "&*".to_owned();
        }
        self.channels.iter().map(|pattern| format!("&{pattern}")).collect::<Vec<_>>().join(" ")
    }

    /// All of it as rules that make it out of nothing.
    pub(super) fn to_rules(&self) -> String {
        let mut words = vec![self.key_rules()];
        if !self.is_every_channel {
            words.push("resetchannels".to_owned());
        }
        words.extend([self.channel_rules(), self.command_rules()]);
        words.retain(|word| !word.is_empty());
        words.join(" ")
    }
}

/// The command of that name with all its subcommands, or one of those.
fn commands_by(name: &str) -> Option<Vec<&'static str>> {
    let spec = find_by_full_name(name.as_bytes())?;
    Some(std::iter::once(spec).chain(spec.subcommands).map(|spec| spec.name).collect())
}

/// The command and its first argument, where that is what a rule names: one without subcommands, that is.
fn with_first_word(name: &str) -> Option<(&'static str, &str)> {
    let (command, word) = name.split_once('|').filter(|(_, word)| !word.is_empty() && !word.contains('|'))?;
    let spec = find_by_full_name(command.as_bytes()).filter(|spec| spec.subcommands.is_empty())?;
    Some((spec.name, word))
}

/// What flags of a key need.
fn touch_of(flags: &[&str]) -> Touch {
    Touch {
        read: flags.contains(&"access"),
        write: ["update", "insert", "delete"].iter().any(|flag| flags.contains(flag)),
    }
}

/// What `R`, `W` or both give.
fn touch(letters: &str) -> Option<Touch> {
    let (read, write) = match letters.to_ascii_uppercase().as_str() {
        "R" => (true, false),
        "W" => (false, true),
        "RW" | "WR" => (true, true),
        _ => return None,
    };
    Some(Touch { read, write })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{find_command, find_subcommand};

    fn permissions(rules: &str) -> Permissions {
        let mut permissions = Permissions::default();
        for rule in rules.split_ascii_whitespace() {
            permissions.apply(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        }
        permissions
    }

    /// What becomes of a request: nothing if it may be executed.
    fn denied(permissions: &Permissions, request: &str) -> String {
        let words: Vec<Bytes> =
            request.split_ascii_whitespace().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let spec = find_command(&words[0]).expect("a command");
        let sub = words.get(1).and_then(|word| find_subcommand(spec, word));
        let spec = sub.unwrap_or(spec);
        match permissions
            .check_on(spec, &words, &mut JudgedSoFar::default(), &mut usize::MAX.clone())
            .unwrap()
        {
            Ok(()) => String::new(),
            Err(Denied::Command(name)) => format!("command {name}"),
            Err(Denied::Key(key)) => format!("key {}", key.escape_ascii()),
        }
    }

    #[test]
    fn commands_come_by_name_by_category_and_by_subcommand_and_the_last_rule_counts() {
        let reader = permissions("~* +@read -mget +config|get +client -client|list");
        for may in ["GET k", "EXISTS k", "CONFIG GET save", "CLIENT ID", "CLIENT INFO"] {
            assert_eq!(denied(&reader, may), "", "{may}");
        }
        for (may_not, why) in [
            ("SET k v", "command set"),
            ("MGET k", "command mget"),
            ("CONFIG SET save 1", "command config|set"),
            ("CLIENT LIST", "command client|list"),
            ("PING", "command ping"),
            ("FAILOVER", "command failover"),
        ] {
            assert_eq!(denied(&reader, may_not), why);
        }
        let no_admin = permissions("~* +@all -@dangerous");
        assert_eq!(denied(&no_admin, "SET k v"), "");
        for may_not in ["FAILOVER", "REMOVE-SLAVE s1", "INFO", "CONFIG GET save"] {
            assert!(denied(&no_admin, may_not).starts_with("command "), "{may_not}");
        }
        assert_eq!(denied(&permissions("~* +@dangerous -@admin +failover"), "FAILOVER"), "");
        assert_eq!(denied(&permissions("~* +@all nocommands"), "GET k"), "command get");
    }

    #[test]
    fn keys_come_by_patterns_for_reads_for_writes_or_both() {
        let user = permissions("+@all ~app:* %R~public:? %W~log[12]");
        for may in [
            "GET app:1",
            "SET app:1 v",
            "MGET app:1 public:2",
            "SET log1 v",
            "EXISTS log2",
            "OBJECT ENCODING app:1",
            "SET app:1 v IFEQ other",
            "DELEX log1",
            "DELEX app:1 IFEQ other",
            "MSET app:1 v log1 v",
            "SET log1 v NX",
            "SET app:1 v GET",
            "SETNX log1 v",
            "APPEND log1 v",
            "INCR app:1",
        ] {
            assert_eq!(denied(&user, may), "", "{may}");
        }
        for (may_not, key) in [
            ("GET other", "other"),
            ("SET public:1 v", "public:1"),
            ("GET log1", "log1"),
            ("MGET app:1 log1 app:2", "log1"),
            ("MSET app:1 other other v", "other"),
            ("GET APP:1", "APP:1"),
            ("DEL public:1", "public:1"),
            ("SET log1 v NX get", "log1"),
            ("SET log1 v IFEQ w", "log1"),
            ("DELEX log1 IFNE w", "log1"),
            ("DELIFEQ log1 w", "log1"),
            ("GETSET log1 v", "log1"),
            ("INCR log1", "log1"),
            ("GETDEL public:1", "public:1"),
        ] {
            assert_eq!(denied(&user, may_not), format!("key {key}"), "{may_not}");
        }
        assert_eq!(denied(&user, "PING"), "", "it has no key");
        assert_eq!(denied(&user, "DBSIZE"), "");
        let both = permissions("+@all %R~k %W~k");
        assert_eq!(both.key_rules(), "~k");
        assert_eq!(denied(&permissions("+@all ~k resetkeys"), "GET k"), "key k");
        // A value that looks like a key of others is no key.
        assert_eq!(denied(&user, "SET app:1 other"), "");
    }

    #[test]
    fn a_command_may_be_given_with_one_first_argument_and_an_empty_key_by_an_empty_pattern_alone() {
        let user = permissions("~* +select|0 +echo|Hello");
        for may in ["SELECT 0", "ECHO hello", "ECHO HELLO"] {
            assert_eq!(denied(&user, may), "", "{may}");
        }
        for (may_not, why) in [("SELECT 1", "command select"), ("ECHO 0", "command echo")] {
            assert_eq!(denied(&user, may_not), why);
        }
        assert_eq!(denied(&permissions("+select|0 -@fast"), "SELECT 0"), "command select");
        let spec = find_command(b"get").unwrap();
        let empty = [Bytes::from("GET"), Bytes::new()];
        let is_allowed = |rules: &str| {
            let judged = permissions(rules).check_on(
                spec,
                &empty,
                &mut JudgedSoFar::default(),
                &mut usize::MAX.clone(),
            );
            judged.unwrap().is_ok()
        };
        for (rules, expected) in [
            ("+get ~*", true),
            ("+get ~", true),
            ("+get ~**", false),
            ("+get %R~*", false),
            ("+get ~a*", false),
        ] {
            assert_eq!(is_allowed(rules), expected, "{rules}");
        }
    }

    #[test]
    fn a_rule_that_is_none_is_refused_and_changes_nothing() {
        for (rule, why) in [
            ("+nosuch", RuleError::UnknownName),
            ("-nosuch", RuleError::UnknownName),
            ("+config|nosuch", RuleError::UnknownName),
            ("+get|a|b", RuleError::UnknownName),
            ("+get|", RuleError::UnknownName),
            ("-get|first", RuleError::UnknownName),
            ("+config|get|first", RuleError::UnknownName),
            ("+@nosuch", RuleError::UnknownName),
            ("nonsense", RuleError::Syntax),
            ("", RuleError::Syntax),
            ("%X~k", RuleError::Syntax),
            ("%RR~k", RuleError::Syntax),
            ("%~k", RuleError::Syntax),
            ("%R", RuleError::Syntax),
            ("é", RuleError::Syntax),
        ] {
            let mut user = permissions("+@read ~a");
            assert_eq!(user.apply(rule), Err(why), "{rule:?}");
            assert_eq!(user, permissions("+@read ~a"), "{rule:?}");
        }
        assert_eq!(permissions("~*").apply("~k"), Err(RuleError::PatternAfterAll));
    }

    #[test]
    fn rules_are_told_so_that_they_give_the_same_again() {
        for (given, told) in [
            ("", "resetchannels -@all"),
            ("~* &* +@all", "~* &* +@all"),
            ("+@all -@dangerous", "resetchannels +@all -@dangerous"),
            ("~a %R~b %w~c +GET +@Read -get +set", "~a %R~b %W~c resetchannels -@all +@read -get +set"),
            ("+config|get +config|set +config", "resetchannels -@all +config"),
            ("&news +@all -ping +@all", "resetchannels &news +@all"),
            ("+select|0 +select|1 +select|0", "resetchannels -@all +select|0 +select|1"),
            ("+select|0 +select", "resetchannels -@all +select"),
            ("+select|0 -select +get", "resetchannels -@all -select +get"),
        ] {
            let user = permissions(given);
            assert_eq!(user.to_rules(), told, "{given}");
            assert_eq!(permissions(&user.to_rules()), user, "{given}");
        }
    }

    #[test]
    fn each_category_is_one_of_redis() {
        for spec in every_command() {
            for category in spec.categories {
                assert!(CATEGORIES.contains(category), "{category} of {}", spec.name);
            }
        }
    }
}
