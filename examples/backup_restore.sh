#!/usr/bin/env bash
# A backup while the cluster serves, a mistake, and the way back: to the backup, and to the record before the mistake. Slaves
# of the old cluster that still run are kept away until they are restarted. Every step is checked.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

log_tool() {
    echo "dsm-log $*"
    "$bin/dsm-log" "$@" >"$work/told" 2>"$work/log_tool.err" || fail "$(tail -n 3 "$work/log_tool.err")"
}
told() { sed -n "s/^$1  *//p" "$work/told"; }
stop() { # NAMES...
    local name
    for name in "$@"; do kill -TERM "${pid[$name]}"; done
    for name in "$@"; do
        wait "${pid[$name]}" || fail "$name ended with exit code $?"
        unset "pid[$name]"
    done
}
# The log is moved away, and in its place is what was backed up.
bring_back() { # ARGUMENTS...
    mv "$log" "$log.before-$SECONDS-$RANDOM"
    log_tool restore --to "$log" "$@"
    echo "cluster $(told cluster), last seq $(told 'last seq')"
    start_primary
    start_backup
    wait_until 20 "the primary serves" serves_alone
}
serves_alone() { [ "$(info "$primary" dsm_role)" = primary ]; }

start_cluster

say "Writes, and a backup while the cluster serves"
for number in $(seq 20); do
    client_quietly 0 "" WRITE "key-$number" "value-$number"
done
log_tool backup --log "$log" --to "$work/backup.log"
echo "cluster $(told cluster), last seq $(told 'last seq'), $(told records) records, $(told bytes) bytes, begun $(told begun)"
client 0 "" WRITE after "the backup"

say "A mistake: half of the keys are deleted"
log_tool backup --log "$log" --to "$work/before_mistake.log"
good=$(told 'last seq')
for number in $(seq 10); do
    client_quietly 0 "" DELETE "key-$number"
done
client 1 "" READ key-1

say "Back to the record before the mistake, seq $good of a backup that was made after it"
log_tool backup --log "$log" --to "$work/with_mistake.log"
stop primary backup
bring_back --from "$work/with_mistake.log" --until "$good"
for number in $(seq 20); do
    client_quietly 0 "value-$number" READ "key-$number"
done
client 0 "the backup" READ after
echo "all 20 keys are there again, and what was written after the first backup"
client 2 "" WRITE key-1 "slaves of the old cluster take nothing"

say "The slaves are restarted: empty, they get what they are to hold"
for number in $(seq "$slaves"); do
    stop "slave-$number"
    start_slave "$number"
done
wait_until 20 "the primary serves with all slaves" serves "$primary"
client 0 "" WRITE key-1 "a new value"
client 0 "a new value" READ key-1

say "Back to the first backup, with everything stopped"
stop "${!pid[@]}"
bring_back --from "$work/backup.log"
for number in $(seq "$slaves"); do start_slave "$number"; done
wait_until 20 "the primary serves with all slaves" serves "$primary"
client 0 "value-1" READ key-1
client 1 "" READ after

stop_cluster
