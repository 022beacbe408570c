//! Secrets that the two ends of a link share, and their proof: who knows one shows that without sending it.
//!
//! Each end draws a number that is used once. A proof is HMAC-SHA256, under the secret, over what both ends have said so far:
//!
//! ```text
//! "dsm secret 1"  side: 1 dials, 2 accepts  channel  nonce of who accepts  nonce of who dials  preface and HELLO
//!  12 bytes       1                         32       32                    32                  the rest
//! ```
//!
//! The side is in it, so that no end is answered with its own proof. The HELLO is in it, so that a proof holds for that role,
//! name, life and cluster alone; and both nonces are, so that it holds for one connection. The channel is in it, so that nobody
//! who is dialed by mistake passes a handshake on to another master, and then speaks for whom he has heard. A secret is compared
//! in constant time and is in no `Debug`. Which links are to prove which secret, and when, is `handshake.rs`'s.
//!
//! A proof takes some microseconds to compute: what a stranger can cause costs less than its connection.

use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq as _};
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest file of a secret, in bytes.
pub const SECRET_FILE_BYTES_MAX: usize = 4096;

/// The shortest secret, in bytes.
pub const SECRET_BYTES_MIN: usize = 16;

/// How many secrets count at once: the one of now and, while a cluster moves from one to the other, the one before.
pub const SECRETS_MAX: usize = 2;

const LABEL: &[u8; 12] = b"dsm secret 1";

/// A number that is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// Of four numbers that nobody can guess.
    pub fn draw(mut random: impl FnMut() -> u64) -> Self {
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&random().to_le_bytes()));
        Nonce(bytes)
    }
}

/// What both ends of one connection know it by. Whoever stands between two of them and passes on what he hears finds that the
/// ends know them by different ones (RFC 5056 calls it channel binding).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel([u8; 32]);

impl Channel {
    /// Over TCP: of the address that was dialed, which the other end finds to be its own.
    pub fn tcp(address: SocketAddr) -> Self {
        // The same address, whether it is accepted by a socket of IPv6 or not.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Channel::named(&format!("tcp:{address}"))
    }

    /// Where no network is: of the name that was dialed, which the other end listens at.
    pub fn named(name: &str) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, name.as_bytes()).as_ref());
        Channel(bytes)
    }

    /// Over TLS: of what its session exports, which nobody else can know (RFC 5705, RFC 9266).
    pub fn exported(material: [u8; 32]) -> Self {
        Channel(material)
    }
}

/// A proof. Its text shows nothing of it.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Mac([u8; 32]);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac")
    }
}

impl PartialEq for Mac {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Mac {}

/// Which end of a link proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prover {
    /// The one that dials.
    Dialing,
    /// The one that accepts.
    Accepting,
}

/// What both ends of one link have said.
#[derive(Clone, Copy, Debug)]
pub struct Exchanged<'a> {
    /// Over which they say it.
    pub channel: Channel,
    /// Drawn by the end that accepts.
    pub accepting: Nonce,
    /// Drawn by the end that dials.
    pub dialing: Nonce,
    /// Preface and HELLO, as they are sent.
    pub greeting: &'a [u8],
}

/// Why the text of a file is no secret. Never shows any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// It is short enough to be guessed.
    #[error("a secret has at least {SECRET_BYTES_MIN} bytes (`openssl rand -hex 32` makes one)")]
    Short,
    /// More lines than secrets may count at once.
    #[error(
        "it has several lines: the secret, and at most the one before it while a cluster moves to a new one"
    )]
    Lines,
    /// It is no file of a secret.
    #[error("it has more than {SECRET_FILE_BYTES_MAX} bytes")]
    Long,
}

/// A secret and, while a cluster moves to a new one, the one before. Clones share them, and the last of them wipes the memory.
#[derive(Clone)]
pub struct Secret(Arc<Vec<Zeroizing<Vec<u8>>>>);

