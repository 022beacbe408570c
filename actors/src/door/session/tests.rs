//! Tests of the order of answers, and of the room for them.

use super::*;
use crate::config::MasterConfig;
use crate::door::admission::Gate;
use bytes::Bytes;
use dsm_protocol::command::Command;
use dsm_protocol::ids::RequestId;
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

fn permit(bytes: usize) -> Option<RequestPermit> {
    Some(Gate::new(&MasterConfig::default(), &Rc::default()).request_always(bytes))
}

fn pool(bytes_max: usize) -> Rc<AnswerPool> {
    Rc::new(AnswerPool::new(bytes_max))
}

/// A session whose outbox is never pumped.
fn session_in(pool: &Rc<AnswerPool>) -> Session {
    Session::new(SessionId(1), Origin::Resp, Outbox::metered(pool.meter()), pool)
}

fn resp_session(bytes_max: usize) -> Session {
    session_in(&pool(bytes_max))
}

const RESP: Coding = Coding::Resp(Protocol::Resp2, Shape::Plain);

fn sent(session: &Session) -> String {
    let mut sent = Vec::new();
    session.outbox.append_pieces(|out| {
        while let Some(piece) = out.pop() {
            sent.extend_from_slice(piece.bytes());
        }
    });
    session.outbox.note_taken(sent.len());
    String::from_utf8(sent).unwrap()
}

#[test]
fn answers_leave_in_the_order_of_the_requests() {
    let session = resp_session(usize::MAX);
    let first = session.ask(RESP, permit(10));
    let second = session.ask(RESP, permit(20));
    session.say(b"+PONG\r\n");
    assert!(session.answer(second, &Reply::NotFound));
    assert_eq!(sent(&session), "");
    assert!(session.answer(first, &Reply::Done));
    assert_eq!(sent(&session), "+OK\r\n$-1\r\n+PONG\r\n");
    assert!(!session.answer(second, &Reply::Done), "answered twice");
    assert_eq!(session.in_flight(), (0, 0));
}

fn value(bytes: usize) -> Reply {
    Reply::Value(Bytes::from(vec![b'y'; bytes]))
}

/// Bytes of an answer that counts as long.
const LONG: usize = 3 * ANSWER_BYTES_FREE;

#[tokio::test]
async fn answers_that_wait_for_an_earlier_one_are_bounded() {
    let session = resp_session(usize::MAX);
    let slow = session.ask(RESP, permit(1));
    session.say(&vec![b'x'; LONG]);
    assert!(session.has_room(100, 2 * LONG));
    let late = session.ask(RESP, permit(1));
    assert_eq!(
        session.expect(late, LONG, 2 * LONG),
        Room::Yes,
        "an answer that has been sent does not count"
    );
    session.answer(late, &value(LONG));
    assert!(!session.has_room(100, 2 * LONG), "both wait");
    let room = session.room(100, 2 * LONG);
    tokio::pin!(room);
    assert_eq!(room.as_mut().now_or_never(), None);
    session.answer(slow, &Reply::Done);
    assert_eq!(room.as_mut().now_or_never(), None, "now they wait for the peer");
    assert!(sent(&session).starts_with("+OK\r\nxxx"));
    assert!(session.has_room(100, 2 * LONG));
    let pending = session.pending.borrow();
    assert_eq!(
        (pending.ready_bytes, pending.said_bytes, pending.expected_bytes, pending.len()),
        (0, 0, 0, 0)
    );
}

#[test]
fn the_first_long_answer_counts_like_the_thirty_third() {
    let (session, bytes_max) = (resp_session(usize::MAX), 2 * LONG);
    let ask = || session.expect(session.ask(RESP, permit(1)), LONG, bytes_max);
    assert_eq!([ask(), ask(), ask()], [Room::Yes, Room::Yes, Room::NotHere]);
    let short = session.ask(RESP, permit(1));
    assert_eq!(session.expect(short, 1, bytes_max), Room::NotHere);
}

