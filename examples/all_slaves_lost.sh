#!/usr/bin/env bash
# Loss of every slave: writes are refused as not executed, reads are answered from the log, and new, empty slaves get the
# values back by themselves, and at once as they are read. Every step is checked.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_cluster
for number in $(seq 10); do
    client_quietly 0 "" WRITE "key-$number" "value-$number"
done

say "kill -9 of all slaves"
for number in $(seq "$slaves"); do
    crash "slave-$number"
done
wait_until 10 "all slaves are removed" serves_with "$primary" 0
client 2 "" WRITE key-1 lost
grep -q NOQUORUM "$work/client.err" || fail "the refusal does not say NOQUORUM"
echo "the refusal says: $(tail -n 1 "$work/client.err")"

say "Reads go on, from the log"
for number in $(seq 10); do
    client_quietly 0 "value-$number" READ "key-$number"
done
echo "all 10 keys are read; $(info "$primary" reads_from_log) of the reads came from the log"

say "Empty slaves return"
for number in $(seq "$slaves"); do
    start_slave "$number"
done
wait_until 20 "all slaves are active" serves "$primary"
client 0 "value-1" READ key-1
client 0 "" WRITE key-1 changed
client 0 "changed" READ key-1
echo "copies at the slaves: $(info "$primary" copies)"

stop_cluster
