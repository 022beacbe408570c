//! Where tests reach into running code (feature `testing`): places at which it panics on purpose, and bounds that are
//! moved.
//!
//! Apart from `testing.rs`, which builds on the actors: these are called by them.

use dsm_protocol::ids::SlaveId;
use dsm_protocol::machine::master::Master;
use std::cell::{Cell, RefCell};

/// A place in a running node where a test can have the code panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PanicPlace {
    /// Where the task of a client's connection hands a request to the master.
    Session,
    /// Where the proxy of this slave looks at its deadlines.
    SlaveProxy(SlaveId),
    /// Where the task that reads a value from the log begins.
    LogRead,
}

/// Looks at the machine of a master.
pub type MasterLook = Box<dyn FnMut(&Master)>;

thread_local! {
    static LOOK: RefCell<Option<MasterLook>> = const { RefCell::new(None) };
    static PANIC_AT: RefCell<Option<PanicPlace>> = const { RefCell::new(None) };
    static SLICE_KEYS: Cell<Option<usize>> = const { Cell::new(None) };
}

/// How many keys the masters that start in this thread from now on go through in one turn; `None`: as many as usual.
pub fn set_slice_keys(keys: Option<usize>) {
    SLICE_KEYS.set(keys);
}

pub(crate) fn slice_keys() -> Option<usize> {
    SLICE_KEYS.get()
}

/// Shows the machine of each master in this thread from now on, whenever it has looked at its clock; `None`: not any more.
pub fn look_at_masters(look: Option<MasterLook>) {
    LOOK.set(look);
}

pub(crate) fn looked_at_clock(master: &Master) {
    LOOK.with_borrow_mut(|look| look.iter_mut().for_each(|look| look(master)));
}

/// Lets whoever of this thread's nodes comes to `place` first panic there, once.
pub fn panic_at(place: PanicPlace) {
    PANIC_AT.set(Some(place));
}

/// Panics if a test wants this place to.
pub(crate) fn pass(is_here: impl FnOnce(&PanicPlace) -> bool) {
    if PANIC_AT.with_borrow(|wanted| wanted.as_ref().is_some_and(is_here)) {
        panic!("on purpose, at {:?}", PANIC_AT.take());
    }
}
