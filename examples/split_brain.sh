#!/usr/bin/env bash
# An attempt at a split brain: the lock file is deleted while the primary serves, and a second primary is started on the
# same log. The log's own inode is locked too, so that nobody but the first one ever serves. Every step is checked.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_cluster
client 0 "" WRITE who first

say "Somebody deletes the lock file and starts another primary on the same log"
rm "$log.lock"
third=127.0.0.1:$(free_port)
start intruder dsm-master --listen "$third" --peer "$backup" --log "$log"
wait_until 10 "the intruder finds the log locked" grep -q "log is locked by another process" "$work/intruder.err"
echo "the intruder says: $(grep -m 1 "log is locked" "$work/intruder.err" | sed 's/.*WARN *//')"
epoch=$(info "$primary" epoch)
for number in $(seq 20); do
    client_quietly 0 WRITE_DONE WRITE who "first-$number"
    [ "$(info "$third" dsm_role)" != primary ] || fail "two masters serve"
done
[ "$(info "$primary" epoch)" = "$epoch" ] || fail "a second reign has begun"
echo "20 writes later the first primary still serves alone, epoch $epoch"

say "The first primary dies; exactly one of the others serves"
crash primary
somebody_serves() { [ "$(info "$backup" dsm_role)" = primary ] || [ "$(info "$third" dsm_role)" = primary ]; }
wait_until 20 "somebody serves" somebody_serves
both=0
for number in $(seq 20); do
    serving=0
    for address in "$backup" "$third"; do
        [ "$(info "$address" dsm_role)" != primary ] || serving=$((serving + 1))
    done
    [ "$serving" -le 1 ] || both=1
done
[ "$both" = 0 ] || fail "two masters serve"
answer=$("$bin/dsm-client" --masters "$third,$backup" READ who)
[ "$answer" = first-20 ] || fail "the last acknowledged write is lost: $answer"
echo "dsm-client READ who -> $answer"

stop_cluster
