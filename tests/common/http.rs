//! A client of the HTTP ports, and a parser of what they tell Prometheus, which is strict: what is told in another form than the
//! format wants fails the test.

use super::cluster::{Node, TestCluster};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long one answer may take.
const ASK: Duration = Duration::from_secs(5);

/// An answer: its code, and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpAnswer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Where a node is asked over HTTP that was started with port 0, by what it has logged.
pub(crate) fn http_address(cluster: &TestCluster, node: Node) -> Option<SocketAddr> {
    let told = cluster.stderr(node);
    // A process that was started again has another port.
    let told = told.rsplit("---- ").next()?;
    let (_, address) = told.rsplit_once("listening for HTTP address=")?;
    address.split_whitespace().next()?.parse().ok()
}

/// Asks a node for a path.
///
/// # Errors
/// What the system says; that there is no such port, or no whole answer in time.
pub(crate) fn get_from(cluster: &TestCluster, node: Node, path: &str) -> io::Result<HttpAnswer> {
    get(http_address(cluster, node).ok_or(io::ErrorKind::NotFound)?, path, None)
}

/// Asks for a path, with a name and a password (in base64) if there are any.
///
/// # Errors
/// As [`get_from`].
pub(crate) fn get(address: SocketAddr, path: &str, login: Option<&str>) -> io::Result<HttpAnswer> {
    let mut stream = TcpStream::connect_timeout(&address, ASK)?;
    stream.set_read_timeout(Some(ASK))?;
    let login = login.map(|login| format!("Authorization: Basic {login}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{login}Connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(invalid)?;
    Ok(HttpAnswer { code, head: head.to_owned(), body: body.to_owned() })
}

/// The samples of an exposition, each by its name with its labels as they are written.
pub(crate) struct Exposition {
    pub(crate) samples: BTreeMap<String, f64>,
    /// The kinds of the metrics, by their names.
    pub(crate) kinds: BTreeMap<String, String>,
}

impl Exposition {
    /// Reads a text of version 0.0.4.
    ///
    /// # Panics
    /// When it is none.
    pub(crate) fn parse(text: &str) -> Exposition {
        let (mut samples, mut kinds, mut helped) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut current = String::new();
        assert!(text.ends_with('\n'), "the last line has no end");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').expect("a help text");
                assert!(!words.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
                name.clone_into(&mut current);
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let name = series.split('{').next().expect("a name");
                let is_name = |text: &str| {
                    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !text.is_empty()
                };
                assert!(is_name(name) && !name.starts_with(|first: char| first.is_ascii_digit()), "{line}");
                let stem = match kinds[&current].as_str() {
                    "histogram" => {
                        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end))
                    }
                    _ => Some(name),
                };
                assert_eq!(stem, Some(current.as_str()), "a sample stands under its own family: {line}");
                if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                    let labels = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}'));
                    let (label, of) = labels.expect("labels in braces").split_once('=').expect("a label");
                    assert!(is_name(label) && of.starts_with('"') && of.ends_with('"'), "{line}");
                }
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(value.is_finite(), "{line}");
                assert!(samples.insert(series.to_owned(), value).is_none(), "told twice: {line}");
            }
        }
        assert_eq!(helped, kinds.keys().cloned().collect(), "each metric has a help text and a kind");
        let told = Exposition { samples, kinds };
        told.check_histograms();
        told
    }

    /// The classes of each histogram only grow, and the last is all of them.
    fn check_histograms(&self) {
        for (name, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut classes: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            let prefix = format!("{name}_bucket{{");
            for (series, count) in self.samples.iter().filter(|(series, _)| series.starts_with(&prefix)) {
                let labels = series[prefix.len()..].trim_end_matches('}');
                let (others, bound) = labels.rsplit_once("le=\"").expect("a bound");
                let bound = bound.trim_end_matches('"').replace("+Inf", "inf").parse().expect("a number");
                classes.entry(others.trim_end_matches(',').to_owned()).or_default().push((bound, *count));
            }
            for (labels, mut classes) in classes {
                classes.sort_by(|one, other| one.0.total_cmp(&other.0));
                assert!(
                    classes.windows(2).all(|pair| pair[0].1 <= pair[1].1),
                    "{name} {labels}: {classes:?}"
                );
                let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
                let (bound, all) = classes[classes.len() - 1];
                assert_eq!((bound, all), (f64::INFINITY, self.samples[&format!("{name}_count{labels}")]));
                assert!(self.samples.contains_key(&format!("{name}_sum{labels}")), "{name} {labels}");
            }
        }
    }

    /// A sample by its name, with its labels.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn of(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in {:?}", self.samples))
    }
}
