//! The takeover machine under any events that can happen to it: nobody is fenced whose counter moved, nobody asks or
//! yields out of turn.

use super::Input;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::reign::takeover::{Config, Effect, Event, Refusal, Seen, Takeover};

/// Where the master stands, as its caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Replaying,
    Standby,
    Waiting,
    Recovering,
    Reigning,
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
    let mut now = Millis(0);
    let mut machine = Takeover::new(config, now);
    let mut stage = Stage::Replaying;
    // The holder's counter, and since when it was seen to stand there without a break.
    let mut beat: Option<(Option<u64>, Millis)> = None;
    let mut last_step = now;
    let mut resumed = now;
    let mut asked = false;
    let mut offered = false;
    let mut peer_active = false;
    while !input.is_empty() {
        let pace = input.u8();
        // Mostly the pace of the watcher's looks, now and then a pause of our own.
        now = now.plus(if pace < 240 { u64::from(pace % 64) } else { 1000 * u64::from(pace - 239) });
        let Some(event) = event(input.u8(), input.u8(), stage) else { continue };
        if now.since(last_step) > (config.failover_timeout_ms / 4).max(100) {
            resumed = now;
        }
        last_step = now;
        match event {
            Event::Looked(Seen::Held { beat: seen }) if stage == Stage::Waiting => match beat {
                Some((last, _)) if last == seen => {}
                _ => beat = Some((seen, now)),
            },
            Event::Looked(Seen::Free) if stage == Stage::Waiting => beat = None,
            Event::Peer { active } => {
                peer_active = active == Some(true);
                asked &= peer_active;
            }
            Event::HandoverRefused => (asked, offered) = (false, false),
            Event::HandoverOffered => offered = true,
            Event::CaughtUp if stage == Stage::Replaying => stage = Stage::Standby,
            Event::LockWon => {
                stage = Stage::Recovering;
                (asked, offered) = (false, false);
                beat = None;
            }
            Event::ReignBegan => stage = Stage::Reigning,
            Event::ReignEnded => stage = Stage::Replaying,
            _ => {}
        }
        let mut effects = Vec::new();
        machine.step(now, event, &mut effects);
        assert!(effects.len() <= 2, "{effects:?}");
        for effect in effects {
            match effect {
                Effect::WaitForLock => {
                    assert_eq!(stage, Stage::Standby, "queued twice or out of turn");
                    stage = Stage::Waiting;
                    beat = None;
                }
                Effect::Fence => {
                    assert_eq!(stage, Stage::Waiting, "a fence by one that does not wait");
                    let (_, since) = beat.expect("a fence without a holder");
                    let stood = now.since(since.max(resumed));
                    assert!(stood >= config.failover_timeout_ms, "a counter that stood for {stood} ms");
                    beat = beat.map(|(counter, _)| (counter, now));
                }
                Effect::AskHandover { forced } => {
                    assert_eq!(stage, Stage::Waiting, "one that does not wait asks");
                    assert!(peer_active && !asked, "asked twice, or nobody");
                    assert!(forced == offered, "an operator's word is made up or forgotten");
                    assert!(forced || (config.preferred && config.failback), "asks by itself");
                    asked = true;
                }
                Effect::GrantHandover => {
                    assert_eq!(stage, Stage::Reigning, "yields what it does not have");
                    assert!(
                        matches!(event, Event::HandoverRequested { follows: true, ready: true, .. }),
                        "{event:?}"
                    );
                }
                Effect::RefuseHandover(refusal) => {
                    let Event::HandoverRequested { follows, ready, forced } = event else {
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
                    };
                    assert!(right, "{refusal:?} to {event:?} as {stage:?}");
                }
            }
        }
        let is_standby = !matches!(stage, Stage::Recovering | Stage::Reigning);
        assert_eq!(machine.is_standby(), is_standby);
    }
}

/// An event that can happen in this stage.
fn event(choice: u8, argument: u8, stage: Stage) -> Option<Event> {
    let event = match choice % 16 {
        0..=5 => {
            let beat = (argument > 3).then_some(u64::from(argument >> 5));
            Event::Looked(if argument == 0 { Seen::Free } else { Seen::Held { beat } })
        }
        6 => Event::CaughtUp,
        7 | 8 => match stage {
            Stage::Waiting => Event::LockWon,
            Stage::Recovering => Event::ReignBegan,
            Stage::Reigning => Event::ReignEnded,
            Stage::Replaying | Stage::Standby => return None,
        },
        9 | 10 => Event::Peer { active: (argument > 8).then_some(argument & 1 == 1) },
        11 | 12 => {
            let follows = argument & 56 != 56;
            Event::HandoverRequested { follows, ready: argument & 1 == 1, forced: argument & 6 == 6 }
        }
        13 => Event::HandoverRefused,
        14 => Event::HandoverOffered,
        _ => Event::Looked(Seen::Free),
    };
    Some(event)
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
