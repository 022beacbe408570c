#!/usr/bin/env bash
# A machine of three loses its disk. Its master says why it may not go on, and takes its place again as a new member; then another
# machine is lost, and everything is still there. Every step is checked. See docs/MACHINES.md, Replacing a machine.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../members.sh"

first_leads() { serves "${addresses[0]}"; }
second_or_third_leads() { serves "${addresses[1]}" || serves "${addresses[2]}"; }
is_kept_out() { [[ $(info "${addresses[2]}" waiting_for) = *"the log is empty, but this address is member 3"* ]]; }
is_replaced() {
    [ "$(info "${addresses[0]}" members_change)" = no ] && [[ $(info "${addresses[0]}" member2) = id=4,*role=voter* ]]
}

start_members
wait_until 20 "the first one serves with all slaves" first_leads
write_some

say "The disk of c is lost: its master starts on an empty one"
crash c
rm -r "$work/c"
write_some
start_member 2
wait_until 20 "c says that it may not go on as the member that it was" is_kept_out
info "${addresses[2]}" waiting_for

say "MEMBERS REPLACE: c takes its own place as a new member"
client 0 MEMBERS_BEGUN MEMBERS REPLACE 3 "${addresses[2]}"
wait_until 20 "c has the log and a vote, and a majority knows it for good" is_replaced
info "${addresses[0]}" member2
wait_until 20 "c follows" stands_by "${addresses[2]}"

say "kill -9 of a, which serves: b and c are a majority"
crash a
wait_until 10 "one of them serves" second_or_third_leads
write_some
read_all
start_member 0
wait_until 20 "a follows, or has the reign back" eval 'stands_by "${addresses[0]}" || first_leads'

stop_cluster
