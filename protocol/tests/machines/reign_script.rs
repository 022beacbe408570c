//! Transcripts of the machine of the reign. Each line is something that happens; what is wanted then stands below, and in
//! brackets the role that the master has now, when that changed. Time goes on by `at MS`.

use crate::scripts::{run_all, show_reply, Res};
use dsm_protocol::ids::{ClusterId, Epoch, LinkId, Millis, Reign, ReignId, Seq, SessionId, SlaveId, Version};
use dsm_protocol::machine::master::{Asker, ReignRecord, Reigns};
use dsm_protocol::machine::reign::{
    may_begin, Config, Effect, Event, Hearsay, LeaderSeen, Leadership, ReignRole, StoredLog, Surroundings,
};
use dsm_protocol::message;
use dsm_protocol::record::Position;
use dsm_protocol::witness_file::WitnessText;
use std::fmt::Write as _;

const OURS: ClusterId = ClusterId(1);

/// The log that a master takes over and writes, as far as its machine hears of it.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) reigns: Reigns,
    last: Version,
}

impl Log {
    /// Its end.
    pub(crate) fn end(&self) -> Position {
        let reign = self.reigns.last().map(|record| record.reign).unwrap_or_default();
        Position {
            seq: self.last.seq,
            epoch: self.last.epoch,
            reign,
            cluster: Some(OURS),
            ..Position::default()
        }
    }

    /// An EPOCH record; the id of its reign is ten times its epoch.
    fn begin(&mut self, epoch: Epoch) -> (Version, ReignId) {
        self.last = Version { epoch, seq: self.last.seq.next() };
        let reign = Reign::new(epoch.0, epoch.0 * 10);
        self.reigns.begin(ReignRecord { reign, first: self.last.seq, durable: true });
        (self.last, reign.id)
    }
}

/// From the leadership to the log that is read: nothing is wrong with it.
pub(crate) fn take_over(machine: &mut Leadership, now: Millis, log: &mut Log) {
    if log.last.seq == Seq(0) {
        log.begin(Epoch(1));
    }
    let end = log.end();
    let read = Some(StoredLog { id: (1, 1), bytes: 100 });
    let recovered = Event::Recovered { log: Some((&end).into()), read, noted: WitnessText::default() };
    for event in [Event::Sighted { follows: true }, Event::Halted, recovered] {
        machine.step(now, event, &mut Vec::new());
    }
}

/// From the log that is read to the first request, of a master that need not wait for what others know.
pub(crate) fn begin_reign(machine: &mut Leadership, now: Millis, log: &mut Log) {
    let link = LinkId(1);
    let warm = Event::PeerSaid { link, active: true, epoch: Epoch(0) };
    let mut effects = Vec::new();
    machine.step(now, warm, &mut effects);
    machine.step(now, Event::PeerLost { link }, &mut effects);
    let hearsay = Hearsay { slaves: Vec::new(), has_newcomer: false, reigns: &log.reigns };
    machine.step(now, Event::Heard(hearsay), &mut effects);
    let ReignRole::Opening { epoch, .. } = *machine.role() else { panic!("{:?}", machine.role()) };
    let (version, id) = log.begin(epoch);
    machine.step(now, Event::EpochWritten { version, id }, &mut effects);
    machine.step(now, Event::Tick(Surroundings::default()), &mut effects);
    assert!(machine.serves(), "{:?}", machine.role());
}

#[test]
fn reign() {
    run_all("reign", || Runner::new(Config::default()));
}

struct Runner {
    machine: Leadership,
    log: Log,
    around: Surroundings,
    slaves: Vec<(SlaveId, ClusterId, Option<message::Seen>)>,
    has_newcomer: bool,
    now: u64,
}

fn name(role: &ReignRole) -> &'static str {
    match role {
        ReignRole::Standby { .. } => "standby",
        ReignRole::Barred { .. } => "barred",
        ReignRole::Halting => "halting",
        ReignRole::Recovering { .. } => "recovering",
        ReignRole::Waiting(_) => "waiting",
        ReignRole::Opening { .. } => "opening",
        ReignRole::Announcing { .. } => "announcing",
        ReignRole::Doubting { .. } => "doubting",
        ReignRole::Serving { .. } => "serving",
        ReignRole::Preparing { .. } => "preparing",
        ReignRole::Yielding { .. } => "yielding",
        ReignRole::Closing { .. } => "closing",
        ReignRole::Losing { .. } => "losing",
        ReignRole::Stopping { .. } => "stopping",
        ReignRole::Departing { .. } => "departing",
        ReignRole::Ended => "ended",
    }
}

