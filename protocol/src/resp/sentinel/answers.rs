//! The answers of a Sentinel about the master, the other masters and the other Sentinels.
//!
//! A field is left out where nothing is known of it: this is no program that pings masters.

use super::super::encode::{array, bulk, error, map, null_array, status, verbatim};
use super::super::{Protocol, REDIS_VERSION};
use super::{is_down, SentinelFacts};
use crate::serving_view::{host_and_port, OtherMaster, ServingView};
use bytes::Bytes;

const HELP: &[&str] = &[
    "SENTINEL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CKQUORUM <master-name>",
    "    Tell whether a master is known to serve.",
    "GET-MASTER-ADDR-BY-NAME <master-name>",
    "    Return the ip and port number of the master with that name.",
    "MASTER <master-name>",
    "    Show the state and info of the specified master.",
    "MASTERS",
    "    Show a list of monitored masters and their state.",
    "MYID",
    "    Return the ID of the Sentinel instance.",
    "REPLICAS <master-name>",
    "    Show a list of replicas for this master and their state.",
    "SENTINELS <master-name>",
    "    Show a list of Sentinel instances for this master and their state.",
    "HELP",
    "    Prints this help.",
];

/// Host and port of the master; nothing where there is none.
pub(super) fn address(protocol: Protocol, master: Option<&str>, out: &mut Vec<u8>) {
    let Some(master) = master else { return null_array(protocol, out) };
    let (host, port) = host_and_port(master);
    array(out, 2);
    bulk(out, host.as_bytes());
    bulk(out, port.to_string().as_bytes());
}

/// Whether somebody serves: there is nothing that Sentinels have to agree on.
pub(super) fn quorum(facts: &SentinelFacts, view: &ServingView, out: &mut Vec<u8>) {
    let usable = 1 + facts.others.len();
    if is_down(view) {
        error(out, &format!("NOQUORUM {usable} usable Sentinels. No master is known to serve"));
    } else {
        let reached = "Quorum and failover authorization can be reached";
        status(out, &format!("OK {usable} usable Sentinels. {reached}"));
    }
}

pub(super) fn help(out: &mut Vec<u8>) {
    array(out, HELP.len());
    HELP.iter().for_each(|line| status(out, line));
}

fn fields(protocol: Protocol, fields: &[(&str, &str)], out: &mut Vec<u8>) {
    map(protocol, out, fields.len());
    for (name, value) in fields {
        bulk(out, name.as_bytes());
        bulk(out, value.as_bytes());
    }
}

/// The master that serves, or the last one that did, or one that may.
fn shown(view: &ServingView) -> &str {
    view.master.as_deref().unwrap_or(view.followed())
}

/// All masters but that one, this one among them.
fn replicas_of(view: &ServingView) -> impl Iterator<Item = OtherMaster> + '_ {
    let own = OtherMaster { address: view.own.clone(), is_connected: true, seq: view.seq };
    let all = std::iter::once(own).chain(view.others.iter().cloned());
    all.filter(|master| master.address != shown(view))
}

/// What is known of the master.
pub(super) fn master(protocol: Protocol, facts: &SentinelFacts, view: &ServingView, out: &mut Vec<u8>) {
    let (host, port) = host_and_port(shown(view));
    fields(
        protocol,
        &[
            ("name", &facts.name),
            ("ip", host),
            ("port", &port.to_string()),
            ("flags", if is_down(view) { "s_down,o_down,master" } else { "master" }),
            ("down-after-milliseconds", &facts.down_after_ms.to_string()),
            ("role-reported", "master"),
            ("config-epoch", &view.epoch.to_string()),
            ("num-slaves", &replicas_of(view).count().to_string()),
            ("num-other-sentinels", &facts.others.len().to_string()),
            ("quorum", "1"),
        ],
        out,
    );
}

/// What is known of each other master, this one among them.
pub(super) fn replicas(protocol: Protocol, view: &ServingView, out: &mut Vec<u8>) {
    let (master_host, master_port) = host_and_port(shown(view));
    array(out, replicas_of(view).count());
    for replica in replicas_of(view) {
        let (host, port) = host_and_port(&replica.address);
        let is_linked = replica.is_connected && !is_down(view);
        fields(
            protocol,
            &[
                ("name", &replica.address),
                ("ip", host),
                ("port", &port.to_string()),
                ("flags", if replica.is_connected { "slave" } else { "s_down,slave,disconnected" }),
                ("role-reported", "slave"),
                ("master-link-status", if is_linked { "ok" } else { "err" }),
                ("master-host", master_host),
                ("master-port", &master_port.to_string()),
                ("slave-repl-offset", &replica.seq.to_string()),
            ],
            out,
        );
    }
}

/// Where the Sentinels of the other masters are.
pub(super) fn sentinels(protocol: Protocol, facts: &SentinelFacts, out: &mut Vec<u8>) {
    array(out, facts.others.len());
    for other in &facts.others {
        let (host, port) = host_and_port(other);
        let known =
            [("name", other.as_str()), ("ip", host), ("port", &port.to_string()), ("flags", "sentinel")];
        fields(protocol, &known, out);
    }
}

/// `INFO [section ...]`: the sections *Server* and *Sentinel*.
pub(super) fn info(
    protocol: Protocol,
    facts: &SentinelFacts,
    view: &ServingView,
    names: &[Bytes],
    out: &mut Vec<u8>,
) {
    let server = format!(
        "# Server\r\ndsm_version:{}\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:sentinel\r\n",
        env!("CARGO_PKG_VERSION")
    );
    let sentinel = format!(
        "# Sentinel\r\nsentinel_masters:1\r\nsentinel_tilt:0\r\n\
         master0:name={},status={},address={},slaves={},sentinels={}\r\n",
        facts.name,
        if is_down(view) { "sdown" } else { "ok" },
        shown(view),
        replicas_of(view).count(),
        1 + facts.others.len(),
    );
    let is_asked = |section: &str| {
        let names_it = |name: &Bytes| {
            [section, "all", "default", "everything"]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        };
        names.is_empty() || names.iter().any(names_it)
    };
    let sections = [("server", server), ("sentinel", sentinel)].into_iter();
    let chosen: Vec<String> = sections.filter(|(name, _)| is_asked(name)).map(|(_, text)| text).collect();
    verbatim(protocol, out, &chosen.join("\r\n"));
}
