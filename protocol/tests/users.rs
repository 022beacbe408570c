//! Tests of users over RESP: who may do what, what is answered to others, and what is noted. The answers are those of
//! redis-server 7.0.15; in them `^` stands for CR LF.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use dsm_protocol::acl::{Accounts, IncidentKind, Users};
use dsm_protocol::ids::Millis;
use dsm_protocol::resp::{
    Conversation, Handling, Limits, Parser, ProtocolError, ServerFacts, STRANGER_ARGS_MAX, STRANGER_BULK_MAX,
};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const LIMITS: usize = 16 << 20;

struct Talk {
    conversation: Conversation,
    accounts: Rc<Accounts>,
    now: Rc<Cell<u64>>,
}

fn facts() -> ServerFacts {
    let limits = Limits::for_values(LIMITS);
    ServerFacts { limits, clients_max: 10, idle_timeout: Duration::ZERO, fsync: "always" }
}

fn talk(users: &str) -> Talk {
    let now = Rc::new(Cell::new(1000));
    let clock = Rc::clone(&now);
    let users = Users::parse(users).unwrap_or_else(|faults| panic!("{faults:?}"));
    let accounts = Rc::new(Accounts::new(users, move || Millis(clock.get())));
    let conversation =
        Conversation::new(1, facts(), Rc::clone(&accounts)).with_addresses("10.0.0.1:5", "10.0.0.2:6");
    Talk { conversation, accounts, now }
}

impl Talk {
    /// The answer; `asks` for a request that goes to the store; behind a pause its milliseconds.
    fn say(&mut self, request: &str) -> String {
        let words = request.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let mut out = Vec::new();
        let handling = self.conversation.handle(words, &mut out);
        let text = String::from_utf8_lossy(&out).replace("\r\n", "^");
        match handling {
            Handling::Answered | Handling::AnsweredAndClose => text,
            Handling::AnsweredLate(pause) => format!("{}ms {text}", pause.as_millis()),
            Handling::Ask { .. } | Handling::Watch { .. } => "asks".to_owned(),
            Handling::LoadUsers => "loads".to_owned(),
            Handling::DrawPassword(password) => {
                let (mut out, mut drawn) = (Vec::new(), 0);
                let draw = || {
                    drawn += 1;
                    0xfedc_ba98_7654_3200 + drawn
                };
                password.write(draw, &mut out);
                String::from_utf8_lossy(&out).replace("\r\n", "^")
            }
            Handling::ListUsers(mut listing) => {
                let mut out = Vec::new();
                while !listing.write_on(1, &mut out) {}
                String::from_utf8_lossy(&out).replace("\r\n", "^")
            }
            Handling::Close => "closes".to_owned(),
        }
    }

    fn expect(&mut self, script: &[(&str, &str)]) {
        for (request, answer) in script {
            assert_eq!(self.say(request), *answer, "{request}");
        }
    }
}

const NOAUTH: &str = "-NOAUTH Authentication required.^";
const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.^";
const NO_KEY: &str = "-NOPERM this user has no permissions to access one of the keys used as arguments^";

#[test]
fn a_stranger_may_only_say_who_he_is_and_leave() {
    let mut talk = talk("user default on >pw ~* &* +@all");
    assert!(!talk.conversation.is_known());
    for request in [
        "GET a",
        "PING",
        "INFO",
        "ACL WHOAMI",
        "CLIENT ID",
        "COMMAND",
        "FAILOVER",
        "CONFIG GET save",
        "ACL LOAD",
    ] {
        assert_eq!(talk.say(request), NOAUTH, "{request}");
    }
    talk.expect(&[
        ("NOSUCH", "-ERR unknown command 'NOSUCH', with args beginning with: ^"),
        ("GET", "-ERR wrong number of arguments for 'get' command^"),
        (
            "HELLO 3",
            "-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option \
             can be used to authenticate the client and select the RESP protocol version at the same time^",
        ),
        ("RESET", "+RESET^"),
        ("GET a", NOAUTH),
        ("AUTH pw", "+OK^"),
        ("GET a", "asks"),
        ("ACL WHOAMI", "$7^default^"),
        ("RESET", "+RESET^"),
        ("GET a", NOAUTH),
        ("QUIT", "+OK^"),
    ]);
}

