#!/usr/bin/env bash
# The failover demonstration, by hand: both masters and three slaves as processes of their own, a write, kill -9 of
# the primary, a read from the backup, the return of the primary. Every step is checked; the exit code says whether
# all of it held. Nothing is left behind.
#
#   examples/failover.sh                   uses target/release, builds it if it is missing
#   DSM_BIN=target/debug examples/failover.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# STATUS ends with 1 when something is missing, and says in one line what.
status_says() {
    local told code=0
    told=$("$bin/dsm-client" --masters "$primary,$backup" STATUS 2>&1 >/dev/null) || code=$?
    [ "$code" = 1 ] && [[ $told == *"degraded: "*"$1"* ]]
}
status_is_fine() { "$bin/dsm-client" --masters "$primary,$backup" STATUS >/dev/null 2>&1; }

start_cluster

say "A write and a read"
client 0 "" WRITE greeting "hello world"
client 0 "hello world" READ greeting
client 1 "" READ never-written
for number in $(seq 20); do
    client_quietly 0 "" WRITE "key-$number" "value-$number"
done
echo "... and 20 more keys"

say "kill -9 of the primary (pid ${pid[primary]})"
crash primary
client 0 "hello world" READ greeting
client 0 "" WRITE greeting "hello from the backup"
client 0 "hello from the backup" READ greeting
wait_until 10 "the backup serves with all slaves" serves "$backup"
echo "the backup serves, epoch $(info "$backup" epoch)"
wait_until 10 "STATUS says that no standby is left" status_says "no standby is connected"

say "The primary returns and takes its place again"
start_primary
wait_until 30 "the primary serves again" serves "$primary"
wait_until 10 "the backup stands by again" stands_by "$backup"
echo "the primary serves, epoch $(info "$primary" epoch); the backup stands by"
wait_until 10 "STATUS finds nothing missing" status_is_fine
client 0 "hello from the backup" READ greeting

say "Nothing is lost"
for number in $(seq 20); do
    client_quietly 0 "value-$number" READ "key-$number"
done
echo "all 20 keys are there"

stop_cluster
