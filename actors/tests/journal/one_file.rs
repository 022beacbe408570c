//! What a file that masters share must keep beside the contract: its lock may be given up in the turn in which something was
//! asked, and nothing is done to the file without it.

use crate::rigs::{OneFile, Rig};
use crate::suite::{Part, QUIET};
use dsm::journal::LogRequest;
use dsm_protocol::ids::{Epoch, UnixMillis};
use tokio::time::sleep;

impl Part {
    /// Wins, and stops following.
    async fn win(&mut self) {
        self.journal.ask(LogRequest::Queue);
        self.hear("won").await;
        self.journal.ask(LogRequest::Halt);
        self.hear("halted").await;
    }

    /// Gives up what it has just asked for, and waits for what may come of it.
    async fn give_up_at_once(&mut self, asked: LogRequest) {
        self.journal.ask(asked);
        self.journal.ask(LogRequest::GiveUp);
        sleep(QUIET).await;
        self.listen();
    }
}

#[test]
fn no_log_is_made_or_opened_without_the_lock() {
    OneFile::run(|rig| async move {
        let mut part = Part::join(&rig, "one:1");
        part.win().await;
        part.give_up_at_once(LogRequest::Open { makes: true }).await;
        assert!(!part.heard.contains(&"opened"), "{:?}", part.heard);
        assert_eq!(rig.content(), None, "no log is made");
    });
}

#[test]
fn no_reign_is_begun_without_the_lock() {
    OneFile::run(|rig| async move {
        let mut part = Part::join(&rig, "one:1");
        part.win().await;
        part.journal.ask(LogRequest::Open { makes: true });
        part.hear("opened").await;
        part.give_up_at_once(LogRequest::Begin {
            epoch: Epoch(1),
            given_up: Vec::new(),
            time: UnixMillis(1_000),
        })
        .await;
        assert!(!part.heard.contains(&"begun"), "{:?}", part.heard);
        assert_eq!(rig.content(), Some(Vec::new()), "nothing is written");
    });
}

#[test]
fn the_next_master_that_wins_the_lock_leads() {
    OneFile::run(|rig| async move {
        let mut part = Part::join(&rig, "one:1");
        let mut next = Part::join(&rig, "two:1");
        part.win().await;
        next.journal.ask(LogRequest::Queue);
        part.journal.ask(LogRequest::Open { makes: true });
        part.hear("opened").await;
        part.give_up_at_once(LogRequest::Begin {
            epoch: Epoch(1),
            given_up: Vec::new(),
            time: UnixMillis(1_000),
        })
        .await;
        next.hear("won").await;
        next.reign().await;
        assert!(!part.heard.contains(&"begun"), "{:?}", part.heard);
    });
}