#[test]
fn one_answer_longer_than_the_bound_is_sent_alone() {
    let session = resp_session(LONG);
    let (first, second) = (session.ask(RESP, permit(1)), session.ask(RESP, permit(1)));
    assert_eq!(session.expect(first, 9 * LONG, LONG), Room::Yes);
    assert_eq!(session.expect(second, 9 * LONG, LONG), Room::NotHere);
    session.park(Millis(0), second, Command::KeyCount, Room::NotHere);
    assert!(!session.has_room(100, LONG), "a connection with parked requests is not read");
    assert_eq!(session.unpark(Millis(0), LONG, |_| 9 * LONG), Err(Room::NotHere));
    session.answer(first, &value(9 * LONG));
    assert_eq!(session.unpark(Millis(0), LONG, |_| 9 * LONG), Err(Room::NotHere), "it has not left");
    sent(&session);
    assert_eq!(session.unpark(Millis(0), LONG, |_| 9 * LONG), Ok(Some((second, Command::KeyCount))));
}

#[test]
fn an_answer_that_is_longer_than_estimated_needs_room() {
    let session = resp_session(usize::MAX);
    let (first, second) = (session.ask(RESP, permit(1)), session.ask(RESP, permit(1)));
    assert_eq!(session.expect(first, LONG, 2 * LONG), Room::Yes);
    assert!(session.fits(first, LONG, 2 * LONG), "as long as it was to be");
    assert!(session.fits(second, ANSWER_BYTES_FREE, 0), "short");
    assert!(session.fits(second, LONG, 2 * LONG));
    assert!(!session.fits(second, LONG + 1, 2 * LONG));
    session.answer(first, &Reply::NotFound);
    sent(&session);
    assert!(session.fits(second, 9 * LONG, LONG), "a single one is always sent");
}

