#!/usr/bin/env bash
# A rolling restart: each slave, the backup and the primary are stopped with SIGTERM and started again, one after the
# other, while clients write and read. No request fails. Every step is checked; nothing is left behind.
#
#   examples/rolling_restart.sh            uses target/release, builds it if it is missing
#   DSM_BIN=target/debug examples/rolling_restart.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# SIGTERM, and the end with exit code 0.
stop() { # NAME
    local code=0
    kill -TERM "${pid[$1]}"
    wait "${pid[$1]}" || code=$?
    unset "pid[$1]"
    [ "$code" = 0 ] || fail "$1 ended with exit code $code"
}

# One client at its prompt, which keeps its connection: it writes a number and reads it again, until it is told to stop.
load() { # NUMBER
    local round=0 answer
    coproc CLIENT { exec "$bin/dsm-client" --masters "$primary,$backup" 2>>"$work/load-$1.err"; }
    while [ ! -e "$work/enough" ]; do
        round=$((round + 1))
        echo "WRITE load-$1 $round" >&"${CLIENT[1]}"
        IFS= read -r answer <&"${CLIENT[0]}" || answer="no answer"
        [ "$answer" = WRITE_DONE ] || echo "WRITE load-$1 $round -> $answer"
        echo "READ load-$1" >&"${CLIENT[1]}"
        IFS= read -r answer <&"${CLIENT[0]}" || answer="no answer"
        [ "$answer" = "Value for key load-$1 = $round" ] || echo "READ load-$1 -> $answer, not $round"
        echo "$round" >"$work/rounds-$1"
    done >"$work/failed-$1"
    # The end of its input is the end of the client.
    exec {CLIENT[1]}>&-
    wait "$CLIENT_PID" || true
}
rounds() {
    local count
    # It may be about to be written.
    count=$(cat "$work/rounds-$1" 2>/dev/null) || true
    echo "${count:-0}"
}
# Each client has done more than before.
went_on() { # ROUNDS...
    local number=0 before
    for before in "$@"; do
        number=$((number + 1))
        [ "$(rounds "$number")" -gt $((before + 2)) ] || return 1
    done
}
all_go_on() { wait_until 10 "every client goes on" went_on $(for number in 1 2 3 4; do rounds "$number"; done); }

start_cluster

say "Four clients that write and read"
loads=()
for number in 1 2 3 4; do
    load "$number" &
    loads+=("$!")
done
all_go_on

for number in $(seq "$slaves"); do
    say "slave-$number"
    stop "slave-$number"
    all_go_on
    start_slave "$number"
    wait_until 20 "the primary serves with all slaves" serves "$primary"
done

say "The backup"
stop backup
all_go_on
start_backup
wait_until 20 "the backup stands by" stands_by "$backup"

say "The primary: the backup serves meanwhile"
stop primary
wait_until 10 "the backup serves with all slaves" serves "$backup"
all_go_on
start_primary
wait_until 30 "the primary serves again" serves "$primary"
all_go_on

say "No request has failed"
touch "$work/enough"
for child in "${loads[@]}"; do
    wait "$child"
done
for number in 1 2 3 4; do
    [ ! -s "$work/failed-$number" ] || fail "$(head -n 5 "$work/failed-$number")"
done
echo "$(($(rounds 1) + $(rounds 2) + $(rounds 3) + $(rounds 4))) writes, each acknowledged and read again"

stop_cluster
