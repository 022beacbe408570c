//! A connected slave, as the master sees it: its link's book, the bytes to it, and what it says it has seen.
//!
//! Owns what must change together: what is sent is noted in the book at once. The book (`machine/link/`) is shared with the
//! [`SlaveProxy`], which ends the link. Never decides when an acknowledgement is late.

use super::send;
use crate::batch::Outbox;
use crate::slave_proxy::{End, EndReason, SharedLink, SlaveProxy};
use crate::timings::Timings;
use actix::Addr;
use bytes::Bytes;
use dsm_protocol::frame;
use dsm_protocol::ids::{ClusterId, Incarnation, Millis, SlaveId, Stamp};
use dsm_protocol::machine::link::{Announcement, Challenge, Quarantine, ReadWindow, Standing, WaitingRead};
use dsm_protocol::machine::master::{Master, ReignRecord};
use dsm_protocol::message::{Control, Message, Seen};
use std::cell::Cell;
use std::rc::Rc;

/// A connected slave.
pub(super) struct SlaveLink {
    id: SlaveId,
    /// All that is known of the link, shared with the proxy.
    book: SharedLink,
    outbox: Outbox,
    proxy: Addr<SlaveProxy>,
    /// The cluster that it named in its hello. If it is ours, it may know of our reigns.
    cluster: Option<ClusterId>,
    /// What it had seen when it said so last.
    seen: Option<Seen>,
    /// What it says it has seen is not in the log: it gets no place in this reign, and nothing of it is dropped.
    disputes: bool,
    /// Where it is counted how long acknowledgements take.
    timings: Rc<Timings>,
    /// The write whose acknowledgement is measured: its number, and when it was sent.
    measured: Cell<Option<(u64, u64)>>,
}

/// What slaves are told of a reign whose EPOCH record is durable.
pub(super) struct Herald {
    pub(super) cluster: ClusterId,
    /// Its own record.
    pub(super) own: ReignRecord,
    /// Whether there are too few slaves without the one that is told.
    pub(super) is_needed: bool,
}

impl SlaveLink {
    /// A slave whose hello, in which it named this cluster and what it had seen, is accepted.
    pub(super) fn new(
        book: SharedLink,
        outbox: Outbox,
        proxy: Addr<SlaveProxy>,
        (cluster, seen): (Option<ClusterId>, Option<Seen>),
        timings: &Rc<Timings>,
    ) -> Self {
        let id = book.borrow().life().id.clone();
        let (timings, measured) = (Rc::clone(timings), Cell::new(None));
        SlaveLink { id, book, outbox, proxy, cluster, seen, disputes: false, timings, measured }
    }

    /// Its name.
    pub(super) fn id(&self) -> &SlaveId {
        &self.id
    }

    /// The way to it.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Which cluster it belonged to when it came.
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// What it had seen when it said so last.
    pub(super) fn seen(&self) -> Option<Seen> {
        self.seen
    }

    /// Whether it has a place in the reign: nobody else is sent what the machine wants sent.
    pub(super) fn is_active(&self) -> bool {
        self.book.borrow().is_active()
    }

    /// Whether it has accepted the reign.
    pub(super) fn has_accepted(&self) -> bool {
        self.book.borrow().has_accepted()
    }

    /// Whether it has failed and does not count yet.
    pub(super) fn is_in_quarantine(&self) -> bool {
        self.book.borrow().is_in_quarantine()
    }

    /// Whether it has failed and waits for the end of its quarantine.
    pub(super) fn waits_for_trial(&self) -> bool {
        self.book.borrow().standing() == Standing::Quarantined
    }

    /// Whether it was sent a trial and has not answered.
    pub(super) fn is_on_trial(&self) -> bool {
        self.book.borrow().standing() == Standing::OnTrial
    }

    /// Whether it may accept the reign now.
    pub(super) fn may_enlist(&self) -> bool {
        self.book.borrow().may_enlist()
    }

    /// Whether what it has seen is not in the log.
    pub(super) fn disputes(&self) -> bool {
        self.disputes
    }

    /// How long it takes to acknowledge, in milliseconds.
    pub(super) fn ack_ms(&self, now: Millis) -> u64 {
        self.book.borrow().ack_ms(now)
    }

    /// Whether reads of it that have gone elsewhere are still to be passed over.
    pub(super) fn is_behind(&self) -> bool {
        self.book.borrow().reads().is_behind()
    }

    /// Reads that had to wait for room in its window.
    pub(super) fn reads_waited(&self) -> u64 {
        self.book.borrow().reads().waited()
    }

    /// Looks into its book.
    pub(super) fn with_book<T>(&self, look: impl FnOnce(&dsm_protocol::machine::link::Link) -> T) -> T {
        look(&self.book.borrow())
    }

    /// Has the link ended.
    pub(super) fn end(&self, reason: EndReason) {
        self.proxy.do_send(End(reason));
    }

    /// Another link has said hello in its name, from the process that is `incarnation`.
    pub(super) fn challenge(&self, now: Millis, incarnation: Incarnation) {
        let challenge = self.book.borrow().challenged(incarnation);
        match challenge {
            Challenge::Replaced => self.end(EndReason::Replaced),
            Challenge::Probed => self.question(now, &Message::Control(Control::Probe)),
        }
    }

    /// Asks for an answer outside the count.
    fn question(&self, now: Millis, message: &Message) {
        send(&self.outbox, message);
        self.book.borrow_mut().note_question(now, self.outbox.queued());
    }

