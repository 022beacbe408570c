//! What the connections of a node share: the users of now, and the log of what was refused.

use super::users::Users;
use crate::ids::Millis;
use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

/// The most incidents that are kept.
const INCIDENTS_MAX: usize = 128;

/// Incidents that are alike are one, if there is no longer between them, in milliseconds.
const ALIKE_MS: u64 = 60_000;

/// How much is kept of what a client has said, in bytes.
const OBJECT_BYTES_MAX: usize = 128;

/// After so many wrong passwords of one origin all its logins wait, the right ones too: who does not wait for an answer would
/// else know that it was wrong, and try the next one at once.
const GUESSES_FREE: u64 = 10;

/// One of them is forgotten after so long, in milliseconds; and no more than so many are remembered.
const GUESS_FORGOTTEN_MS: u64 = 5_000;
const GUESSES_MAX: u64 = 50;

/// The first of these waits, in milliseconds; each five guesses later they are twice as long, up to the last.
const GUESS_PAUSE_MS: u64 = 50;
const GUESS_PAUSE_MS_MAX: u64 = 2_000;

/// Of so many origins the wrong passwords are remembered.
const ORIGINS_MAX: usize = 1024;

/// Wrong passwords of one origin.
#[derive(Clone, Copy, Debug)]
struct Guesses {
    count: u64,
    /// When the count was right.
    at: Millis,
}

impl Guesses {
    fn left(self, now: Millis) -> u64 {
        self.count.saturating_sub(now.since(self.at) / GUESS_FORGOTTEN_MS)
    }
}

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentKind {
    /// Somebody said that he is somebody, and it was not right.
    Auth,
    /// A command.
    Command,
    /// A key.
    Key,
}

impl IncidentKind {
    /// As `ACL LOG` has it.
    pub fn word(self) -> &'static str {
        match self {
            IncidentKind::Auth => "auth",
            IncidentKind::Command => "command",
            IncidentKind::Key => "key",
        }
    }
}

/// Something that was refused, once or several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// What was refused.
    pub kind: IncidentKind,
    /// The command or the key, as far as it is kept.
    pub object: Vec<u8>,
    /// Who asked, as he calls himself.
    pub user: String,
    /// His connection, as `CLIENT INFO` has it.
    pub client: String,
    /// How many times.
    pub count: u64,
    /// When it happened last.
    pub last: Millis,
}

/// See the module.
pub struct Accounts {
    users: RefCell<Arc<Users>>,
    /// Raised when there are other users.
    generation: Cell<u64>,
    is_guarded: Cell<bool>,
    /// The last ticket that was drawn, and that of the users of now.
    drawn: Cell<u64>,
    taken: Cell<u64>,
    /// The newest first.
    incidents: RefCell<VecDeque<Incident>>,
    counts: [Cell<u64>; 3],
    /// Wrong passwords, by where they came from.
    guesses: RefCell<BTreeMap<String, Guesses>>,
    clock: Box<dyn Fn() -> Millis>,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Default for Accounts {
    /// Everybody may do everything, at any time.
    fn default() -> Self {
        Accounts::new(Users::default(), || Millis(0))
    }
}

impl Accounts {
    /// These users; `clock` tells the time for the log.
    pub fn new(users: Users, clock: impl Fn() -> Millis + 'static) -> Self {
        Accounts {
            is_guarded: Cell::new(users.is_guarded()),
            users: RefCell::new(Arc::new(users)),
            drawn: Cell::new(0),
            taken: Cell::new(0),
            generation: Cell::new(0),
            incidents: RefCell::default(),
            counts: Default::default(),
            guesses: RefCell::default(),
            clock: Box::new(clock),
        }
    }

