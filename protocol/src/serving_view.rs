//! Who serves, as one master sees it, and what follows from that for clients of Redis: HELLO, INFO, ROLE and Sentinel.
//!
//! Owns the words for it, never how it is found out: the machine of the reign decides who serves.

use crate::ids::{Epoch, Seq};
use crate::info::RedisRole;
use std::cell::RefCell;
use std::rc::Rc;

/// Another master that the settings name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherMaster {
    /// Where it is reached.
    pub address: String,
    /// Whether this master's own link there stands.
    pub is_connected: bool,
    /// The last record that it has told of.
    pub seq: Seq,
}

/// Who serves, as one master sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingView {
    /// What this master is itself.
    pub role: RedisRole,
    /// Where this master is reached.
    pub own: String,
    /// The master that serves, or the last one that was known to; `None` before.
    pub master: Option<String>,
    /// Whether that one is known to serve now.
    pub is_served: bool,
    /// The other masters, in the order of the settings.
    pub others: Vec<OtherMaster>,
    /// The last record that is written or replayed here.
    pub seq: Seq,
    /// The highest epoch that is known here.
    pub epoch: Epoch,
}

/// Of a master that knows of no other.
impl Default for ServingView {
    fn default() -> Self {
        ServingView {
            role: RedisRole::Master,
            own: String::new(),
            master: None,
            is_served: false,
            others: Vec::new(),
            seq: Seq::default(),
            epoch: Epoch::default(),
        }
    }
}

impl ServingView {
    /// The master that a slave follows: if none was known to serve yet, one that may.
    pub fn followed(&self) -> &str {
        let own = Some(self.own.as_str());
        let known = self.master.as_deref().filter(|master| Some(*master) != own);
        known.or(self.others.first().map(|other| other.address.as_str())).unwrap_or_default()
    }

    /// Whether a slave's own link to a master that serves stands.
    pub fn is_linked(&self) -> bool {
        let is_master = |other: &&OtherMaster| Some(&other.address) == self.master.as_ref();
        self.is_served && self.others.iter().find(is_master).is_some_and(|other| other.is_connected)
    }

    /// The other masters that follow this one.
    pub fn followers(&self) -> impl Iterator<Item = &OtherMaster> {
        self.others.iter().filter(|other| self.role == RedisRole::Master && other.is_connected)
    }

    /// Whether somebody who was told this view has to be told `other`, however far logs have come.
    pub fn differs_from(&self, other: &ServingView) -> bool {
        let names = |view: &ServingView| {
            let others = view.others.iter().map(|other| (other.address.clone(), other.is_connected));
            (view.role, view.master.clone(), view.is_served, others.collect::<Vec<_>>())
        };
        names(self) != names(other)
    }
}

/// The view of now, shared by a master and its connections.
#[derive(Clone, Debug, Default)]
pub struct SharedView(Rc<RefCell<Rc<ServingView>>>);

impl SharedView {
    /// The view of now.
    pub fn now(&self) -> Rc<ServingView> {
        Rc::clone(&self.0.borrow())
    }

    /// Takes the place of the view until now.
    pub fn set(&self, view: ServingView) {
        *self.0.borrow_mut() = Rc::new(view);
    }
}

/// Host and port of an address, as Redis tells them: the host without brackets.
pub fn host_and_port(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    (bare.unwrap_or(host), port.parse().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(address: &str, is_connected: bool) -> OtherMaster {
        OtherMaster { address: address.to_owned(), is_connected, seq: Seq(7) }
    }

    /// A slave that knows `master` and, of the others, only `b:2`.
    fn slave(master: Option<&str>, is_served: bool, is_connected: bool) -> ServingView {
        ServingView {
            role: RedisRole::Slave,
            own: "a:1".to_owned(),
            master: master.map(str::to_owned),
            is_served,
            others: vec![other("b:2", is_connected)],
            seq: Seq(9),
            epoch: Epoch(3),
        }
    }

    #[test]
    fn a_slave_follows_the_one_that_serves_or_served_last_or_may_serve_but_never_itself() {
        assert_eq!(slave(Some("b:2"), true, true).followed(), "b:2");
        assert_eq!(slave(Some("c:3"), false, true).followed(), "c:3");
        assert_eq!(slave(None, false, false).followed(), "b:2");
        assert_eq!(slave(Some("a:1"), false, true).followed(), "b:2");
    }

    #[test]
    fn a_slave_is_linked_while_its_link_to_a_master_that_serves_stands() {
        assert!(slave(Some("b:2"), true, true).is_linked());
        assert!(!slave(Some("b:2"), false, true).is_linked());
        assert!(!slave(Some("b:2"), true, false).is_linked());
        assert!(!slave(Some("c:3"), true, true).is_linked());
    }

    #[test]
    fn only_a_master_has_followers_and_only_those_that_are_connected() {
        let master = ServingView {
            role: RedisRole::Master,
            others: vec![other("b:2", true), other("c:3", false)],
            ..ServingView::default()
        };
        assert_eq!(master.followers().map(|other| other.address.as_str()).collect::<Vec<_>>(), ["b:2"]);
        assert_eq!(slave(Some("b:2"), true, true).followers().count(), 0);
    }

    #[test]
    fn how_far_a_log_has_come_makes_no_other_view() {
        let view = slave(Some("b:2"), true, true);
        let mut later = ServingView { seq: Seq(10), ..view.clone() };
        later.others[0].seq = Seq(10);
        assert!(!view.differs_from(&later));
        assert!(view.differs_from(&slave(Some("b:2"), false, true)));
        assert!(view.differs_from(&slave(Some("b:2"), true, false)));
        assert!(view.differs_from(&slave(Some("c:3"), true, true)));
    }

    #[test]
    fn an_address_is_told_as_host_and_port() {
        assert_eq!(host_and_port("127.0.0.1:12345"), ("127.0.0.1", 12345));
        assert_eq!(host_and_port("[::1]:7"), ("::1", 7));
        assert_eq!(host_and_port("a.example:65535"), ("a.example", 65535));
        assert_eq!(host_and_port(""), ("", 0));
    }
}