#[test]
fn a_wrong_password_is_answered_later_and_later_and_changes_nothing() {
    let mut talk = talk("user default on >pw ~* +@all\nuser alice on >a ~* +@all\nuser off off >a ~* +@all");
    for (request, pause_ms) in [
        ("AUTH no", 50),
        ("AUTH alice no", 100),
        ("AUTH off a", 200),
        ("AUTH nobody a", 400),
        ("HELLO 3 AUTH alice x", 800),
    ] {
        assert_eq!(talk.say(request), format!("{pause_ms}ms {WRONG}"), "{request}");
    }
    assert_eq!(talk.say("GET a"), NOAUTH);
    (0..100).for_each(|_| drop(talk.say("AUTH no")));
    assert_eq!(talk.say("AUTH no"), format!("2000ms {WRONG}"));
    // Later the wrong ones of this address are forgotten.
    talk.now.set(talk.now.get() + 300_000);
    // Still RESP2: nothing of HELLO was done.
    talk.expect(&[("AUTH alice a", "+OK^"), ("CLIENT GETNAME", "$-1^"), ("ACL WHOAMI", "$5^alice^")]);
    // Who is known stays it when he says something wrong.
    assert_eq!(talk.say("AUTH no"), format!("2000ms {WRONG}"));
    talk.expect(&[("ACL WHOAMI", "$5^alice^"), ("AUTH a b c", "-ERR syntax error^")]);
    assert_eq!(talk.accounts.count(IncidentKind::Auth), 107);
    // After many, a right one waits as well: an answer that is late does not tell which it is.
    (0..50).for_each(|_| drop(talk.say("AUTH no")));
    assert_eq!(talk.say("AUTH alice a"), "2000ms +OK^");
    assert!(talk.say("HELLO 2 AUTH alice a").starts_with("2000ms *14^"));
    let other = Conversation::new(2, facts(), Rc::clone(&talk.accounts)).with_addresses("10.0.0.3:5", "");
    let mut other =
        Talk { conversation: other, accounts: Rc::clone(&talk.accounts), now: Rc::clone(&talk.now) };
    other.expect(&[("AUTH alice a", "+OK^")]);
    let shown =
        format!("{:?}", talk.accounts.incidents().map(|(incident, _)| incident.clone()).collect::<Vec<_>>());
    assert!(!shown.contains("\"no\""), "a password that was tried is not kept: {shown}");
}

#[test]
fn commands_and_keys_are_refused_as_in_redis_and_noted() {
    let mut talk = talk("user al on >pw ~app:* %R~ro:* +@read -@dangerous +set");
    talk.expect(&[
        ("AUTH x", "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?^"),
        ("AUTH default x", "+OK^"),
        ("HELLO 2 AUTH al pw", "*14^$6^server^$3^dsm^$7^version^$5^7.4.0^$5^proto^:2^$2^id^:1^$4^mode^$10^standalone^$4^role^$6^master^$7^modules^*0^"),
        ("ACL WHOAMI", "-NOPERM this user has no permissions to run the 'acl|whoami' command^"),
        ("GET app:1", "asks"),
        ("GET ro:1", "asks"),
        ("GET x", NO_KEY),
        ("SET ro:1 v", NO_KEY),
        ("MGET app:1 x", NO_KEY),
        ("DEL app:1", "-NOPERM this user has no permissions to run the 'del' command^"),
        ("CONFIG GET save", "-NOPERM this user has no permissions to run the 'config|get' command^"),
        ("CLIENT INFO", "-NOPERM this user has no permissions to run the 'client|info' command^"),
        ("PING", "-NOPERM this user has no permissions to run the 'ping' command^"),
        ("FAILOVER", "-NOPERM this user has no permissions to run the 'failover' command^"),
        ("RESET", "+RESET^"),
        ("ACL WHOAMI", "$7^default^"),
    ]);
    talk.now.set(3500);
    assert_eq!(
        talk.say("ACL LOG 1"),
        "*1^*14^$5^count^:1^$6^reason^$7^command^$7^context^$8^toplevel^$6^object^$8^failover^$8^username^$2^al^\
         $11^age-seconds^$5^2.500^$11^client-info^$169^id=1 addr=10.0.0.1:5 laddr=10.0.0.2:6 fd=-1 name= age=0 idle=0 \
         flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 events=r cmd=failover user=al redir=-1 resp=2 lib-name= lib-ver=^"
    );
    assert!(talk.say("ACL LOG").starts_with("*8^"));
    talk.expect(&[
        ("ACL LOG -1", "*0^"),
        ("ACL LOG x", "-ERR value is not an integer or out of range^"),
        ("ACL LOG RESET", "+OK^"),
        ("ACL LOG", "*0^"),
    ]);
    assert_eq!(
        [IncidentKind::Auth, IncidentKind::Command, IncidentKind::Key].map(|kind| talk.accounts.count(kind)),
        [0, 6, 3]
    );
}

