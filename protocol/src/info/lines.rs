//! A status text line by line: the choice of sections, and the search for fields. Knows no field by name.

use super::SECTIONS;
use std::collections::BTreeMap;

/// A choice of sections: `INFO` (all of them), or `INFO section [section ...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections(u32);

impl Sections {
    /// All sections, including headings that are not in [`SECTIONS`].
    pub const ALL: Sections = Sections(u32::MAX);

    /// The sections with these names, in either case; all of them when there is no name, or one is `all`,
    /// `default` or `everything`. Names that are none of [`SECTIONS`] choose nothing, as in Redis.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Sections {
        let mut chosen = None;
        for name in names {
            let bits = chosen.get_or_insert(0);
            if [&b"all"[..], b"default", b"everything"].iter().any(|all| name.eq_ignore_ascii_case(all)) {
                return Sections::ALL;
            }
            *bits |= bit(name);
        }
        chosen.map_or(Sections::ALL, Sections)
    }

    /// The chosen sections of `text`, each line ended by CR LF, an empty line between sections. A section
    /// begins with a line `# Name`; `text` may end its lines either way.
    pub fn select(self, text: &str) -> String {
        let mut selected = String::with_capacity(text.len() + 64);
        let mut shown = self == Sections::ALL;
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(heading) = line.strip_prefix("# ") {
                shown = self == Sections::ALL || self.0 & bit(heading.trim_end().as_bytes()) != 0;
                if shown && !selected.is_empty() {
                    selected.push_str("\r\n");
                }
            }
            if shown {
                selected.push_str(line);
                selected.push_str("\r\n");
            }
        }
        selected
    }
}

/// The section's bit; none for a name that is not in [`SECTIONS`].
fn bit(name: &[u8]) -> u32 {
    SECTIONS.iter().position(|section| name.eq_ignore_ascii_case(section.as_bytes())).map_or(0, |i| 1 << i)
}

/// The fields of a status text, of this store or of another one that speaks Redis' protocol.
///
/// ```text
/// # Slaves
/// active_slaves:1
/// slave0:id=slave-1,slot=0,writes_acked=3
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    fields: BTreeMap<String, String>,
}

impl Info {
    /// Reads a text with either kind of line ends. Headings, and lines that are not `key:value`, are skipped.
    pub fn parse(text: &str) -> Info {
        let pairs =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
        let fields = pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect();
        Info { fields }
    }

    /// The value of a field.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }

    /// The value of a field that is a number; nothing where it is missing or something else.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// All fields, by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The slaves that are listed, `slave0` and so on, in the order of their names: the parts `name=value` of each.
    pub fn slaves(&self) -> impl Iterator<Item = BTreeMap<&str, &str>> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let listed = self.fields().filter(move |(key, _)| key.strip_prefix("slave").is_some_and(is_number));
        listed.map(|(_, value)| Info::parts(value))
    }

    /// The parts `name=value` of a field, which are separated by commas.
    pub fn parts(value: &str) -> BTreeMap<&str, &str> {
        value.split(',').filter_map(|part| part.split_once('=')).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Server\nversion:1\n\n# Odd\nx:1\n\n# Keyspace\nkeys:2\n";

    fn select(names: &[&str]) -> String {
        Sections::named(names.iter().map(|name| name.as_bytes())).select(TEXT)
    }

    #[test]
    fn a_named_section_is_shown_alone() {
        assert_eq!(select(&["KEYSPACE"]), "# Keyspace\r\nkeys:2\r\n");
        assert_eq!(
            select(&["keyspace", "nonsense", "server"]),
            "# Server\r\nversion:1\r\n\r\n# Keyspace\r\nkeys:2\r\n"
        );
    }

    #[test]
    fn a_text_is_read_field_by_field() {
        let text =
            "# Replication\r\nrole:primary\r\nactive_slaves:2\r\nslave0:id=slave-1,room=5\r\nodd line\r\n\
                    slave_x:id=no\nslave1:id=a=b,state\nlast_address:[::1]:7\n";
        let info = Info::parse(text);
        assert_eq!(info.get("role"), Some("primary"));
        assert_eq!(
            (info.number("active_slaves"), info.number("role"), info.number("keys")),
            (Some(2), None, None)
        );
        assert_eq!(info.get("last_address"), Some("[::1]:7"));
        let slaves: Vec<_> = info.slaves().collect();
        assert_eq!(
            slaves,
            [BTreeMap::from([("id", "slave-1"), ("room", "5")]), BTreeMap::from([("id", "a=b")])]
        );
        assert_eq!(info.fields().count(), 6);
    }

    #[test]
    fn an_unknown_section_is_empty() {
        assert_eq!(select(&["nonsense"]), "");
        assert_eq!(select(&["odd"]), "");
    }

    #[test]
    fn without_a_name_everything_is_shown() {
        let all = "# Server\r\nversion:1\r\n\r\n# Odd\r\nx:1\r\n\r\n# Keyspace\r\nkeys:2\r\n";
        assert_eq!(select(&[]), all);
        assert_eq!(select(&["server", "ALL"]), all);
        assert_eq!(select(&["default"]), all);
        assert_eq!(Sections::ALL.select(all), all);
    }
}