fn show(effect: &Effect, machine: &Leadership) -> String {
    match effect {
        Effect::WatchLeader => "watch who leads".to_owned(),
        Effect::QueueToLead => "queue to lead".to_owned(),
        Effect::Fence { beat } => format!("fence the leader whose counter stands at {beat:?}"),
        Effect::LeaveQueue => "leave the queue to lead".to_owned(),
        Effect::StopLeading => "stop leading".to_owned(),
        Effect::LookAtLog => "check that the log continues what was replayed".to_owned(),
        Effect::StopFollowing => "stop following the log".to_owned(),
        Effect::Follow => "follow the log".to_owned(),
        Effect::FollowAnew => "forget what was replayed, follow what is there".to_owned(),
        Effect::Recover { makes_log } => format!("recover the log makes_log={makes_log}"),
        Effect::LetGoOfLog => "release the log".to_owned(),
        Effect::FindLog => "find the log".to_owned(),
        Effect::NoteWitnesses(text) => format!("note witnesses {:?}", text.to_string()),
        Effect::WriteEpoch { epoch, given_up } => format!("write EPOCH {epoch} given_up={given_up:?}"),
        Effect::Declare { serves } => format!("declare serves={serves}"),
        Effect::BeginReign { version, id } => format!("begin reign {id} at {version}"),
        Effect::Announce => "announce the reign to the slaves".to_owned(),
        Effect::GivePlaces => "give slaves their places".to_owned(),
        Effect::EndReign => "end the reign, take the slaves' places".to_owned(),
        Effect::StanceChanged => format!("requests: {:?}", machine.stance()),
        Effect::TellState => "tell masters who serves".to_owned(),
        Effect::NameCluster(cluster) => format!("name cluster {cluster}"),
        Effect::SyncLog => "sync the log".to_owned(),
        Effect::CloseLog => "close the log".to_owned(),
        Effect::AskLogBack => "ask for the log back".to_owned(),
        Effect::AbandonLog => "abandon the log".to_owned(),
        Effect::OfferReign => "offer the reign".to_owned(),
        Effect::AskForReign { to, forced } => format!("ask for the reign over link {to} forced={forced}"),
        Effect::RefuseHandover { to, why } => format!("refuse standby {to}: {why}"),
        Effect::AnswerOperator { to, reply } => format!("answer s{}: {}", to.session, show_reply(reply)),
        Effect::StopAccepting => "close the port".to_owned(),
        Effect::AskForwarders => "ask masters whether they forward".to_owned(),
        Effect::LetClientsGo { silent_too } => format!("dismiss clients silent_too={silent_too}"),
        Effect::End(ending) => format!("end the node: {ending:?}"),
        Effect::Say(saying) => format!("say: {saying:?}"),
    }
}

impl Runner {
    fn new(config: Config) -> Self {
        Runner {
            machine: Leadership::new(config, Millis(0)),
            log: Log::default(),
            around: Surroundings { log_follows: true, ..Surroundings::default() },
            slaves: Vec::new(),
            has_newcomer: false,
            now: 0,
        }
    }

    fn step(&mut self, event: Event<'_>, out: &mut String) {
        step(&mut self.machine, self.now, event, out);
    }
}

fn step(machine: &mut Leadership, now: u64, event: Event<'_>, out: &mut String) {
    let before = name(machine.role());
    let mut effects = Vec::new();
    machine.step(Millis(now), event, &mut effects);
    for effect in effects {
        writeln!(out, "{}", show(&effect, machine)).unwrap();
    }
    let after = name(machine.role());
    if before != after {
        writeln!(out, "[{after}]").unwrap();
    }
}

type Args<'a> = goldenscript::ArgumentConsumer<'a>;

fn number(args: &mut Args<'_>, key: &str, or: u64) -> Res<u64> {
    Ok(args.take_key(key).map_or(Ok(or), str::parse)?)
}

fn flag(args: &mut Args<'_>, key: &str, or: bool) -> Res<bool> {
    Ok(args.take_key(key).map_or(Ok(or), str::parse)?)
}

/// `EPOCH.ID.SEQ`: through which seq of which reign somebody has seen the log.
fn saw(text: &str) -> Res<message::Seen> {
    let numbers: Vec<u64> = text.split('.').map(str::parse).collect::<Result<_, _>>()?;
    let [epoch, id, seq] = numbers[..] else { return Err(format!("{text} is no EPOCH.ID.SEQ").into()) };
    Ok(message::Seen { reign: Reign::new(epoch, id), seq: Seq(seq), durable: true })
}