#[test]
fn acl_tells_of_users_in_the_shapes_of_redis() {
    let hash = "30c952fab122c3f9759f02a6d95c3758b246b4fee239957b2d4fee46e26170c4";
    let mut talk = talk("user al on >pw ~app:* %R~ro:* +@read (~b +set)");
    let user = format!(
        "*12^$5^flags^*1^$2^on^$9^passwords^*1^$64^{hash}^$8^commands^$12^-@all +@read^$4^keys^$14^~app:* %R~ro:*^\
         $8^channels^$0^^$9^selectors^*1^*6^$8^commands^$10^-@all +set^$4^keys^$2^~b^$8^channels^$0^^"
    );
    let line =
        format!("user al on #{hash} ~app:* %R~ro:* resetchannels -@all +@read (~b resetchannels -@all +set)");
    let list = format!("*2^${}^{line}^$34^user default on nopass ~* &* +@all^", line.len());
    talk.expect(&[
        ("ACL GETUSER al", &user),
        ("ACL GETUSER nobody", "$-1^"),
        ("ACL LIST", &list),
        ("ACL USERS", "*2^$2^al^$7^default^"),
        ("ACL DRYRUN al get app:1", "+OK^"),
        ("ACL DRYRUN al get x", "$50^This user has no permissions to access the 'x' key^"),
        ("ACL DRYRUN al del app:1", "$53^This user has no permissions to run the 'del' command^"),
        ("ACL DRYRUN nob get x", "-ERR User 'nob' not found^"),
        ("ACL DRYRUN al nonsense", "-ERR Command 'nonsense' not found^"),
        ("ACL DRYRUN al get", "-ERR wrong number of arguments for 'get' command^"),
        ("ACL CAT nope", "-ERR Unknown category 'nope'^"),
        ("ACL CAT a b", "-ERR unknown subcommand or wrong number of arguments for 'CAT'. Try ACL HELP.^"),
        ("acl log 1 2", "-ERR unknown subcommand or wrong number of arguments for 'log'. Try ACL HELP.^"),
        ("ACL", "-ERR wrong number of arguments for 'acl' command^"),
        ("ACL FOO", "-ERR unknown subcommand 'FOO'. Try ACL HELP.^"),
        ("ACL LOAD", "loads"),
        (
            "ACL SETUSER a on",
            "-ERR users are not changed by commands: edit the users file and send ACL LOAD^",
        ),
    ]);
    assert!(talk.say("ACL CAT").starts_with("*21^$8^keyspace^$4^read^"));
    assert!(talk.say("ACL CAT dangerous").contains("$8^failover^"));
    assert!(talk
        .say("ACL HELP")
        .starts_with("*29^+ACL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:^+CAT"));
}

#[test]
fn acl_genpass_draws_a_password_of_as_many_bits_as_it_is_told() {
    let number = "-ERR ACL GENPASS argument must be the number of bits for the output password, a positive number up to 4096^";
    let mut talk = talk("user al on >pw");
    talk.expect(&[
        ("ACL GENPASS", "$64^fedcba9876543201fedcba9876543202fedcba9876543203fedcba9876543204^"),
        ("ACL GENPASS 1", "$1^f^"),
        ("ACL GENPASS 5", "$2^fe^"),
        ("acl genpass 68", "$17^fedcba9876543201f^"),
        ("ACL GENPASS 0", number),
        ("ACL GENPASS -1", number),
        ("ACL GENPASS 4097", number),
        ("ACL GENPASS x", "-ERR value is not an integer or out of range^"),
        (
            "ACL genpass 1 2",
            "-ERR unknown subcommand or wrong number of arguments for 'genpass'. Try ACL HELP.^",
        ),
    ]);
    assert!(talk.say("ACL GENPASS 4096").starts_with("$1024^"));
}

