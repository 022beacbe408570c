//! Tests of a Sentinel's answers, byte by byte, and of what subscribers are told. `^` stands for CR LF.

use super::*;
use crate::acl::{Accounts, Users};
use crate::ids::{Epoch, Millis, Seq};
use crate::info::RedisRole;
use crate::resp::{Parser, ServerFacts};
use crate::serving_view::OtherMaster;
use bytes::BytesMut;
use std::time::Duration;

const A: &str = "10.0.0.1:12345";
const B: &str = "[::1]:12346";

/// Of the master at `B`, which does not serve unless `master` is it.
fn view(master: Option<&str>, is_served: bool) -> ServingView {
    ServingView {
        role: if master == Some(B) { RedisRole::Master } else { RedisRole::Slave },
        own: B.to_owned(),
        master: master.map(str::to_owned),
        is_served,
        others: vec![OtherMaster { address: A.to_owned(), is_connected: is_served, seq: Seq(8) }],
        seq: Seq(9),
        epoch: Epoch(3),
    }
}

fn conversation(accounts: Accounts) -> Conversation {
    let facts = ServerFacts {
        limits: sentinel_limits(),
        clients_max: 10,
        idle_timeout: Duration::ZERO,
        fsync: "always",
    };
    Conversation::new(7, facts, Rc::new(accounts)).with_addresses("10.0.0.9:5", B)
}

struct Talk {
    talk: SentinelTalk,
    view: SharedView,
}

impl Talk {
    fn with(view: ServingView, accounts: Accounts) -> Talk {
        let shared = SharedView::default();
        shared.set(view);
        let facts = SentinelFacts {
            name: "dsm".to_owned(),
            id: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            others: vec!["10.0.0.1:26379".to_owned()],
            down_after_ms: 1000,
        };
        let talk = SentinelTalk::new(Rc::new(facts), conversation(accounts), shared.clone());
        Talk { talk, view: shared }
    }

    fn new(view: ServingView) -> Talk {
        Talk::with(view, Accounts::default())
    }

    fn ask(&mut self, line: &str) -> String {
        let mut out = Vec::new();
        let mut buffer = BytesMut::from(format!("{line}\r\n").as_bytes());
        let args = Parser::new(sentinel_limits()).next(&mut buffer).unwrap().unwrap();
        let handling = self.talk.handle(args, &mut out);
        let end = if handling == Handling::Answered { "" } else { "<closed>" };
        format!("{}{end}", String::from_utf8(out).unwrap().replace("\r\n", "^"))
    }

    /// What it is told once this is the view.
    fn told(&mut self, view: ServingView) -> String {
        self.view.set(view);
        let mut out = Vec::new();
        self.talk.look(&mut out);
        String::from_utf8(out).unwrap().replace("\r\n", "^")
    }
}

#[test]
fn the_address_is_that_of_the_master_that_serves_or_served_last() {
    for (master, is_served, expected) in [
        (Some(A), true, "*2^$8^10.0.0.1^$5^12345^"),
        (Some(A), false, "*2^$8^10.0.0.1^$5^12345^"),
        (Some(B), true, "*2^$3^::1^$5^12346^"),
        (None, false, "*-1^"),
    ] {
        let mut talk = Talk::new(view(master, is_served));
        assert_eq!(talk.ask("SENTINEL GET-MASTER-ADDR-BY-NAME dsm"), expected);
    }
    let mut talk = Talk::new(view(Some(A), true));
    assert_eq!(talk.ask("sentinel get-master-addr-by-name other"), "*-1^");
    talk.ask("HELLO 3");
    assert_eq!(talk.ask("sentinel get-master-addr-by-name other"), "_^");
}