    /// Tells it of the reign. One that has failed is told that it must wait, and then tried first.
    pub(super) fn announce(&mut self, now: Millis, quarantine: &Quarantine, herald: &Herald) {
        let told = self.book.borrow_mut().announce(now, quarantine, herald.is_needed);
        match told {
            Announcement::Nothing => {}
            Announcement::Reign => {
                self.disputes = false;
                let Herald { cluster, own: ReignRecord { reign, first: seq, durable }, .. } = *herald;
                let announced = Control::Announce { cluster, reign, seq, durable };
                self.question(now, &Message::Control(announced));
            }
            Announcement::Trial { bytes } => {
                log::debug!("slave on trial slave={} bytes={bytes}", self.id);
                self.question(now, &Message::Trial { bytes: trial(bytes as usize) });
            }
            Announcement::Quarantined { ms, cause } => {
                let reason = cause.to_string();
                send(&self.outbox, &Message::Control(Control::Quarantined { ms, reason }));
            }
        }
    }

    /// It has taken its trial.
    pub(super) fn took_trial(&self) {
        self.book.borrow_mut().took();
    }

    /// It has accepted the reign, and waits for its place.
    pub(super) fn enlist(&self, room_bytes: u64) {
        self.book.borrow_mut().enlist(room_bytes);
    }

    /// Takes back that it waits for its place; gives the room that it has.
    pub(super) fn take_enlisted(&self) -> Option<u64> {
        self.book.borrow_mut().take_enlisted()
    }

    /// It has its place: its messages are counted from now on. Gives the window of reads of an earlier one.
    pub(super) fn begin(&self, now: Millis) -> ReadWindow {
        self.measured.set(None);
        self.book.borrow_mut().begin(now, self.outbox.queued())
    }

    /// It has no place any more.
    pub(super) fn end_reign(&self) {
        self.book.borrow_mut().end_reign();
    }

    /// Gives its window of reads up.
    pub(super) fn take_reads(&self) -> ReadWindow {
        self.book.borrow_mut().take_reads()
    }

    /// What it has acknowledged or answered is no longer owed, even if it takes a while until the rest of it is done.
    pub(super) fn note_arrived(&self, now: Millis, message: &Message) {
        self.book.borrow_mut().note_arrived(now, message, self.outbox.reached());
    }

    /// How many more writes an ACK covers; `None` for one that it cannot have.
    pub(super) fn note_acked(&self, now: Millis, through: u64) -> Option<u64> {
        if let Some((_, sent_us)) = self.measured.get().filter(|(number, _)| *number <= through) {
            self.timings.acks.note(self.timings.now_us().saturating_sub(sent_us));
            self.measured.set(None);
        }
        self.book.borrow_mut().note_acked(now, through, self.outbox.reached())
    }

    /// How many writes stand in front of the one with that number, which it had no room for.
    pub(super) fn refused(&self, number: u64) -> Option<u64> {
        self.book.borrow().refused(number)
    }

    /// A part of its report is here; whether it was asked for.
    pub(super) fn note_reported(&self) -> bool {
        self.book.borrow_mut().note_reported(self.outbox.reached())
    }

    /// Notes what it says it has seen.
    pub(super) fn note_seen(&mut self, seen: Seen) {
        self.seen = Some(seen);
    }

    /// What it has seen is not in the log; whether that is news of this reign.
    pub(super) fn set_aside(&mut self) -> bool {
        !std::mem::replace(&mut self.disputes, true)
    }

    /// Gives a sign of life, if the last one has left.
    pub(super) fn say_alive(&self) {
        let mut book = self.book.borrow_mut();
        if book.is_to_say_alive(self.outbox.taken()) {
            send(&self.outbox, &Message::Control(Control::Alive));
            book.note_alive(self.outbox.queued());
        }
    }

    /// Sends a value to be held.
    pub(super) fn write(&self, now: Millis, stamp: Stamp, key: &Bytes, value: &Bytes) {
        self.outbox.append_pieces(|out| frame::encode_write(stamp, key, value, out));
        let number = self.book.borrow_mut().note_write(now, self.outbox.queued());
        if self.measured.get().is_none() {
            self.measured.set(Some((number, self.timings.now_us())));
        }
    }

    /// Asks for the next part of its report.
    pub(super) fn ask_for_report(&self) {
        send(&self.outbox, &Message::Control(Control::HoldingsNext));
        self.book.borrow_mut().note_report_asked(self.outbox.queued());
    }

    /// Sends a read, or lets it wait for room in the window.
    pub(super) fn ask(&self, now: Millis, read: WaitingRead, machine: &mut Master) {
        let mut book = self.book.borrow_mut();
        if book.reads_mut().send_now(&read, |read| machine.is_reading(read)) {
            send_read(&self.outbox, &read);
        } else {
            let id = read.read;
            let bytes = book.reads_mut().wait(read);
            machine.read_waits(now, id, bytes);
        }
    }

    /// Notes the answer to the oldest read, and sends what has waited for it and is still wanted.
    pub(super) fn read_answered(&self, machine: &Master) {
        let was_asked = self.book.borrow_mut().reads_mut().answered();
        if was_asked {
            self.read_on(machine);
        }
    }

    /// Sends what has waited for room and is still wanted, as far as that is found in one step.
    pub(super) fn read_on(&self, machine: &Master) {
        let mut book = self.book.borrow_mut();
        book.reads_mut().go_on(|read| machine.is_reading(read), |read| send_read(&self.outbox, read));
    }
}

fn send_read(outbox: &Outbox, read: &WaitingRead) {
    outbox.append(|out| frame::encode_read(read.read.tag(), read.stamp, &read.key, out));
}

/// Bytes that no link between here and there makes shorter.
fn trial(bytes: usize) -> Bytes {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut padding = Vec::with_capacity(bytes + 8);
    while padding.len() < bytes {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        padding.extend_from_slice(&(word ^ (word >> 32)).to_le_bytes());
    }
    padding.truncate(bytes);
    padding.into()
}
