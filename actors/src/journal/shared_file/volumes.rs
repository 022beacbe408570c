//! The files in which the values stand that the directory names.
//!
//! A log that is compacted moves to another file, and the places in the directory follow it little by little. Until none
//! names the old file it stays open, though it has no name any more. Owns these handles; never reads.

use crate::env::File;
use dsm_protocol::record::FileNumber;
use std::rc::Rc;

/// The log's file, and those that it was before.
#[derive(Default)]
pub(crate) struct Volumes {
    number: FileNumber,
    current: Option<Rc<dyn File>>,
    /// Those that some place may still name, oldest first.
    old: Vec<(FileNumber, Rc<dyn File>)>,
}

impl Volumes {
    /// The number of the log's file.
    pub(crate) fn number(&self) -> FileNumber {
        self.number
    }

    /// Values are read by this handle of the log's file.
    pub(in crate::journal) fn read_by(&mut self, file: Rc<dyn File>) {
        self.current = Some(file);
    }

    /// The log is let go: a handle of its file would keep it locked. Nothing is read any more.
    pub(in crate::journal) fn let_go(&mut self) {
        self.current = None;
    }

    /// The log is replayed from its start: no place names a file of before. Gives the number for the places that are to come.
    pub(crate) fn begin_anew(&mut self) -> FileNumber {
        self.number = self.number.next();
        self.current = None;
        self.old.clear();
        self.number
    }

    /// The log goes on in another file; places in the old one, of which `old` is a handle, are named until they are forgotten.
    pub(crate) fn go_on_in(&mut self, file: Rc<dyn File>, old: Option<Rc<dyn File>>) -> FileNumber {
        if let Some(old) = self.current.take().or(old) {
            self.old.push((self.number, old));
        }
        self.number = self.number.next();
        self.current = Some(file);
        self.number
    }

    /// A handle of the log's file.
    pub(in crate::journal) fn current(&self) -> Option<Rc<dyn File>> {
        self.current.clone()
    }

    /// A handle of that file, if it is open.
    pub(in crate::journal) fn file(&self, number: FileNumber) -> Option<Rc<dyn File>> {
        if number == self.number {
            return self.current.clone();
        }
        self.old.iter().find(|(old, _)| *old == number).map(|(_, file)| Rc::clone(file))
    }

    /// The files that some place may still name beside the log's own.
    pub(in crate::journal) fn old(&self) -> Vec<FileNumber> {
        self.old.iter().map(|(number, _)| *number).collect()
    }

    /// No place names this file any more.
    pub(in crate::journal) fn forget(&mut self, number: FileNumber) {
        self.old.retain(|(old, _)| *old != number);
    }
}