#[test]
fn a_master_is_shown_with_its_flags() {
    let shown = |flags: &str, master: &str| {
        let (host, port) = host_and_port(master);
        let fields = [
            ("name", "dsm"),
            ("ip", host),
            ("port", &port.to_string()),
            ("flags", flags),
            ("down-after-milliseconds", "1000"),
            ("role-reported", "master"),
            ("config-epoch", "3"),
            ("num-slaves", "1"),
            ("num-other-sentinels", "1"),
            ("quorum", "1"),
        ];
        fields.map(|(name, value)| format!("${}^{name}^${}^{value}^", name.len(), value.len())).concat()
    };
    for (master, is_served, flags) in [
        (Some(A), true, "master"),
        (Some(A), false, "s_down,o_down,master"),
        (None, false, "s_down,o_down,master"),
    ] {
        let mut talk = Talk::new(view(master, is_served));
        let expected = shown(flags, A);
        assert_eq!(talk.ask("SENTINEL MASTER dsm"), format!("*20^{expected}"));
        assert_eq!(talk.ask("SENTINEL MASTERS"), format!("*1^*20^{expected}"));
        talk.ask("HELLO 3");
        assert_eq!(talk.ask("SENTINEL MASTERS"), format!("*1^%10^{expected}"));
    }
}

#[test]
fn replicas_are_the_other_masters_and_whether_they_are_there() {
    let replica = |address: &str, flags: &str, link: &str, master: &str, seq: &str| {
        let ((host, port), (master_host, master_port)) = (host_and_port(address), host_and_port(master));
        let fields = [
            ("name", address),
            ("ip", host),
            ("port", &port.to_string()),
            ("flags", flags),
            ("role-reported", "slave"),
            ("master-link-status", link),
            ("master-host", master_host),
            ("master-port", &master_port.to_string()),
            ("slave-repl-offset", seq),
        ];
        let fields = fields.map(|(name, value)| format!("${}^{name}^${}^{value}^", name.len(), value.len()));
        format!("*1^*18^{}", fields.concat())
    };
    let mut talk = Talk::new(view(Some(A), true));
    assert_eq!(talk.ask("SENTINEL REPLICAS dsm"), replica(B, "slave", "ok", A, "9"));
    assert_eq!(talk.ask("SENTINEL slaves dsm"), replica(B, "slave", "ok", A, "9"));
    // The other one is gone.
    let mut alone = view(Some(B), true);
    alone.others[0].is_connected = false;
    let mut talk = Talk::new(alone);
    let gone = replica(A, "s_down,slave,disconnected", "err", B, "8");
    assert_eq!(talk.ask("SENTINEL REPLICAS dsm"), gone);
}

#[test]
fn what_clients_ask_beside_that_is_answered_as_by_redis() {
    let mut talk = Talk::new(view(Some(A), true));
    let lines = "SENTINEL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:";
    assert!(talk.ask("SENTINEL HELP").contains(lines));
    for (asked, expected) in [
        ("PING", "+PONG^"),
        ("PING x", "$1^x^"),
        ("PING a b", "-ERR wrong number of arguments for 'ping' command^"),
        ("ROLE", "*2^$8^sentinel^*1^$3^dsm^"),
        ("ROLE x", "-ERR wrong number of arguments for 'role' command^"),
        ("SENTINEL MYID", "$40^0123456789abcdef0123456789abcdef01234567^"),
        (
            "SENTINEL SENTINELS dsm",
            "*1^*8^$4^name^$14^10.0.0.1:26379^$2^ip^$8^10.0.0.1^$4^port^$5^26379^$5^flags^$8^sentinel^",
        ),
        ("SENTINEL CKQUORUM dsm", "+OK 2 usable Sentinels. Quorum and failover authorization can be reached^"),
        ("SENTINEL CKQUORUM x", "-ERR No such master with that name^"),
        ("SENTINEL MASTER x", "-ERR No such master with that name^"),
        ("SENTINEL REPLICAS x", "-ERR No such master with that name^"),
        ("SENTINEL SENTINELS x", "-ERR No such master with that name^"),
        ("SENTINEL FAILOVER dsm", "-ERR a Sentinel of dsm moves nothing: send FAILOVER to a master^"),
        ("SENTINEL", "-ERR wrong number of arguments for 'sentinel' command^"),
        ("SENTINEL MASTER", "-ERR wrong number of arguments for 'sentinel|master' command^"),
        ("SENTINEL MASTERS x", "-ERR wrong number of arguments for 'sentinel|masters' command^"),
        ("SENTINEL NOSUCH", "-ERR unknown subcommand 'NOSUCH'. Try SENTINEL HELP.^"),
        ("GET k", "-ERR unknown command 'GET', with args beginning with: 'k' ^"),
        ("SELECT 0", "-ERR unknown command 'SELECT', with args beginning with: '0' ^"),
        ("PUBLISH a b", "-ERR unknown command 'PUBLISH', with args beginning with: 'a' 'b' ^"),
        ("SUBSCRIBE", "-ERR wrong number of arguments for 'subscribe' command^"),
        ("CLIENT SETNAME me", "+OK^"),
        ("CLIENT GETNAME", "$2^me^"),
        ("CLIENT SETINFO LIB-NAME x", "+OK^"),
        ("AUTH a b", "-WRONGPASS invalid username-password pair or user is disabled.^<closed>"),
        ("COMMAND DOCS", "*0^"),
        ("COMMAND COUNT", ":14^"),
        ("COMMAND INFO get", "-ERR this is a Sentinel of dsm: of COMMAND it knows COUNT, DOCS and LIST^"),
        (
            "HELLO",
            "*12^$6^server^$3^dsm^$7^version^$5^7.4.0^$5^proto^:2^$2^id^:7^$4^mode^$8^sentinel^$7^modules^*0^",
        ),
        ("POST / HTTP/1.1", "<closed>"),
        ("QUIT", "+OK^<closed>"),
    ] {
        assert_eq!(talk.ask(asked), expected, "{asked}");
    }
    let mut talk = Talk::new(view(Some(A), false));
    let nobody = "-NOQUORUM 2 usable Sentinels. No master is known to serve^";
    assert_eq!(talk.ask("SENTINEL CKQUORUM dsm"), nobody);
}

