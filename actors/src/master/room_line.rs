//! Sessions with requests that are put aside until there is room for their answers, in the order in which they go on.
//!
//! Owns that order: whoever has waited longest for room among the answers of all gets it first. The requests themselves wait
//! in their sessions. Never decides whether there is room: the session does.

use super::clients::DEAF;
use crate::door::session::Room;
use dsm_protocol::ids::{Millis, SessionId};
use std::collections::VecDeque;

/// So many requests that were put aside are looked at in one turn.
pub(super) const RESUMED_MAX: usize = 1024;

/// The sessions that wait.
#[derive(Default)]
pub(super) struct RoomLine {
    /// Until their own answers have left.
    congested: VecDeque<SessionId>,
    /// Until answers of others have left, and since when. The first in line is the first to go on.
    in_line: VecDeque<(SessionId, Millis)>,
}

/// A session that is to be looked at.
#[derive(Clone, Copy)]
pub(super) enum LineWaiter {
    /// It waits for answers of others, since then.
    InLine(SessionId, Millis),
    /// It waits for its own answers.
    Congested(SessionId),
}

impl LineWaiter {
    /// Which.
    pub(super) fn session(self) -> SessionId {
        match self {
            LineWaiter::InLine(session, _) | LineWaiter::Congested(session) => session,
        }
    }
}

/// One look at all that wait, of [`RESUMED_MAX`] requests at most.
pub(super) struct Round {
    left: usize,
    /// How many in line are still to be looked at.
    in_line: usize,
    /// The same of the congested ones, once it is their turn.
    congested: Option<usize>,
    /// A congested one that may go on with its next request.
    again: Option<SessionId>,
}

impl RoomLine {
    /// Notes that a session has requests that are put aside.
    pub(super) fn set_aside(&mut self, now: Millis, session: SessionId, room: Room) {
        match room {
            Room::NotHere => self.congested.push_back(session),
            Room::NotInAll => self.in_line.push_back((session, now)),
            Room::Yes => {}
        }
    }

    /// The turn ends before a session was looked at to its end: it is the first one in the next turn.
    pub(super) fn is_first_again(&mut self, session: SessionId) {
        self.congested.push_front(session);
    }

    /// Begins a look at all that wait.
    pub(super) fn round(&self) -> Round {
        Round { left: RESUMED_MAX, in_line: self.in_line.len(), congested: None, again: None }
    }

    /// Which session is to be looked at next; [`resumed`](Self::resumed) takes what came of it. Whoever has waited longest
    /// for room among all gets it first, and then waits for all others.
    pub(super) fn next(&mut self, round: &mut Round) -> Option<LineWaiter> {
        if round.left == 0 {
            if let Some(session) = round.again.take() {
                self.is_first_again(session);
            }
            return None;
        }
        if round.in_line > 0 {
            if let Some((session, since)) = self.in_line.pop_front() {
                round.in_line -= 1;
                round.left -= 1;
                return Some(LineWaiter::InLine(session, since));
            }
        }
        let session = round.again.take().or_else(|| {
            let congested = round.congested.get_or_insert(self.congested.len());
            *congested = congested.checked_sub(1)?;
            self.congested.pop_front()
        })?;
        round.left -= 1;
        Some(LineWaiter::Congested(session))
    }

    /// What came of a look at a session: whether one of its requests was executed, or where there is no room for it.
    pub(super) fn resumed(
        &mut self,
        now: Millis,
        waiting: LineWaiter,
        outcome: Result<bool, Room>,
        round: &mut Round,
    ) {
        match (waiting, outcome) {
            (_, Ok(false)) => {}
            (LineWaiter::InLine(session, _), Ok(true)) => self.in_line.push_back((session, now)),
            (LineWaiter::Congested(session), Ok(true)) => round.again = Some(session),
            (LineWaiter::InLine(session, since), Err(Room::NotInAll)) => {
                self.in_line.push_front((session, since));
                round.in_line = 0;
            }
            (LineWaiter::InLine(session, _) | LineWaiter::Congested(session), Err(room)) => {
                self.set_aside(now, session, room);
            }
        }
    }

    /// Whether the first in line has waited for as long as a client may be deaf.
    pub(super) fn has_waited(&self, now: Millis) -> bool {
        self.in_line.front().is_some_and(|(_, since)| now.since(*since) >= DEAF.as_millis() as u64)
    }

    /// Those in line of which `is_late` says so, up to [`RESUMED_MAX`].
    pub(super) fn late(&self, is_late: impl Fn(SessionId) -> bool) -> Vec<SessionId> {
        self.in_line.iter().map(|(id, _)| *id).filter(|id| is_late(*id)).take(RESUMED_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(line: &mut RoomLine, outcome: impl Fn(LineWaiter) -> Result<bool, Room>) -> Vec<u64> {
        let mut round = line.round();
        let mut order = Vec::new();
        while let Some(waiting) = line.next(&mut round) {
            order.push(waiting.session().0);
            line.resumed(Millis(9), waiting, outcome(waiting), &mut round);
        }
        order
    }

    #[test]
    fn the_first_in_line_without_room_keeps_its_place_and_lets_only_the_congested_pass() {
        let mut line = RoomLine::default();
        line.set_aside(Millis(1), SessionId(1), Room::NotInAll);
        line.set_aside(Millis(2), SessionId(2), Room::NotInAll);
        line.set_aside(Millis(3), SessionId(3), Room::NotHere);
        let full = |waiting| match waiting {
            LineWaiter::InLine(..) => Err(Room::NotInAll),
            LineWaiter::Congested(_) => Ok(false),
        };
        assert_eq!(order(&mut line, full), [1, 3]);
        // It has waited since it came, and the second one goes on after it.
        assert!(line.has_waited(Millis(1001)));
        assert_eq!(order(&mut line, |_| Ok(false)), [1, 2]);
        assert_eq!(order(&mut line, |_| Ok(false)), [] as [u64; 0]);
    }

    #[test]
    fn a_congested_session_goes_on_until_the_turn_ends_and_is_then_the_first() {
        let mut line = RoomLine::default();
        line.set_aside(Millis(1), SessionId(1), Room::NotHere);
        line.set_aside(Millis(1), SessionId(2), Room::NotHere);
        let all = order(&mut line, |_| Ok(true));
        assert_eq!(all, vec![1; RESUMED_MAX]);
        assert_eq!(order(&mut line, |_| Ok(false)), [1, 2]);
    }

    #[test]
    fn a_session_that_went_on_waits_for_all_others_in_line() {
        let mut line = RoomLine::default();
        line.set_aside(Millis(1), SessionId(1), Room::NotInAll);
        line.set_aside(Millis(2), SessionId(2), Room::NotInAll);
        let first_goes_on = |waiting: LineWaiter| Ok(waiting.session() == SessionId(1));
        assert_eq!(order(&mut line, first_goes_on), [1, 2]);
        assert_eq!(order(&mut line, |_| Ok(false)), [1]);
    }
}
