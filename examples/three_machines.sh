#!/usr/bin/env bash
# Three masters, each with a log of its own, as on three machines (docs/MACHINES.md): the one that serves is killed, its machine
# stands still, two of three are gone, all of them at once. Nothing that was acknowledged is lost. Every step is checked.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/members.sh"

# Sets `leader` to the number of the master that serves with all slaves.
leads() {
    local number
    for number in 0 1 2; do
        if [ -n "${pid[${names[$number]}]:-}" ] && serves "${addresses[$number]}"; then
            leader=$number
            return 0
        fi
    done
    return 1
}
another_leads() { leads && [ "$leader" != "$1" ]; }

start_members
wait_until 20 "one of them serves with all slaves" leads
echo "${names[$leader]} serves, epoch $(info "${addresses[$leader]}" epoch)"
write_some

say "kill -9 of the one that serves"
killed=$leader
crash "${names[$killed]}"
wait_until 10 "another one serves" another_leads "$killed"
echo "${names[$leader]} serves, epoch $(info "${addresses[$leader]}" epoch)"
write_some
read_all
start_member "$killed"

say "The one that serves stands still (SIGSTOP), as a machine that is suspended"
wait_until 20 "one of them serves with all slaves" leads
stopped=$leader
kill -STOP "${pid[${names[$stopped]}]}"
wait_until 20 "another one serves" another_leads "$stopped"
echo "${names[$leader]} serves, epoch $(info "${addresses[$leader]}" epoch)"
kill -CONT "${pid[${names[$stopped]}]}"
wait_until 20 "the one that stood still follows, or has the reign back in a later epoch" leads
write_some
read_all

say "All three are killed at once, and start in another order"
for name in "${names[@]}"; do crash "$name"; done
for number in 2 0; do start_member "$number"; done
wait_until 20 "two of three serve" leads
read_all
start_member 1
wait_until 20 "the third one follows" stands_by "${addresses[1]}"

stop_cluster
