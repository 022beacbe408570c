//! The table of all command names of the RESP protocol, joined from the families, and the lookup in it.

use super::entry::Spec;
use super::{acl, connection, expiry, generic, object, scripting, server, strings, transaction};

/// The families, in the order in which `COMMAND` lists them.
const FAMILIES: [&[Spec]; 9] = [
    strings::NAMES,
    generic::NAMES,
    object::NAMES,
    expiry::NAMES,
    transaction::NAMES,
    scripting::NAMES,
    connection::NAMES,
    server::NAMES,
    acl::NAMES,
];

/// How many names there are.
const COUNT: usize = {
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        count += FAMILIES[family].len();
        family += 1;
    }
    count
};

/// Every name, without subcommands.
pub(crate) static COMMANDS: [Spec; COUNT] = {
    let mut all = [FAMILIES[0][0]; COUNT];
    let (mut at, mut family) = (0, 0);
    while family < FAMILIES.len() {
        let mut member = 0;
        while member < FAMILIES[family].len() {
            all[at] = FAMILIES[family][member];
            at += 1;
            member += 1;
        }
        family += 1;
    }
    all
};

/// Slots of the hash table: at least twice as many as names, so that each lookup is short.
const SLOTS: usize = 512;

const _: () = assert!(2 * COUNT <= SLOTS && COUNT < u8::MAX as usize, "the table of names needs more slots");

/// The names of [`COMMANDS`], each as one number.
static PACKED: [u128; COUNT] = {
    let mut packed = [0; COUNT];
    let mut at = 0;
    while at < COUNT {
        packed[at] = match pack(COMMANDS[at].name.as_bytes()) {
            Some(number) => number,
            None => panic!("a command's name has 1 to 16 bytes"),
        };
        at += 1;
    }
    packed
};

/// For each slot the place of a name, counted from 1; 0 for an empty slot. A name is in the slot of its hash, or in the
/// next one that was free.
static PLACES: [u8; SLOTS] = {
    let mut places = [0; SLOTS];
    let mut at = 0;
    while at < COUNT {
        let mut slot = slot_of(PACKED[at]);
        while places[slot] != 0 {
            assert!(PACKED[places[slot] as usize - 1] != PACKED[at], "a name is twice in the table");
            slot = (slot + 1) % SLOTS;
        }
        places[slot] = at as u8 + 1;
        at += 1;
    }
    places
};

/// A name as one number, ignoring case; `None` for a name that no command can have.
const fn pack(name: &[u8]) -> Option<u128> {
    if name.is_empty() || name.len() > 16 {
        return None;
    }
    let mut packed = 0;
    let mut at = 0;
    while at < name.len() {
        if name[at] == 0 {
            return None;
        }
        packed = packed << 8 | name[at].to_ascii_lowercase() as u128;
        at += 1;
    }
    Some(packed)
}

const fn slot_of(packed: u128) -> usize {
    let folded = packed as u64 ^ ((packed >> 64) as u64).rotate_left(29);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
}

/// Finds the entry of `name`, ignoring case.
pub(crate) fn find_command(name: &[u8]) -> Option<&'static Spec> {
    let packed = pack(name)?;
    let mut slot = slot_of(packed);
    loop {
        let place = usize::from(PLACES[slot]).checked_sub(1)?;
        if PACKED[place] == packed {
            return COMMANDS.get(place);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// Finds the subcommand `word` of a container, ignoring case.
pub(crate) fn find_subcommand(container: &'static Spec, word: &[u8]) -> Option<&'static Spec> {
    container
        .subcommands
        .iter()
        .find(|spec| spec.name.as_bytes()[container.name.len() + 1..].eq_ignore_ascii_case(word))
}

/// Finds a command by its full name: `get` or `client|id`.
pub(crate) fn find_by_full_name(name: &[u8]) -> Option<&'static Spec> {
    let mut words = name.splitn(2, |&byte| byte == b'|');
    let spec = find_command(words.next()?)?;
    match words.next() {
        None => Some(spec),
        Some(word) => find_subcommand(spec, word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_either_case_and_no_other_one() {
        for spec in &COMMANDS {
            let found = |name: &str| find_command(name.as_bytes()).map(|found| found.name);
            assert_eq!(found(spec.name), Some(spec.name));
            assert_eq!(found(&spec.name.to_ascii_uppercase()), Some(spec.name));
            assert_eq!(found(&format!("{}x", spec.name)), None);
        }
        for name in ["", "nothing", "get\0", "a name that is far too long"] {
            assert!(find_command(name.as_bytes()).is_none(), "{name}");
        }
    }
}