/// `log=NUMBER.BYTES`, or nothing.
fn stored(args: &mut Args<'_>) -> Res<Option<StoredLog>> {
    let Some(text) = args.take_key("log") else { return Ok(None) };
    let (number, bytes) = text.split_once('.').ok_or("log=NUMBER.BYTES")?;
    Ok(Some(StoredLog { id: (1, number.parse()?), bytes: bytes.parse()? }))
}

impl Runner {
    /// Words that set the scene; whether it was one of them.
    fn scene(&mut self, word: &str, args: &mut Args<'_>) -> Res<bool> {
        match word {
            // master [preferred=false] [failback=false] [new=true]: a new machine, at 0.
            "master" => {
                let preferred = flag(args, "preferred", true)?;
                let failback = flag(args, "failback", true)?;
                let new = flag(args, "new", false)?;
                *self = Runner::new(Config { preferred, failback, new, ..Config::default() });
            }
            // at MS: time goes on.
            "at" => self.now = args.next_pos().ok_or("when")?.parse()?,
            // serving: one that has taken over a log of one reign, and serves.
            "serving" => {
                let mut effects = Vec::new();
                let won = Event::Won { cluster: None, epoch: None };
                self.machine.step(Millis(self.now), Event::CaughtUp, &mut effects);
                self.machine.step(Millis(self.now), won, &mut effects);
                take_over(&mut self.machine, Millis(self.now), &mut self.log);
                begin_reign(&mut self.machine, Millis(self.now), &mut self.log);
            }
            // standbys N: other masters are connected, over the links 1 to N.
            "standbys" => {
                for link in 1..=args.next_pos().ok_or("how many")?.parse()? {
                    let came = Event::StandbyCame { link: LinkId(link) };
                    self.machine.step(Millis(self.now), came, &mut Vec::new());
                }
            }
            // around [in_flight=N] [behind=B] [dialed=B] [may_forward=B] [undecided=N] [clients=N] [follows=B]
            "around" => {
                let around = &mut self.around;
                around.in_flight = number(args, "in_flight", around.in_flight as u64)? as usize;
                around.is_behind = flag(args, "behind", around.is_behind)?;
                around.has_dialed = flag(args, "dialed", around.has_dialed)?;
                around.may_forward = flag(args, "may_forward", around.may_forward)?;
                around.slaves_undecided = number(args, "undecided", around.slaves_undecided as u64)? as usize;
                around.clients_left = number(args, "clients", around.clients_left as u64)? as usize;
                around.log_follows = flag(args, "follows", around.log_follows)?;
            }
            // log EPOCH...: the log has these reigns.
            "log" => {
                self.log = Log::default();
                while let Some(epoch) = args.next_pos() {
                    self.log.begin(Epoch(epoch.parse()?));
                }
            }
            // slave ID cluster=N [saw=EPOCH.ID.SEQ]: is connected, and says so. newcomer: one of no cluster is.
            "slave" => {
                let id = SlaveId::new(args.next_pos().ok_or("which")?)?;
                let cluster = ClusterId(number(args, "cluster", 1)?);
                let seen = args.take_key("saw").map(saw).transpose()?;
                self.slaves.push((id, cluster, seen));
            }
            "newcomer" => self.has_newcomer = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each word of the scripts, each short")]
    fn event(&mut self, word: &str, args: &mut Args<'_>) -> Res<Event<'static>> {
        let epoch = args.take_key("epoch").map(str::parse).transpose()?.map(Epoch);
        let in_epoch = epoch.unwrap_or(Epoch(1));
        Ok(match word {
            "tick" => Event::Tick(self.around),
            "turn_ended" => Event::TurnEnded(self.around),
            "caught_up" => Event::CaughtUp,
            "nobody_leads" => Event::Looked(LeaderSeen::Nobody),
            "somebody_leads" => Event::Looked(LeaderSeen::Leads { beat: Some(number(args, "beat", 1)?) }),
            // won [cluster=N] [epoch=N]: what the last leader has declared.
            "won" => {
                let cluster = args.take_key("cluster").map(str::parse::<u64>).transpose()?.map(ClusterId);
                Event::Won { cluster, epoch: epoch.or(cluster.and(Some(Epoch(1)))) }
            }
            "sighted" => Event::Sighted { follows: flag(args, "follows", true)? },
            "halted" => Event::Halted,
            // recovered [log=NUMBER.BYTES] [noted=SLAVE:EPOCH.ID.SEQ]: the log is read, or there is none.
            "recovered" => {
                let read = stored(args)?;
                let mut noted = WitnessText::default();
                if let Some((slave, seen)) = args.take_key("noted").and_then(|text| text.split_once(':')) {
                    noted.cluster = Some(OURS);
                    noted.note(SlaveId::new(slave)?, saw(seen)?);
                }
                let log = read.map(|_| may_begin::Log::from(&self.log.end()));
                Event::Recovered { log, read, noted }
            }
            "log_found" => Event::LogFound(stored(args)?),
            "epoch_written" => {
                let (version, id) = self.log.begin(in_epoch);
                Event::EpochWritten { version, id }
            }
            "accused" => {
                let slave = SlaveId::new(args.next_pos().ok_or("by whom")?)?;
                Event::Accused { slave, seen: saw(args.take_key("saw").ok_or("of what")?)? }
            }
            "synced" => Event::Synced,
            "reopened" => Event::Reopened,
            "deposed" => Event::Deposed,
            "lost" => Event::Lost,
            "answered" => Event::Answered,
            "failed" => Event::Failed,
            "stop" => Event::StopAsked,
            "slave_came" => {
                let slave = SlaveId::new(args.next_pos().ok_or("which")?)?;
                let cluster = args.take_key("cluster").map(str::parse::<u64>).transpose()?;
                Event::SlaveCame { slave, cluster: cluster.map(ClusterId) }
            }
            "peer_named" => Event::PeerNamed { cluster: Some(ClusterId(number(args, "cluster", 1)?)) },
            "peer_active" => {
                Event::PeerSaid { link: LinkId(number(args, "link", 1)?), active: true, epoch: in_epoch }
            }
            "peer_stands_by" => {
                Event::PeerSaid { link: LinkId(number(args, "link", 1)?), active: false, epoch: in_epoch }
            }
            "peer_lost" => Event::PeerLost { link: LinkId(number(args, "link", 1)?) },
            // refused_by N of=PEERS: so many of the other masters refuse this one.
            "refused_by" => Event::Refused {
                refusing: args.next_pos().ok_or("by how many")?.parse()?,
                peers: number(args, "of", 1)? as usize,
            },
            "requested" => Event::HandoverRequested {
                from: LinkId(number(args, "from", 1)?),
                follows: flag(args, "follows", true)?,
                ready: flag(args, "ready", true)?,
                forced: flag(args, "forced", true)?,
            },
            "refused" => Event::HandoverRefused { link: LinkId(number(args, "link", 1)?) },
            "offered" => Event::HandoverOffered { link: LinkId(number(args, "link", 1)?) },
            "standby_gone" => Event::StandbyGone { link: LinkId(number(args, "link", 1)?) },
            // failover sN [deadline=MS]: an operator wants it.
            "failover" => {
                let session = args.next_pos().ok_or("who")?.trim_start_matches('s').parse()?;
                let asker = Asker { session: SessionId(session), tag: 1 };
                let deadline = Millis(number(args, "deadline", 2000)?);
                Event::FailoverAsked { asker, deadline }
            }
            "session_closed" => {
                let session = args.next_pos().ok_or("which")?.trim_start_matches('s').parse()?;
                Event::SessionClosed { session: SessionId(session) }
            }
            other => return Err(format!("no such command {other}").into()),
        })
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        let word = command.name.as_str();
        if self.scene(word, &mut args)? {
            args.reject_next()?;
            return Ok(out);
        }
        match word {
            // heard: what those who are connected say.
            "heard" => {
                let (slaves, has_newcomer) = (self.slaves.clone(), self.has_newcomer);
                let hearsay = Hearsay { slaves, has_newcomer, reigns: &self.log.reigns };
                step(&mut self.machine, self.now, Event::Heard(hearsay), &mut out);
            }
            // replayed: the log is, and was on disk, through its end.
            "replayed" => {
                let end = self.log.end();
                let event = Event::Replayed { end, durable: end, reigns: &self.log.reigns };
                step(&mut self.machine, self.now, event, &mut out);
            }
            "closed" => {
                let log = stored(&mut args)?;
                let event = Event::Closed { end: self.log.end(), log, reigns: &self.log.reigns };
                step(&mut self.machine, self.now, event, &mut out);
            }
            _ => {
                let event = self.event(word, &mut args)?;
                self.step(event, &mut out);
            }
        }
        args.reject_next()?;
        Ok(out)
    }
}
