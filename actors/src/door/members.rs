//! The links over which other members of a log on several machines say what belongs to that: it goes to the log, not to the master.
//!
//! Who comes has proved the secret of nodes, or shown a node's certificate, where there is one, and calls itself by an address of
//! `--members`. What it says names its cluster and its number, and the log heeds only what is said in its own cluster, and by a number
//! that belongs to that address. Slaves have the same secret: whoever has it could say anything.

use super::counters::count;
use super::links::reject;
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use crate::journal::raft::{FromMember, HeardLink, MemberSaid};
use crate::reading::UsualLength;
use crate::shown::shown_message;
use bytes::BytesMut;
use dsm_consensus::ids::MemberId;
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
    let Some(mut link) = context.journal.heard_member() else {
        reject(outbox, "this master keeps no log with masters on other machines (--members)");
        return Ok(());
    };
    if !context.config.member_addresses().contains(&address) {
        return refuse(
            &mut link,
            outbox,
            context,
            "this address is not among those that this master names (--members)",
        );
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

/// Ends a link for what came over it.
fn refuse(link: &mut HeardLink, outbox: &Outbox, context: &Context, why: &str) -> io::Result<()> {
    link.cut();
    count(&context.switchboard.gate.counters.protocol_errors);
    reject(outbox, why);
    Ok(())
}
