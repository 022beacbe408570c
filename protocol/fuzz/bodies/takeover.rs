//! The machine of the reign under any events of takeover and handover: nobody is fenced whose counter moved, nobody asks or
//! yields out of turn.

use super::Input;
use dsm_protocol::ids::{ClusterId, Epoch, LinkId, Millis, ReignId, Seq, Version};
use dsm_protocol::machine::master::{ReignRecord, Reigns};
use dsm_protocol::machine::reign::may_begin::HEAR_MS;
use dsm_protocol::machine::reign::{
    Config, Effect, Event, HandoverFailure, Hearsay, LeaderSeen, Leadership, Refusal, ReignRole, StoredLog,
    Surroundings,
};
use dsm_protocol::record::Position;
use dsm_protocol::witness_file::WitnessText;

/// Over which link the other master asks.
const STANDBY: LinkId = LinkId(1);

/// Our link to the other master.
const PEER: LinkId = LinkId(2);

/// Where the master stands, as its caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Replaying,
    Standby,
    Waiting,
    Recovering,
    Reigning,
}

/// The log, as far as the machine hears of it.
#[derive(Default)]
struct Log {
    reigns: Reigns,
    last: Version,
}

impl Log {
    fn end(&self) -> Position {
        let reign = self.reigns.last().map(|last| last.reign).unwrap_or_default();
        let Version { epoch, seq } = self.last;
        Position { epoch, seq, reign, cluster: Some(ClusterId(1)), ..Position::default() }
    }

    /// A reign begins: from the lock to the first request.
    fn begin(&mut self, machine: &mut Leadership, now: Millis) {
        let mut effects = Vec::new();
        let end = self.end();
        let read = Some(StoredLog { id: (1, 1), bytes: 1 });
        let recovered = Event::Recovered { log: Some((&end).into()), read, noted: WitnessText::default() };
        for event in [Event::Sighted { follows: true }, Event::Halted, recovered] {
            machine.step(now, event, &mut effects);
        }
        let hearsay = Hearsay { slaves: Vec::new(), has_newcomer: true, reigns: &self.reigns };
        machine.step(now, Event::Heard(hearsay), &mut effects);
        let ReignRole::Opening { epoch, .. } = *machine.role() else { panic!("{:?}", machine.role()) };
        let version = Version { epoch, seq: self.last.seq.next() };
        let reign = dsm_protocol::ids::Reign { epoch, id: ReignId(epoch.0) };
        self.reigns.begin(ReignRecord { reign, first: version.seq, durable: true });
        self.last = version;
        machine.step(now, Event::EpochWritten { version, id: reign.id }, &mut effects);
        machine.step(now, Event::Tick(Surroundings::default()), &mut effects);
        assert!(machine.serves(), "{:?}", machine.role());
    }