impl Secret {
    /// Reads the text of a file: a secret a line, one line or two. Either proves and is accepted.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &[u8]) -> Result<Self, SecretError> {
        if text.len() > SECRET_FILE_BYTES_MAX {
            return Err(SecretError::Long);
        }
        let lines = text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut secrets = Vec::new();
        for line in lines {
            if secrets.len() == SECRETS_MAX {
                return Err(SecretError::Lines);
            }
            if line.len() < SECRET_BYTES_MIN {
                return Err(SecretError::Short);
            }
            secrets.push(Zeroizing::new(line.to_vec()));
        }
        Ok(Secret(Arc::new(secrets)))
    }

    /// The proofs of that side, one for each secret.
    pub fn prove(&self, prover: Prover, said: Exchanged<'_>) -> Vec<Mac> {
        self.0.iter().map(|secret| mac(secret, prover, said)).collect()
    }

    /// Whether one of these proofs of that side is right; with the answer, which proves the same secret. All secrets are
    /// compared with all proofs, whichever is right.
    pub fn check(&self, prover: Prover, said: Exchanged<'_>, proofs: &[Mac]) -> Option<Mac> {
        let mut answer = None;
        for secret in self.0.iter() {
            let wanted = mac(secret, prover, said);
            let right = proofs.iter().take(SECRETS_MAX);
            let is_right = right.fold(Choice::from(0), |right, proof| right | proof.0.ct_eq(&wanted.0));
            if bool::from(is_right) {
                answer = Some(mac(secret, Prover::Accepting, said));
            }
        }
        answer
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl PartialEq for Secret {
    /// In constant time, but for the lengths.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(other.0.iter());
        let same = pairs.fold(Choice::from(1), |same, (ours, theirs)| same & ours.ct_eq(theirs));
        self.0.len() == other.0.len() && same.into()
    }
}

impl Eq for Secret {}

fn mac(secret: &[u8], prover: Prover, said: Exchanged<'_>) -> Mac {
    let side = match prover {
        Prover::Dialing => 1,
        Prover::Accepting => 2,
    };
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(LABEL);
    context.update(&[side]);
    context.update(&said.channel.0);
    context.update(&said.accepting.0);
    context.update(&said.dialing.0);
    context.update(said.greeting);
    let mut mac = [0; 32];
    mac.copy_from_slice(context.sign().as_ref());
    Mac(mac)
}

/// The secrets of one who accepts links: those who come must prove the one of their role, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// That of masters and slaves.
    pub nodes: Option<Secret>,
    /// That of native clients.
    pub clients: Option<Secret>,
}

impl Secrets {
    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.nodes.is_some() || self.clients.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "an old secret of the cluster";
    const NEW: &str = "a new secret of the cluster";

    fn secret(text: &str) -> Secret {
        Secret::parse(text.as_bytes()).unwrap()
    }

    fn nonce(number: u64) -> Nonce {
        Nonce::draw(|| number)
    }

