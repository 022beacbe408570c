//! A key at rest, or one of many on their way from a log to the directory.
//!
//! Owns how a key is held: a short one takes no allocation. Keeps no buffer alive into which it was read, as a key of a
//! request does.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

/// Keys of at most this many bytes are held in place: in 24 bytes, where a boxed slice takes 16 and an allocation of its own.
const INLINE_BYTES_MAX: usize = 22;

/// The bytes of a key.
#[derive(Clone)]
pub struct StoredKey(Held);

#[derive(Clone)]
enum Held {
    Short { length: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Long(Box<[u8]>),
}

const _: () = assert!(size_of::<StoredKey>() == 24);

impl Deref for StoredKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Short { length, bytes } => &bytes[..usize::from(*length)],
            Held::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for StoredKey {
    fn from(key: &[u8]) -> Self {
        if key.len() > INLINE_BYTES_MAX {
            return StoredKey(Held::Long(key.into()));
        }
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..key.len()].copy_from_slice(key);
        StoredKey(Held::Short { length: key.len() as u8, bytes })
    }
}

impl From<Cow<'_, [u8]>> for StoredKey {
    fn from(key: Cow<'_, [u8]>) -> Self {
        StoredKey::from(&*key)
    }
}

impl PartialEq for StoredKey {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for StoredKey {}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