#[test]
fn info_has_the_sections_of_a_sentinel() {
    let mut talk = Talk::new(view(Some(A), true));
    let section = "# Sentinel^sentinel_masters:1^sentinel_tilt:0^\
                   master0:name=dsm,status=ok,address=10.0.0.1:12345,slaves=1,sentinels=2^";
    let asked = talk.ask("INFO sentinel");
    assert_eq!(asked.split_once('^').unwrap().1, format!("{section}^"));
    let all = talk.ask("INFO");
    assert!(all.contains("^redis_mode:sentinel^") && all.contains(section), "{all}");
    let mut talk = Talk::new(view(Some(A), false));
    assert!(talk.ask("INFO SENTINEL").contains(",status=sdown,address=10.0.0.1:12345,"));
}

#[test]
fn a_takeover_is_told_once_to_each_subscriber() {
    let payload = "dsm 10.0.0.1 12345 ::1 12346";
    let message = format!("*3^$7^message^$14^+switch-master^${}^{payload}^", payload.len());
    let mut talk = Talk::new(view(Some(A), true));
    assert_eq!(talk.ask("SUBSCRIBE +switch-master"), "*3^$9^subscribe^$14^+switch-master^:1^");
    assert_eq!(talk.told(view(Some(A), true)), "");
    // Nobody is known to serve, which is no takeover.
    assert_eq!(talk.told(view(Some(A), false)), "");
    assert_eq!(talk.told(view(Some(B), true)), message);
    assert_eq!(talk.told(view(Some(B), true)), "");
    assert_eq!(talk.told(view(Some(B), false)), "");
    assert_eq!(talk.told(view(Some(B), true)), "", "the same one serves again");
    let back = "dsm ::1 12346 10.0.0.1 12345";
    let message = format!("*3^$7^message^$14^+switch-master^${}^{back}^", back.len());
    assert_eq!(talk.told(view(Some(A), true)), message);
}

#[test]
fn the_first_master_that_is_known_is_no_takeover() {
    let mut talk = Talk::new(view(None, false));
    talk.ask("SUBSCRIBE +switch-master");
    assert_eq!(talk.told(view(Some(A), true)), "");
    assert!(talk.told(view(Some(B), true)).contains("dsm 10.0.0.1 12345 ::1 12346"));
}