    fn said(greeting: &[u8]) -> Exchanged<'_> {
        Exchanged { channel: Channel::named("a"), accepting: nonce(1), dialing: nonce(2), greeting }
    }

    fn proves(theirs: &Secret, ours: &Secret) -> bool {
        let proofs = theirs.prove(Prover::Dialing, said(b"hello"));
        let answer = ours.check(Prover::Dialing, said(b"hello"), &proofs);
        // The answer proves a secret that the asking side has as well.
        answer.is_some_and(|answer| theirs.check(Prover::Accepting, said(b"hello"), &[answer]).is_some())
    }

    #[test]
    fn the_proof_is_hmac_sha256_over_the_documented_bytes() {
        // The same with `openssl dgst -sha256 -mac HMAC`, over label, side, channel, nonces and greeting.
        let proof = secret(OLD).prove(Prover::Dialing, said(b"hello"))[0];
        let hex: String = proof.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "2626c1668bd95c5d638ac1243f747386141a47eaa62bfb3a0a6c2b9459a2942b");
    }

    #[test]
    fn a_proof_holds_for_one_secret_side_channel_connection_and_hello() {
        let secret = secret(OLD);
        let proof = secret.prove(Prover::Dialing, said(b"hello"));
        let holds = |prover, said: Exchanged<'_>| secret.check(prover, said, &proof).is_some();
        assert!(holds(Prover::Dialing, said(b"hello")));
        assert!(!holds(Prover::Accepting, said(b"hello")), "it was sent back");
        assert!(!holds(Prover::Dialing, said(b"hello!")));
        assert!(!holds(Prover::Dialing, Exchanged { accepting: nonce(3), ..said(b"hello") }));
        assert!(!holds(Prover::Dialing, Exchanged { dialing: nonce(3), ..said(b"hello") }));
        let passed_on = Exchanged { channel: Channel::named("b"), ..said(b"hello") };
        assert!(!holds(Prover::Dialing, passed_on));
        let crossed = Exchanged { accepting: nonce(2), dialing: nonce(1), ..said(b"hello") };
        assert!(!holds(Prover::Dialing, crossed));
        assert!(self::secret(NEW).check(Prover::Dialing, said(b"hello"), &proof).is_none());
        assert!(secret.check(Prover::Dialing, said(b"hello"), &[]).is_none());
    }

    #[test]
    fn both_ends_of_a_connection_know_it_by_the_same_address_however_that_is_written() {
        let tcp = |address: &str| Channel::tcp(address.parse().unwrap());
        assert_eq!(tcp("127.0.0.1:7"), tcp("[::ffff:127.0.0.1]:7"));
        assert_eq!(tcp("[fe80::1%2]:7"), tcp("[fe80::1]:7"));
        let all = [tcp("127.0.0.1:7"), tcp("127.0.0.1:8"), tcp("127.0.0.2:7"), tcp("[::1]:7")];
        for (index, channel) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(channel), "{index}");
        }
    }

    #[test]
    fn while_a_cluster_moves_to_a_new_secret_either_is_proved_by_either_side() {
        let (old, new) = (secret(OLD), secret(NEW));
        for both in [secret(&format!("{NEW}\n{OLD}\n")), secret(&format!("{OLD}\n{NEW}\n"))] {
            assert!(proves(&both, &old) && proves(&old, &both));
            assert!(proves(&both, &new) && proves(&new, &both) && proves(&both, &both));
        }
        assert!(!proves(&old, &new) && !proves(&new, &old));
    }

    #[test]
    fn no_more_proofs_are_looked_at_than_there_may_be_secrets() {
        let secret = secret(OLD);
        let proof = secret.prove(Prover::Dialing, said(b"hello"))[0];
        let mut proofs = vec![Mac([0; 32]); SECRETS_MAX];
        proofs.push(proof);
        assert!(secret.check(Prover::Dialing, said(b"hello"), &proofs).is_none());
        assert!(secret.check(Prover::Dialing, said(b"hello"), &proofs[1..]).is_some());
    }

    #[test]
    fn a_file_has_one_secret_or_two_and_says_why_it_is_none() {
        assert_eq!(secret("0123456789abcdef\n"), secret("0123456789abcdef"));
        assert_eq!(secret("0123456789abcdef\r\n"), secret("0123456789abcdef"));
        assert_ne!(secret("0123456789abcdef"), secret("0123456789abcdefg"));
        assert_ne!(secret(OLD), secret(&format!("{OLD}\n{NEW}")));
        for (text, why) in [
            ("".to_owned(), SecretError::Short),
            ("\n".to_owned(), SecretError::Short),
            ("0123456789abcde\n".to_owned(), SecretError::Short),
            (format!("{OLD}\nshort"), SecretError::Short),
            (format!("{OLD}\n\n"), SecretError::Short),
            (format!("{OLD}\n{NEW}\n{OLD}\n"), SecretError::Lines),
            ("x".repeat(SECRET_FILE_BYTES_MAX + 1), SecretError::Long),
        ] {
            assert_eq!(Secret::parse(text.as_bytes()), Err(why), "{text:.20}");
        }
    }

    #[test]
    fn no_text_shows_a_secret_or_a_proof() {
        let secrets = Secrets { nodes: Some(secret(OLD)), clients: Some(secret(NEW)) };
        let proof = secret(OLD).prove(Prover::Dialing, said(b"hello"));
        let shown = format!("{secrets:?} {proof:?}");
        assert_eq!(shown, "Secrets { nodes: Some(Secret), clients: Some(Secret) } [Mac]");
    }
}
