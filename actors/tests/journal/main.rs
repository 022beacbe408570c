//! The contract of `dsm::journal::Journal`, which every kind of log must keep: one suite, run over the file that masters
//! share, in a simulated world, and over the log in memory.
//! `members_files.rs` is what becomes of the files of members that compact their logs, `one_file.rs` is what only a file can be asked, `raft_disk.rs` what the disk of a member of a replicated log can.

mod compaction;
mod members_files;
mod one_file;
mod raft_disk;
mod rigs;
mod suite;

/// Makes a test of each rule for one kind of log.
macro_rules! keeps {
    ($kind:ident, $rig:ty: $($rule:ident),+ $(,)?) => {
        mod $kind {
            $(
                #[test]
                fn $rule() {
                    <$rig as crate::rigs::Rig>::run(|rig| crate::suite::$rule(rig));
                }
            )+
        }
    };
}

/// The same for all kinds.
macro_rules! all_keep {
    ($($rule:ident),+ $(,)?) => {
        keeps!(shared_file, crate::rigs::OneFile: $($rule),+);
        keeps!(memory, crate::rigs::InMemory: $($rule),+);
    };
}

all_keep!(
    an_acknowledged_append_is_seen_by_a_follower,
    an_acknowledged_append_is_seen_by_the_next_leader,
    appends_stand_in_the_order_in_which_they_were_asked_for,
    a_follower_that_comes_late_replays_everything,
    one_leads_at_a_time_and_each_reign_is_above_the_one_before,
    nothing_is_written_after_leadership_is_lost,
    a_leader_that_is_deposed_hears_it_and_all_that_it_asked_for_is_answered,
    a_refused_append_is_in_nobodys_log,
    who_replays_the_log_is_told_when_values_expire_and_what_time_it_was,
    what_rests_on_a_refused_append_is_refused_in_its_turn,
    a_sync_is_answered_and_does_not_stop_the_writing,
    a_handover_loses_nothing,
    a_handover_may_be_asked_back,
    a_log_is_closed_or_given_back_and_never_both,
    a_value_is_read_by_the_place_that_was_told,
    a_value_is_not_read_from_a_log_that_is_closed,
    what_is_noted_is_told_until_a_reign_begins,
    who_leaves_the_queue_does_not_lead,
    what_keeps_a_leader_from_serving_is_told_in_one_line_with_its_cause,
);

// Of three members of a replicated log. What is left out: a full disk refuses nothing there, the log has no times yet, and what is
// noted of slaves is forgotten with the process.
keeps!(
    members, crate::rigs::ThreeMembers:
    an_acknowledged_append_is_seen_by_a_follower,
    appends_stand_in_the_order_in_which_they_were_asked_for,
    a_follower_that_comes_late_replays_everything,
    one_leads_at_a_time_and_each_reign_is_above_the_one_before,
    nothing_is_written_after_leadership_is_lost,
    a_leader_that_is_deposed_hears_it_and_all_that_it_asked_for_is_answered,
    a_sync_is_answered_and_does_not_stop_the_writing,
    a_handover_loses_nothing,
    a_handover_may_be_asked_back,
    a_value_is_read_by_the_place_that_was_told,
    a_value_is_not_read_from_a_log_that_is_closed,
    what_is_noted_is_told_until_a_reign_begins,
    what_keeps_a_leader_from_serving_is_told_in_one_line_with_its_cause,
    who_leads_is_confirmed_and_who_was_cut_off_is_not,
);