#[test]
fn thousands_of_users_are_listed_in_parts_that_are_those_of_one_moment() {
    let all =
        |count: usize| (0..count).map(|at| format!("user u{at:04} on >pw ~* +get\n")).collect::<String>();
    let mut talk = talk(&all(3000));
    for request in ["ACL LIST", "ACL USERS"] {
        let words = request.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let mut out = Vec::new();
        let handling = talk.conversation.handle(words, &mut out);
        let Handling::ListUsers(mut listing) = handling else { panic!("{handling:?}") };
        let (mut parts, mut longest) = (1, 0);
        while !listing.write_on(1000, &mut out) {
            parts += 1;
            longest = longest.max(out.len());
            // Others come meanwhile.
            let accounts = &talk.accounts;
            drop(accounts.replace(accounts.ticket(), Users::parse(&all(3000 - parts)).unwrap()));
        }
        assert!(parts >= out.len() / 1200, "{} bytes in {parts} parts", out.len());
        let text = String::from_utf8(out).unwrap();
        let users = if request == "ACL LIST" { "user u" } else { "\nu" };
        let count = text.matches(users).count();
        assert!(text.starts_with(&format!("*{}\r\n", count + 1)), "{count} users");
    }
}

#[test]
fn what_is_judged_of_a_request_counts_for_no_other_one() {
    let mut talk = talk("user default on nopass ~app:* +@all");
    for (first, second) in
        [("SET app:1", "SET secret v"), ("MSET app:1", "MSET secret v"), ("GET app:1 x", "GET secret")]
    {
        for request in [first, second] {
            let words = request.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
            while !talk.conversation.judge(&words, 1) {}
            let answer = talk.say(request);
            assert_eq!(answer == NO_KEY, request == second, "{request}: {answer}");
        }
    }
}

#[test]
fn other_users_count_at_once_for_connections_that_stand() {
    let mut alice = talk("user alice on >a ~* +@all");
    alice.expect(&[("AUTH alice a", "+OK^"), ("SET k v", "asks")]);
    let replace = |talk: &Talk, users: &str| {
        talk.accounts.replace(talk.accounts.ticket(), Users::parse(users).unwrap())
    };
    replace(&alice, "user alice on >other ~* +get");
    alice.expect(&[
        ("GET k", "asks"),
        ("SET k v", "-NOPERM this user has no permissions to run the 'set' command^"),
    ]);
    replace(&alice, "user alice off >a ~* +@all");
    assert_eq!(alice.say("GET k"), NOAUTH);
    replace(&alice, "user alice on >a ~* +@all");
    assert_eq!(alice.say("GET k"), "asks", "it is on again");
    replace(&alice, "");
    assert_eq!(alice.say("GET k"), NOAUTH, "there is no such user any more");
    // Who has not said who he is, is whoever that may be by now.
    let mut anybody = talk("");
    assert_eq!(anybody.say("GET k"), "asks");
    replace(&anybody, "user default on >pw ~* +@all");
    assert_eq!(anybody.say("GET k"), NOAUTH);
}

#[test]
fn a_stranger_may_not_send_much() {
    for (sent, error) in [
        (format!("*{}\r\n", STRANGER_ARGS_MAX + 1), ProtocolError::StrangerArrayLength),
        (format!("*2\r\n${}\r\n", STRANGER_BULK_MAX + 1), ProtocolError::StrangerBulkLength),
    ] {
        let mut parser = Parser::new(Limits::for_values(LIMITS));
        let mut buffer = BytesMut::from(sent.as_bytes());
        assert_eq!(parser.next(&mut buffer.clone()), Ok(None), "who is known may");
        let mut parser = Parser::new(Limits::for_values(LIMITS));
        parser.set_of_stranger(true);
        assert_eq!(parser.next(&mut buffer), Err(error));
    }
    let mut parser = Parser::new(Limits::for_values(LIMITS));
    parser.set_of_stranger(true);
    let mut most = format!("*{STRANGER_ARGS_MAX}\r\n");
    (0..STRANGER_ARGS_MAX)
        .for_each(|_| most += &format!("${STRANGER_BULK_MAX}\r\n{}\r\n", "x".repeat(STRANGER_BULK_MAX)));
    assert!(parser.next(&mut BytesMut::from(most.as_bytes())).unwrap().is_some());
}
