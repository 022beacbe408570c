#!/usr/bin/env bash
# Loss and return of a slave: a killed slave is removed at once, a hung one when it misses an acknowledgement; the write
# that it held up is completed by a substitute, and a slave that comes back is used again. Every step is checked.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ "$slaves" -ge 3 ] || fail "this script needs three slaves or more"
start_cluster
for number in $(seq 30); do
    client_quietly 0 "" WRITE "key-$number" "value-$number"
done
echo "30 keys are written, each to $(((slaves + 1) / 2)) of $slaves slaves"

say "kill -9 of slave 2"
crash slave-2
wait_until 10 "slave 2 is removed" serves_with "$primary" $((slaves - 1))
for number in $(seq 30); do
    client_quietly 0 "value-$number" READ "key-$number"
done
echo "all 30 keys are read"

say "Slave 2 returns, empty"
start_slave 2
wait_until 10 "slave 2 is active" serves_with "$primary" "$slaves"

say "Slave 3 hangs (SIGSTOP)"
kill -STOP "${pid[slave-3]}"
for number in $(seq 8); do
    client_quietly 0 WRITE_DONE WRITE "key-$number" "changed-$number"
done
wait_until 10 "slave 3 is removed" serves_with "$primary" $((slaves - 1))
echo "8 writes are acknowledged; $(info "$primary" substitutions) went to a substitute; slave 3 is removed"

say "Slave 3 runs again (SIGCONT)"
kill -CONT "${pid[slave-3]}"
wait_until 20 "slave 3 is active again" serves_with "$primary" "$slaves"
for number in $(seq 8); do
    client_quietly 0 "changed-$number" READ "key-$number"
done
for number in $(seq 9 30); do
    client_quietly 0 "value-$number" READ "key-$number"
done
echo "all 30 keys hold what was acknowledged last"

stop_cluster