#[test]
fn patterns_and_resp3_have_their_own_forms_and_who_has_not_subscribed_hears_nothing() {
    let payload = "dsm 10.0.0.1 12345 ::1 12346";
    let mut talk = Talk::new(view(Some(A), true));
    talk.ask("HELLO 3");
    assert_eq!(talk.ask("PSUBSCRIBE *"), ">3^$10^psubscribe^$1^*^:1^");
    talk.ask("PSUBSCRIBE -sdown");
    let told = talk.told(view(Some(B), true));
    assert_eq!(told, format!(">4^$8^pmessage^$1^*^$14^+switch-master^${}^{payload}^", payload.len()));
    let mut talk = Talk::new(view(Some(A), true));
    talk.ask("SUBSCRIBE +sdown");
    assert_eq!(talk.told(view(Some(B), true)), "");
    talk.ask("RESET");
    assert!(!talk.talk.is_subscribed());
}

#[test]
fn a_subscriber_in_resp2_may_do_little_else() {
    let mut talk = Talk::new(view(Some(A), true));
    talk.ask("SUBSCRIBE a b");
    let refused =
        "-ERR Can't execute 'role': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                   allowed in this context^";
    assert_eq!(talk.ask("ROLE"), refused);
    assert_eq!(talk.ask("PING"), "*2^$4^pong^$0^^");
    assert_eq!(talk.ask("PING x"), "*2^$4^pong^$1^x^");
    assert_eq!(talk.ask("UNSUBSCRIBE"), "*3^$11^unsubscribe^$1^a^:1^*3^$11^unsubscribe^$1^b^:0^");
    assert_eq!(talk.ask("UNSUBSCRIBE"), "*3^$11^unsubscribe^$-1^:0^");
    assert_eq!(talk.ask("PUNSUBSCRIBE x"), "*3^$12^punsubscribe^$1^x^:0^");
    assert_eq!(talk.ask("PING"), "+PONG^");
    talk.ask("HELLO 3");
    talk.ask("SUBSCRIBE a");
    assert_eq!(talk.ask("PING"), "+PONG^");
    let listed = talk.ask("CLIENT LIST");
    assert!(listed.contains(" flags=P db=0 sub=1 psub=0 "), "{listed}");
}

#[test]
fn subscriptions_are_few_and_their_names_short() {
    let mut talk = Talk::new(view(Some(A), true));
    let names: Vec<String> = (0..SUBSCRIPTIONS_MAX).map(|number| format!("c{number}")).collect();
    assert!(!talk.ask(&format!("SUBSCRIBE {}", names.join(" "))).starts_with('-'));
    let refused = "-ERR a connection has at most 64 subscriptions^";
    assert_eq!(talk.ask("SUBSCRIBE one-more"), refused);
    assert_eq!(talk.ask("PSUBSCRIBE one-more"), refused);
    assert_eq!(talk.ask("SUBSCRIBE c1"), "*3^$9^subscribe^$2^c1^:64^");
    talk.ask("UNSUBSCRIBE c1");
    let long = "x".repeat(CHANNEL_BYTES_MAX + 1);
    assert_eq!(talk.ask(&format!("SUBSCRIBE {long}")), "-ERR a channel's name has at most 256 bytes^");
    assert_eq!(talk.ask("SUBSCRIBE c1"), "*3^$9^subscribe^$2^c1^:64^");
}

#[test]
fn who_must_say_who_it_is_hears_nothing_before() {
    let accounts = Accounts::new(Users::with_password(b"secret"), || Millis(0));
    let mut talk = Talk::with(view(Some(A), true), accounts);
    for asked in
        ["PING", "SENTINEL MASTERS", "SUBSCRIBE +switch-master", "INFO", "ROLE", "CLIENT ID", "COMMAND"]
    {
        assert_eq!(talk.ask(asked), "-NOAUTH Authentication required.^", "{asked}");
    }
    assert_eq!(talk.ask("AUTH secret"), "+OK^");
    assert_eq!(talk.ask("PING"), "+PONG^");
    assert_eq!(talk.ask("SENTINEL get-master-addr-by-name dsm"), "*2^$8^10.0.0.1^$5^12345^");
}

#[test]
fn a_masters_name_fits_into_what_is_published() {
    assert!(is_master_name("dsm") && is_master_name("my-master.1"));
    let long = "x".repeat(CHANNEL_BYTES_MAX + 1);
    for name in ["", "a b", "a\n", "gr\u{fc}n", &long] {
        assert!(!is_master_name(name), "{name:?}");
    }
}
