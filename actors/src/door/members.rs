//! The links over which other members of a log on several machines say what belongs to that: it goes to the log, not to the master.
//!
//! Who comes has proved the secret of nodes, or shown a node's certificate, where there is one. What it says names its cluster and its
//! number, and the log heeds only what is said in its own cluster, and by a number that belongs to its address; or that it has an empty
//! disk and asks to become a member. Slaves have the same secret: whoever has it could say anything.

use super::counters::count;
use super::links::reject;
use super::Context;
use crate::address;
use crate::batch::{Outbox, Turns};
use crate::config::ProtectedMode;
use crate::env::Stream;
use crate::journal::raft::{FromMember, HeardLink, MemberSaid};
use crate::reading::UsualLength;
use crate::shown::shown_message;
use bytes::BytesMut;
use dsm_consensus::ids::MemberId;
use dsm_protocol::command::MasterName;
use dsm_protocol::frame::{self, Unframer};
use dsm_protocol::ids::{Epoch, Seq};
use dsm_protocol::message::{Control, MasterState, Message, Welcome};
use dsm_protocol::record::line_bytes_max;
use std::io;

/// What comes beside the entries in one message, in bytes.
const BESIDE_ENTRIES_BYTES: usize = 4 << 20;

/// Hears another member until either side ends the link.
pub(super) async fn member(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    address: String,
) -> io::Result<()> {
    let Some(mut link) = context.journal.heard_member(&address) else {
        reject(outbox, "this master keeps no log with masters on other machines (--members)");
        return Ok(());
    };
    if let Err(why) = may_be_dialed(&address, context) {
        return refuse(&mut link, outbox, context, why);
    }
    outbox.leave_meter();
    let state = MasterState { active: false, epoch: Epoch(0), seq: Seq(0), active_address: None };
    let value_max = context.config.value_max() as u64;
    let welcome = Message::Control(Control::Welcome(Welcome { cluster: None, value_max, state }));
    outbox.append(|out| frame::encode(&welcome, out));
    // An entry is a line, in which a byte may take three.
    let body_max = line_bytes_max(context.facts.limits.request_bytes_max) + BESIDE_ENTRIES_BYTES;
    let unfinished = context.switchboard.gate.unfinished_frames.part();
    let (mut unframer, mut usual, mut turns) =
        (Unframer::default(), UsualLength::default(), Turns::default());
    loop {
        let mut said = Vec::new();
        loop {
            let before = buffer.len();
            let message = match unframer.next_of_one(&mut buffer, body_max) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return refuse(&mut link, outbox, context, &error.to_string()),
            };
            usual.note(before - buffer.len());
            turns.count().await;
            let Message::Member { cluster, member, body } = message else {
                let why = format!("a member must not send {} here", shown_message(&message));
                return refuse(&mut link, outbox, context, &why);
            };
            let from = MemberId::new(member).map(|member| (cluster, member));
            if !link.speaks(from) {
                return refuse(&mut link, outbox, context, "a member must stay the one that it is");
            }
            said.push(MemberSaid { address: address.clone(), from, body });
        }
        // One part after the other, so that no more waits than what one read has brought.
        if !said.is_empty() && link.port().send(FromMember::Said(said)).await.is_err() {
            link.cut();
            return Ok(());
        }
        if !unfinished.hold(buffer.len()) {
            return refuse(&mut link, outbox, context, "too many bytes of unfinished frames");
        }
        let need = frame::missing(&buffer);
        if !usual.read_more(stream, &mut buffer, need).await? {
            return Ok(());
        }
    }
}

/// Whether a machine may be a member at the address that it gives. It need not be named here, as it may be about to become one; but
/// what is said to it is dialed as the settings say, so it cannot choose how, or have the log sent over a network in plain bytes.
fn may_be_dialed(address: &str, context: &Context) -> Result<(), &'static str> {
    let config = &context.config;
    if config.member_addresses().iter().any(|named| named == address) {
        return Ok(());
    }
    let is_plain_name = address::to_connect_by_tcp(address).is_ok_and(|kept| kept == address);
    if !is_plain_name || MasterName::new(address).is_err() {
        return Err("a member's address must be HOST:PORT, as it is usually written");
    }
    let is_open = config.protected_mode == ProtectedMode::No && context.secrets.nodes.is_none();
    if is_open || context.env.is_private_way(address) {
        return Ok(());
    }
    Err("a member that --members does not name must be reached by TLS, or be on this machine")
}

/// Ends a link for what came over it.
fn refuse(link: &mut HeardLink, outbox: &Outbox, context: &Context, why: &str) -> io::Result<()> {
    link.cut();
    count(&context.switchboard.gate.counters.protocol_errors);
    reject(outbox, why);
    Ok(())
}