#[test]
fn answers_of_all_sessions_are_bounded_except_short_ones() {
    let pool = pool(2 * LONG);
    let (first, second) = (session_in(&pool), session_in(&pool));
    let ask = |session: &Session, bytes| {
        let tag = session.ask(RESP, permit(1));
        (tag, session.expect(tag, bytes, 100 * LONG))
    };
    let (held, _) = ask(&first, 2 * LONG);
    let (waits, room) = ask(&second, LONG);
    assert_eq!(room, Room::NotInAll);
    assert_eq!(ask(&second, ANSWER_BYTES_FREE).1, Room::Yes, "short answers are always sent");
    second.park(Millis(0), waits, Command::KeyCount, room);
    assert_eq!((pool.waiting(), pool.len()), (1, 2 * LONG + ANSWER_BYTES_FREE));
    assert_eq!(second.unpark(Millis(0), 100 * LONG, |_| LONG), Err(Room::NotInAll));
    // An answer that turns out to be short.
    first.answer(held, &Reply::NotFound);
    assert_eq!(ask(&first, LONG).1, Room::NotInAll, "the one that has waited longest comes first");
    assert_eq!(second.unpark(Millis(0), 100 * LONG, |_| LONG), Ok(Some((waits, Command::KeyCount))));
    assert_eq!(second.unpark(Millis(0), 100 * LONG, |_| 0), Ok(None));
    assert_eq!(pool.waiting(), 0);
    drop((first, second));
    assert_eq!((pool.len(), pool.waiting()), (0, 0), "nothing is left of sessions that have ended");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_waits_for_room_goes_on_when_others_have_taken_their_answers() {
    let pool = pool(2 * LONG);
    let (patient, other) = (session_in(&pool), session_in(&pool));
    // As a client does that sends all its requests before it reads any answer.
    patient.say(&vec![b'x'; LONG]);
    other.say(&vec![b'x'; LONG]);
    let room = patient.room(100, 2 * LONG);
    tokio::pin!(room);
    assert_eq!(room.as_mut().now_or_never(), None, "the pool is full");
    sent(&other);
    tokio::time::timeout(Duration::from_secs(1), room).await.expect("there is room again");
}

#[test]
fn a_session_that_waits_too_long_for_room_is_refused_request_by_request() {
    let pool = pool(LONG);
    let (holds, waits) = (session_in(&pool), session_in(&pool));
    assert_eq!(holds.expect(holds.ask(RESP, permit(1)), LONG, 100 * LONG), Room::Yes);
    let [first, second, third] = [(); 3].map(|()| waits.ask(RESP, permit(1)));
    let room = waits.expect(first, LONG, 100 * LONG);
    assert_eq!(room, Room::NotInAll);
    for tag in [first, second, third] {
        waits.park(Millis(10), tag, Command::KeyCount, room);
    }
    assert_eq!(waits.unpark(Millis(109), 100 * LONG, |_| LONG), Err(Room::NotInAll));
    assert_eq!((waits.give_up(Millis(109), 100), pool.waiting()), (None, 1));
    assert_eq!((waits.give_up(Millis(110), 100), pool.waiting()), (Some(first), 0));
    // The request after it needs no room and waited only for the first one.
    assert_eq!(waits.give_up(Millis(110), 100), None);
    assert_eq!(waits.unpark(Millis(110), 100 * LONG, |_| 0), Ok(Some((second, Command::KeyCount))));
    // The next one that needs room has its full time to wait.
    assert_eq!(waits.unpark(Millis(110), 100 * LONG, |_| LONG), Err(Room::NotInAll));
    assert_eq!(waits.give_up(Millis(209), 100), None);
    assert_eq!(waits.give_up(Millis(210), 100), Some(third));
    assert_eq!(pool.waiting(), 0);
}

#[test]
fn an_answered_request_takes_no_place_where_no_order_is_held() {
    let session = Session::new(
        SessionId(1),
        Origin::Native { has_proved: false },
        Outbox::default(),
        &pool(usize::MAX),
    );
    let slow = session.ask(Coding::Native(RequestId(0)), permit(1));
    for id in 1..1000 {
        let tag = session.ask(Coding::Native(RequestId(id)), permit(1));
        assert!(session.answer(tag, &Reply::Done));
        assert!(!session.answer(tag, &Reply::Done), "answered twice");
        assert_eq!(session.in_flight(), (1, 1));
    }
    assert!(session.answer(slow, &Reply::Done));
    assert_eq!(session.in_flight(), (0, 0));
}

#[test]
fn who_has_proved_the_secret_of_native_clients_asks_as_a_program() {
    for (has_proved, wanted) in [(true, StreamUser::Program), (false, StreamUser::Anonymous)] {
        let origin = Origin::Native { has_proved };
        let session = Session::new(SessionId(1), origin, Outbox::default(), &pool(usize::MAX));
        let tag = session.ask(Coding::Native(RequestId(0)), permit(1));
        assert_eq!(session.asks_for(tag), wanted);
    }
}

#[tokio::test]
async fn an_embedded_caller_gets_its_answer_at_once_or_is_told_that_the_session_has_ended() {
    let session = Session::embedded(SessionId(1), &pool(usize::MAX));
    let (first, given_up) = oneshot::channel();
    let (second, answered) = oneshot::channel();
    session.ask(Coding::Embedded(first), permit(1));
    let tag = session.ask(Coding::Embedded(second), permit(2));
    assert!(session.answer(tag, &Reply::Done));
    assert_eq!(answered.await, Ok(Reply::Done), "it does not wait for the answer before it");
    session.close();
    session.closed().await;
    assert_eq!(session.in_flight(), (1, 1));
    session.abandon();
    assert_eq!(session.in_flight(), (0, 0));
    assert!(given_up.await.is_err());
}

#[test]
fn native_answers_leave_as_they_come() {
    let session = Session::new(
        SessionId(1),
        Origin::Native { has_proved: false },
        Outbox::default(),
        &pool(usize::MAX),
    );
    let first = session.ask(Coding::Native(RequestId(7)), permit(1));
    let second = session.ask(Coding::Native(RequestId(8)), permit(1));
    session.answer(second, &Reply::Done);
    assert!(session.outbox.len() > 0);
    session.answer(first, &Reply::Done);
    assert_eq!(session.in_flight(), (0, 0));
}
