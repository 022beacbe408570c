#!/usr/bin/env bash
# The return of a primary while clients write: it catches up, asks for its place after a stable second, and gets it by
# a handover in which no request fails. Then an operator stops it, and later gives it the reign by hand. Every step is checked.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_cluster

say "kill -9 of the primary; the backup takes over"
crash primary
client 0 "" WRITE counter 0
wait_until 10 "the backup serves with all slaves" serves "$backup"

say "The primary returns while a client writes without a pause"
start_primary
writes=0
until serves "$primary"; do
    [ "$writes" -lt 20000 ] || fail "the primary did not get its place back"
    writes=$((writes + 1))
    client_quietly 0 WRITE_DONE WRITE counter "$writes"
done
echo "$writes writes were acknowledged meanwhile, none failed"
client 0 "$writes" READ counter

say "An operator stops the primary, and later gives it the reign by hand"
wait_until 10 "the backup stands by" stands_by "$backup"
kill -TERM "${pid[primary]}" && wait "${pid[primary]}" && unset 'pid[primary]'
wait_until 10 "the backup serves" serves "$backup"
# Without this flag the primary would ask for its place after a stable second.
start_primary --no-failback
wait_until 10 "the primary stands by" stands_by "$primary"
client 0 "$writes" READ counter
sleep 2
stands_by "$primary" || fail "the primary took its place although --no-failback was given"
wait_until 10 "the handover is accepted" client_quietly 0 "" FAILOVER
wait_until 10 "the primary serves" serves "$primary"
echo "the primary serves, epoch $(info "$primary" epoch)"
client 0 "$writes" READ counter

stop_cluster
