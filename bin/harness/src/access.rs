//! How connections to the store begin: with TLS or without, and with which password.
//!
//! Owns the files that the command line names for a running store, and the requests on a connection of their own. The load's
//! connections are [`super::driver`]'s.

use super::tls::ClientTls;
use anyhow::{bail, ensure, Context as _};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The longest text that is read as an answer, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// The longest file of a password, in bytes; that of the masters.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// How a running store is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct AccessFiles {
    /// Certificates of the CA that the store's certificate must be of, in PEM: connect by TLS
    #[arg(long = "tls-ca", value_name = "FILE", requires = "target", help_heading = "Store")]
    pub ca: Option<PathBuf>,

    /// Certificate to show to the store, with its chain, in PEM
    #[arg(long = "tls-cert", value_name = "FILE", requires = "ca", requires = "key", help_heading = "Store")]
    pub cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM
    #[arg(long = "tls-key", value_name = "FILE", requires = "cert", help_heading = "Store")]
    pub key: Option<PathBuf>,

    /// File of the password to give to the store
    #[arg(long, value_name = "FILE", requires = "target", help_heading = "Store")]
    pub password_file: Option<PathBuf>,
}

/// What every connection to a store begins with. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct StoreAccess {
    tls: Option<Arc<ClientTls>>,
    /// The request `AUTH PASSWORD`, as it is sent.
    auth: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for StoreAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A password is in no log.
        f.debug_struct("StoreAccess")
            .field("tls", &self.tls.is_some())
            .field("password", &self.auth.is_some())
            .finish()
    }
}

impl StoreAccess {
    /// Reads the files.
    ///
    /// # Errors
    /// The first one that is missing or of no use.
    pub(crate) fn read(files: &AccessFiles) -> anyhow::Result<StoreAccess> {
        let tls = match &files.ca {
            Some(ca) => Some(Arc::new(ClientTls::read(ca, files.cert.as_deref().zip(files.key.as_deref()))?)),
            None => None,
        };
        let auth = match &files.password_file {
            Some(path) => Some(encoded(&[b"AUTH", &password(path)?]).into()),
            None => None,
        };
        Ok(StoreAccess { tls, auth })
    }

    /// The TLS of connections, if they have one.
    pub(crate) fn tls(&self) -> Option<&ClientTls> {
        self.tls.as_deref()
    }

    /// What a connection sends first.
    pub(crate) fn auth(&self) -> Option<&[u8]> {
        self.auth.as_deref()
    }

    /// One request over a connection of its own; the text of the answer.
    ///
    /// # Errors
    /// Those of the connection, and the store's error.
    pub(crate) fn ask(&self, target: &str, words: &[&str], limit: Duration) -> io::Result<String> {
        let socket = connect(target, limit)?;
        socket.set_read_timeout(Some(limit))?;
        socket.set_write_timeout(Some(limit))?;
        match self.tls() {
            Some(tls) => self.converse(rustls::StreamOwned::new(tls.session(target)?, socket), words),
            None => self.converse(socket, words),
        }
    }

    fn converse(&self, mut stream: impl Read + Write, words: &[&str]) -> io::Result<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut request = self.auth().unwrap_or_default().to_vec();
        request.extend_from_slice(&encoded(&words));
        stream.write_all(&request)?;
        stream.flush()?;
        let mut reader = BufReader::new(stream).take(TEXT_BYTES_MAX as u64);
        if self.auth().is_some() {
            text(&mut reader)?;
        }
        text(&mut reader)
    }
}

/// The text of an answer.
fn text(reader: &mut io::Take<BufReader<impl Read>>) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end();
    match line.split_at_checked(1) {
        Some(("-", error)) => Err(io::Error::other(error.to_owned())),
        Some(("$", length)) => {
            let length: usize = length.parse().map_err(|_| io::ErrorKind::InvalidData)?;
            let mut text = vec![0; length.min(TEXT_BYTES_MAX)];
            reader.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        Some((_, text)) => Ok(text.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A request: an array of bulk strings.
fn encoded(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    request
}

/// Tries each address of a name in turn, as the load does.
fn connect(target: &str, limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A password is the only line of its file, as for the masters.
fn password(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || -> anyhow::Result<Vec<u8>> {
        let file = std::fs::File::open(path)?;
        ensure!(file.metadata()?.is_file(), "it is not a file");
        let mut text = Vec::new();
        file.take(PASSWORD_BYTES_MAX + 1).read_to_end(&mut text)?;
        ensure!(text.len() as u64 <= PASSWORD_BYTES_MAX, "it is longer than {PASSWORD_BYTES_MAX} bytes");
        let line = text.strip_suffix(b"\n").unwrap_or(&text);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.contains(&b'\n') {
            bail!("a password is its only line");
        }
        Ok(line.to_vec())
    };
    read().with_context(|| format!("--password-file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_only_line_of_its_file_and_is_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        for (text, expected) in [
            (&b"open sesame\r\n"[..], Some("open sesame")),
            (b"x", Some("x")),
            (b"\n", None),
            (b"a\nb", None),
        ] {
            std::fs::write(&path, text).unwrap();
            let files = AccessFiles { password_file: Some(path.clone()), ..AccessFiles::default() };
            let access = StoreAccess::read(&files).ok();
            let request = expected.map(|word| encoded(&[b"AUTH", word.as_bytes()]));
            assert_eq!(access.as_ref().and_then(StoreAccess::auth), request.as_deref(), "{text:?}");
            assert!(!format!("{access:?}").contains("sesame"));
        }
        std::fs::write(&path, [b'x'; 4097]).unwrap();
        let error = format!("{:#}", password(&path).unwrap_err());
        assert!(error.starts_with("--password-file ") && error.contains("longer than 4096"), "{error}");
    }

    #[test]
    fn the_answer_after_the_password_is_the_text_and_an_error_is_one() {
        let access = StoreAccess { tls: None, auth: Some(encoded(&[b"AUTH", b"p"]).into()) };
        let mut stream =
            KnownStore { answers: io::Cursor::new(b"+OK\r\n$3\r\na\r\n\r\n".to_vec()), heard: Vec::new() };
        assert_eq!(access.converse(&mut stream, &["INFO"]).unwrap(), "a\r\n");
        assert_eq!(stream.heard, b"*2\r\n$4\r\nAUTH\r\n$1\r\np\r\n*1\r\n$4\r\nINFO\r\n");
        let mut stream =
            KnownStore { answers: io::Cursor::new(b"-WRONGPASS no\r\n".to_vec()), heard: Vec::new() };
        assert_eq!(access.converse(&mut stream, &["INFO"]).unwrap_err().to_string(), "WRONGPASS no");
    }

    /// A store whose answers are known.
    struct KnownStore {
        answers: io::Cursor<Vec<u8>>,
        heard: Vec<u8>,
    }

    impl Read for KnownStore {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.answers.read(bytes)
        }
    }

    impl Write for KnownStore {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
