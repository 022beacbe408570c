//! The numbers of the counted messages on a link. Both ends count them.
//!
//! Owns how many messages were sent, through which number they are acknowledged, and which one is a ping. The master
//! machine knows what each write was for. It is told how many of its writes an acknowledgement covers, and sees no
//! numbers.

/// The count of one link. Messages are numbered from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    sent: u64,
    acked: u64,
    /// The number of the ping that is not acknowledged. One at a time is enough.
    ping: Option<u64>,
}

impl Count {
    /// How many messages were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether a ping is on its way.
    pub fn is_pinged(&self) -> bool {
        self.ping.is_some()
    }

    /// Counts one write more as sent over this link.
    pub fn write(&mut self) {
        self.sent += 1;
    }

    /// Counts a ping; false when one is on its way already, so that no other is to be sent.
    pub fn ping(&mut self) -> bool {
        let may = self.ping.is_none();
        if may {
            self.sent += 1;
            self.ping = Some(self.sent);
        }
        may
    }

    /// Whether an acknowledgement through `through` is possible: it covers nothing that was never sent, and no less than
    /// the previous one.
    pub fn is_possible(&self, through: u64) -> bool {
        (self.acked..=self.sent).contains(&through)
    }

    /// Notes an acknowledgement, and gives how many writes it newly covers. `None` when it is impossible.
    pub fn ack(&mut self, through: u64) -> Option<u64> {
        if !self.is_possible(through) {
            return None;
        }
        let mut writes = through - self.acked;
        if self.ping.is_some_and(|ping| ping <= through) {
            self.ping = None;
            writes -= 1;
        }
        self.acked = through;
        Some(writes)
    }

    /// How many unacknowledged writes were sent before message `number`, which the slave has refused. `None` when no
    /// such write is on its way.
    pub fn writes_before(&self, number: u64) -> Option<u64> {
        if number <= self.acked || number > self.sent || self.ping == Some(number) {
            return None;
        }
        let pings = u64::from(self.ping.is_some_and(|ping| ping < number));
        Some(number - self.acked - 1 - pings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_has_a_number_and_is_no_write() {
        let mut count = Count::default();
        count.write();
        assert!(count.ping());
        assert!(!count.ping(), "one is on its way");
        count.write();
        assert_eq!([1, 2, 3, 4].map(|number| count.writes_before(number)), [Some(0), None, Some(1), None]);
        assert_eq!(count.ack(1), Some(1));
        assert_eq!([1, 2, 3].map(|number| count.writes_before(number)), [None, None, Some(0)]);
        assert_eq!(count.ack(3), Some(1), "the ping and a write");
        assert!(count.ping());
        assert_eq!((count.sent(), count.ack(4)), (4, Some(0)));
    }

    #[test]
    fn an_impossible_acknowledgement_changes_nothing() {
        let mut count = Count::default();
        count.write();
        count.write();
        assert_eq!(count.ack(3), None, "never sent");
        assert_eq!(count.ack(1), Some(1));
        assert_eq!(count.ack(0), None, "backwards");
        assert_eq!(count.ack(1), Some(0), "a repeated ACK is allowed");
        assert_eq!(count.ack(2), Some(1));
    }
}
