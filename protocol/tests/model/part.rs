//! A piece of the world that is shared between states until one of them changes it, with its digest beside it.
//!
//! Makes the search cheap: a successor copies only the pieces that its action changes, and only these are formatted and
//! hashed again.

use foldhash::fast::FixedState;
use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::hash::BuildHasher as _;
use std::rc::Rc;

/// A hash of a text, of two halves with different seeds. Among ten million states the chance that any two different
/// ones have the same hash is below 10^-24.
pub(crate) type Digest = u128;

/// A value that is copied only when it is changed.
#[derive(Clone)]
pub(crate) struct Part<T> {
    value: Rc<T>,
    digest: Cell<Option<Digest>>,
}

impl<T: Clone + Debug> Part<T> {
    pub(crate) fn new(value: T) -> Self {
        Part { value: Rc::new(value), digest: Cell::new(None) }
    }

    pub(crate) fn change(&mut self) -> &mut T {
        self.digest.set(None);
        Rc::make_mut(&mut self.value)
    }

    /// The digest of the value's `Debug` text. The machines derive `Debug` with all their fields, so two values with
    /// the same text behave alike. Different texts for values that behave alike only cost time.
    pub(crate) fn digest(&self, text: &mut String) -> Digest {
        if let Some(digest) = self.digest.get() {
            return digest;
        }
        text.clear();
        write!(text, "{:?}", self.value).unwrap();
        let digest = digest_of(text.as_str());
        self.digest.set(Some(digest));
        digest
    }
}

impl<T> std::ops::Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The digest of anything that can be hashed.
pub(crate) fn digest_of<T: std::hash::Hash + ?Sized>(value: &T) -> Digest {
    let half = |seed| u128::from(FixedState::with_seed(seed).hash_one(value));
    half(0x9e37_79b9) << 64 | half(0x7f4a_7c15)
}