    /// A reign ends in a handover.
    fn hand_over(&self, machine: &mut Leadership, now: Millis) {
        let mut effects = Vec::new();
        let asked = Event::HandoverRequested { from: STANDBY, follows: true, ready: true, forced: true };
        for event in [asked, Event::Synced, Event::TurnEnded(Surroundings::default())] {
            machine.step(now, event, &mut effects);
        }
        let closed = Event::Closed { end: self.end(), log: None, reigns: &self.reigns };
        machine.step(now, closed, &mut effects);
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Next {
    Event(Event<'static>),
    ReignBegan,
    ReignEnded,
}

/// `CONFIG` and then steps of time and events.
#[expect(clippy::too_many_lines, reason = "one step after the other, each with its check")]
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.u8();
    let config = Config {
        preferred: settings & 1 == 1,
        failback: settings & 2 == 2,
        failover_timeout_ms: 100 * (1 + u64::from(settings >> 2 & 15)),
        ..Config::default()
    };
    let mut now = Millis(HEAR_MS);
    let mut machine = Leadership::new(config, Millis(0));
    machine.step(Millis(0), Event::StandbyCame { link: STANDBY }, &mut Vec::new());
    // One that was begun by somebody else.
    let mut log = Log { last: Version { epoch: Epoch(0), seq: Seq(1) }, ..Log::default() };
    let mut stage = Stage::Replaying;
    // The holder's counter, and since when it was seen to stand there without a break.
    let mut beat: Option<(Option<u64>, Millis)> = None;
    let mut last_step = Millis(0);
    let mut resumed = Millis(0);
    let mut asked = false;
    let mut offered = false;
    let (mut peer_known, mut peer_active) = (false, false);
    while !input.is_empty() {
        let pace = input.u8();
        // Mostly the pace of the watcher's looks, now and then a pause of our own.
        now = now.plus(if pace < 240 { u64::from(pace % 64) } else { 1000 * u64::from(pace - 239) });
        let Some(next) = event(input.u8(), input.u8(), stage) else { continue };
        if now.since(last_step) > (config.failover_timeout_ms / 4).max(100) {
            resumed = now;
        }
        last_step = now;
        let event = match next {
            Next::Event(event) => event,
            Next::ReignBegan => {
                log.begin(&mut machine, now);
                stage = Stage::Reigning;
                continue;
            }
            Next::ReignEnded => {
                log.hand_over(&mut machine, now);
                stage = Stage::Replaying;
                assert!(machine.is_standby(), "{:?}", machine.role());
                continue;
            }
        };
        match event {
            Event::Looked(LeaderSeen::Leads { beat: seen }) if stage == Stage::Waiting => match beat {
                Some((last, _)) if last == seen => {}
                _ => beat = Some((seen, now)),
            },
            Event::Looked(LeaderSeen::Nobody) if stage == Stage::Waiting => beat = None,
            Event::PeerSaid { active, .. } => {
                (peer_known, peer_active) = (true, active);
                asked &= peer_active;
            }
            Event::PeerLost { .. } => {
                (peer_known, peer_active) = (false, false);
                (asked, offered) = (false, false);
            }
            Event::HandoverRefused { link: PEER } => (asked, offered) = (false, false),
            Event::HandoverOffered { link: PEER } => offered = peer_known,
            Event::CaughtUp if stage == Stage::Replaying => stage = Stage::Standby,
            Event::Won { .. } => {
                stage = Stage::Recovering;
                (asked, offered) = (false, false);
                beat = None;
            }
            _ => {}
        }
        let mut effects = Vec::new();
        machine.step(now, event.clone(), &mut effects);
        // What is wanted of the log, and said, is left to the transcripts.
        effects.retain(|effect| {
            !matches!(
                effect,
                Effect::WatchLeader | Effect::LookAtLog | Effect::Say(_) | Effect::AnswerOperator { .. }
            )
        });
        assert!(effects.len() <= 2, "{effects:?}");
        for effect in effects {
            match effect {
                Effect::QueueToLead => {
                    assert_eq!(stage, Stage::Standby, "queued twice or out of turn");
                    stage = Stage::Waiting;
                    beat = None;
                }
                Effect::Fence { .. } => {
                    assert_eq!(stage, Stage::Waiting, "a master that does not wait fences");
                    let (_, since) = beat.expect("a fence without a holder");
                    let stood = now.since(since.max(resumed));
                    assert!(stood >= config.failover_timeout_ms, "a counter that stood for {stood} ms");
                    beat = beat.map(|(counter, _)| (counter, now));
                }
                Effect::AskForReign { to, forced } => {
                    assert_eq!(to, PEER);
                    assert_eq!(stage, Stage::Waiting, "a master that does not wait asks");
                    assert!(peer_active && !asked, "asked twice, or asked nobody");
                    assert!(forced == offered, "an operator's word is made up or forgotten");
                    assert!(forced || (config.preferred && config.failback), "asks by itself");
                    asked = true;
                }
                Effect::SyncLog => {
                    assert_eq!(stage, Stage::Reigning, "yields what it does not have");
                    assert!(
                        matches!(event, Event::HandoverRequested { follows: true, ready: true, .. }),
                        "{event:?}"
                    );
                    for event in [Event::StandbyGone { link: STANDBY }, Event::StandbyCame { link: STANDBY }]
                    {
                        machine.step(now, event, &mut Vec::new());
                    }
                }
                Effect::RefuseHandover { why: HandoverFailure::Refused(refusal), .. } => {
                    let Event::HandoverRequested { follows, ready, forced, .. } = event else {
                        panic!("{event:?}")
                    };
                    let right = match refusal {
                        Refusal::NotActive => stage != Stage::Reigning,
                        Refusal::OtherLog => stage == Stage::Reigning && !follows,
                        Refusal::NotReady => stage == Stage::Reigning && follows && !ready,
                        Refusal::Unstable { remaining_ms } => {
                            stage == Stage::Reigning
                                && follows
                                && ready
                                && !forced
                                && (1..=64_000).contains(&remaining_ms)
                        }
                        Refusal::Occupied => false,
                    };
                    assert!(right, "{refusal:?} to {event:?} as {stage:?}");
                }
                other => panic!("{event:?} makes it want {other:?}"),
            }
        }
        let is_standby = !matches!(stage, Stage::Recovering | Stage::Reigning);
        assert_eq!(machine.is_standby(), is_standby);
    }
}

/// Now and then somebody speaks to whom nobody has listened.
fn peer_or_another(argument: u8) -> LinkId {
    if argument < 224 {
        PEER
    } else {
        LinkId(PEER.0 + 1)
    }
}

/// What can happen in this stage.
fn event(choice: u8, argument: u8, stage: Stage) -> Option<Next> {
    let event = match choice % 16 {
        0..=5 => {
            let beat = (argument > 3).then_some(u64::from(argument >> 5));
            Event::Looked(if argument == 0 { LeaderSeen::Nobody } else { LeaderSeen::Leads { beat } })
        }
        6 => Event::CaughtUp,
        7 | 8 => match stage {
            Stage::Waiting => Event::Won { cluster: None, epoch: None },
            Stage::Recovering => return Some(Next::ReignBegan),
            Stage::Reigning => return Some(Next::ReignEnded),
            Stage::Replaying | Stage::Standby => return None,
        },
        9 | 10 if argument > 8 => Event::PeerSaid { link: PEER, active: argument & 1 == 1, epoch: Epoch(0) },
        9 | 10 => Event::PeerLost { link: PEER },
        11 | 12 => {
            let (follows, ready) = (argument & 56 != 56, argument & 1 == 1);
            Event::HandoverRequested { from: STANDBY, follows, ready, forced: argument & 6 == 6 }
        }
        13 => Event::HandoverRefused { link: peer_or_another(argument) },
        14 => Event::HandoverOffered { link: peer_or_another(argument) },
        _ => Event::Looked(LeaderSeen::Nobody),
    };
    Some(Next::Event(event))
}

/// A holder that hangs, a failback, and noise.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut hangs = vec![0b1011, 1, 6, 0, 20, 0, 80];
    hangs.extend((0..40).flat_map(|_| [40, 0, 100]));
    hangs.extend_from_slice(&[10, 7, 0, 10, 7, 0, 20, 11, 7, 10, 7, 0]);
    let mut failback = vec![0b1011, 1, 6, 0, 5, 9, 9];
    failback.extend((0..60).flat_map(|beat: u8| [40, 0, (beat % 8) * 32 + 4]));
    failback.extend_from_slice(&[5, 13, 0, 5, 14, 0, 5, 9, 9]);
    vec![hangs, failback, super::noise(5, 300), super::noise(6, 900)]
}