    /// The users of now.
    pub fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.borrow())
    }

    /// Whether somebody must say who he is, or may not do everything.
    pub fn is_guarded(&self) -> bool {
        self.is_guarded.get()
    }

    /// Whether whoever has not said who he is may do nothing else.
    pub fn must_log_in(&self) -> bool {
        self.users.borrow().anonymous().is_none()
    }

    /// To be drawn before the users are read anew: who began to read earlier may have read what is no longer so.
    pub fn ticket(&self) -> u64 {
        self.drawn.set(self.drawn.get() + 1);
        self.drawn.get()
    }

    /// These are the users from now on, for connections that stand as well, unless those of a later ticket are it already.
    /// Gives those that are not, to be freed where there is time for it.
    pub fn replace(&self, ticket: u64, users: Users) -> Arc<Users> {
        let users = Arc::new(users);
        if ticket < self.taken.get() {
            return users;
        }
        self.taken.set(ticket);
        self.is_guarded.set(users.is_guarded());
        self.generation.set(self.generation.get() + 1);
        self.users.replace(users)
    }

    /// Differs whenever there are other users.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Counts a wrong password of that origin.
    pub(crate) fn note_guess(&self, origin: &str) {
        let now = (self.clock)();
        let mut guesses = self.guesses.borrow_mut();
        let count = guesses.get(origin).map_or(0, |known| known.left(now));
        guesses.insert(origin.to_owned(), Guesses { count: (count + 1).min(GUESSES_MAX), at: now });
        if guesses.len() > ORIGINS_MAX {
            // The one of which there is least to remember.
            let least = guesses.iter().min_by_key(|(_, known)| (known.left(now), known.at));
            if let Some(least) = least.map(|(origin, _)| origin.clone()) {
                guesses.remove(&least);
            }
        }
    }

    /// How long a login of that origin waits for its answer, in milliseconds, be it right or wrong.
    pub(crate) fn login_pause_ms(&self, origin: &str) -> u64 {
        let now = (self.clock)();
        let count = self.guesses.borrow().get(origin).map_or(0, |known| known.left(now));
        match count.checked_sub(GUESSES_FREE) {
            None => 0,
            Some(more) => (GUESS_PAUSE_MS << (more / 5)).min(GUESS_PAUSE_MS_MAX),
        }
    }

    /// Counts and notes that something was refused.
    pub fn note(&self, kind: IncidentKind, object: &[u8], user: &str, client: String) {
        let count = &self.counts[kind as usize];
        count.set(count.get() + 1);
        let now = (self.clock)();
        let object = &object[..object.len().min(OBJECT_BYTES_MAX)];
        let user: String = user.chars().take(OBJECT_BYTES_MAX).collect();
        let mut incidents = self.incidents.borrow_mut();
        let alike = incidents.iter().position(|known| {
            known.kind == kind
                && known.object == object
                && known.user == user
                && now.since(known.last) <= ALIKE_MS
        });
        let count = alike.and_then(|at| incidents.remove(at)).map_or(1, |known| known.count + 1);
        incidents.push_front(Incident { kind, object: object.to_vec(), user, client, count, last: now });
        incidents.truncate(INCIDENTS_MAX);
    }

    /// What was refused, the newest first, and how long ago in milliseconds.
    pub fn incidents(&self) -> impl Iterator<Item = (Ref<'_, Incident>, u64)> {
        let now = (self.clock)();
        let incidents = self.incidents.borrow();
        (0..incidents.len()).map(move |at| {
            let incident = Ref::map(Ref::clone(&incidents), |all| &all[at]);
            let age_ms = now.since(incident.last);
            (incident, age_ms)
        })
    }

    /// Forgets what was refused. The counts stay.
    pub fn forget_incidents(&self) {
        self.incidents.borrow_mut().clear();
    }

    /// How often something of that kind was refused.
    pub fn count(&self, kind: IncidentKind) -> u64 {
        self.counts[kind as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn users_that_were_read_earlier_do_not_replace_later_ones() {
        let accounts = Accounts::default();
        let (early, late) = (accounts.ticket(), accounts.ticket());
        accounts.replace(late, Users::with_password(b"new"));
        let generation = accounts.generation();
        accounts.replace(early, Users::default());
        assert!(accounts.is_guarded() && accounts.generation() == generation);
        accounts.replace(accounts.ticket(), Users::default());
        assert!(!accounts.is_guarded() && accounts.generation() > generation);
    }

    #[test]
    fn an_origin_of_many_wrong_passwords_waits_and_others_do_not() {
        let now = Rc::new(Cell::new(0));
        let clock = Rc::clone(&now);
        let accounts = Accounts::new(Users::default(), move || Millis(clock.get()));
        let pause = |origin| accounts.login_pause_ms(origin);
        (0..GUESSES_FREE - 1).for_each(|_| accounts.note_guess("a"));
        assert_eq!(pause("a"), 0);
        accounts.note_guess("a");
        assert_eq!(pause("a"), 50);
        (0..15).for_each(|_| accounts.note_guess("a"));
        assert_eq!((pause("a"), pause("b")), (400, 0));
        (0..1000).for_each(|_| accounts.note_guess("a"));
        assert_eq!(pause("a"), 2000);
        // It is forgotten, however many there were.
        now.set(GUESSES_MAX * GUESS_FORGOTTEN_MS);
        assert_eq!(pause("a"), 0);
        // Many origins do not take memory without end, and do not wash away the one that guesses most.
        (0..GUESSES_MAX).for_each(|_| accounts.note_guess("a"));
        (0..5000).for_each(|number: u32| accounts.note_guess(&number.to_string()));
        assert!(accounts.guesses.borrow().len() <= ORIGINS_MAX);
        assert_eq!(pause("a"), 2000);
    }

    #[test]
    fn incidents_that_are_alike_are_one_and_the_oldest_are_forgotten() {
        let now = Rc::new(Cell::new(0));
        let accounts = Accounts::new(Users::default(), {
            let now = Rc::clone(&now);
            move || Millis(now.get())
        });
        let told = || {
            let all = accounts.incidents();
            all.map(|(incident, age)| (incident.user.clone(), incident.count, age)).collect::<Vec<_>>()
        };
        let note = |user: &str| accounts.note(IncidentKind::Key, &[b'k'; 1000], user, String::new());
        note("a");
        now.set(1000);
        note("b");
        now.set(50_000);
        note("a");
        assert_eq!(told(), [("a".to_owned(), 2, 0), ("b".to_owned(), 1, 49_000)]);
        assert_eq!(accounts.incidents().next().unwrap().0.object.len(), OBJECT_BYTES_MAX);
        now.set(200_000);
        note("a");
        assert_eq!(told()[0], ("a".to_owned(), 1, 0), "too long ago");
        (0..500).for_each(|user| note(&user.to_string()));
        assert_eq!(told().len(), INCIDENTS_MAX);
        assert_eq!(accounts.count(IncidentKind::Key), 504);
        assert_eq!(accounts.count(IncidentKind::Auth), 0);
        accounts.forget_incidents();
        assert_eq!((told(), accounts.count(IncidentKind::Key)), (vec![], 504));
    }
}
