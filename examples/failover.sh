#!/usr/bin/env bash
# The failover demonstration, by hand: both masters and three slaves as processes of their own, a write, kill -9 of
# the primary, a read from the backup, the return of the primary. Every step is checked; the exit code says whether
# all of it held. Nothing is left behind.
#
#   examples/failover.sh                   uses target/release, builds it if it is missing
#   DSM_BIN=target/debug examples/failover.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${DSM_BIN:-$root/target/release}
programs=(dsm-master dsm-backup-master dsm-slave dsm-client)
slaves=3

work=$(mktemp -d "${TMPDIR:-/tmp}/dsm-failover.XXXXXX")
declare -A pid=()
finished=no

leave() {
    local status=$? name
    trap - EXIT
    if [ "$finished" != yes ]; then
        [ "$status" -ne 0 ] || status=1
        echo
        echo "FAILED. What the processes said last:"
        for name in "${!pid[@]}"; do
            echo "--- $name"
            tail -n 15 "$work/$name.err" 2>/dev/null || true
        done
    fi
    {
        for name in "${!pid[@]}"; do
            kill -9 "${pid[$name]}" || true
        done
        wait || true
    } 2>/dev/null
    rm -rf "$work"
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "WRONG: $*" >&2
    exit 1
}

missing=no
for program in "${programs[@]}"; do
    [ -x "$bin/$program" ] || missing=yes
done
if [ "$missing" = yes ]; then
    [ -z "${DSM_BIN:-}" ] || fail "not all of ${programs[*]} are in $DSM_BIN"
    say "Building the release binaries"
    (cd "$root" && cargo build --release --locked --bins)
fi

# A port that nobody listens at, below those that the kernel gives to outgoing connections.
free_port() {
    local port
    for _ in $(seq 100); do
        port=$((10000 + RANDOM % 20000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "no free port"
}
first=$(free_port)
second=$(free_port)
while [ "$second" = "$first" ]; do second=$(free_port); done
primary=127.0.0.1:$first
backup=127.0.0.1:$second

start() { # NAME PROGRAM ARGUMENTS...
    local name=$1 program=$2
    shift 2
    "$bin/$program" "$@" >>"$work/$name.err" 2>&1 </dev/null &
    pid[$name]=$!
    echo "$name: $program $*   (pid ${pid[$name]})"
}
start_primary() { start primary dsm-master --listen "$primary" --peer "$backup" --log "$work/kv_store.log"; }

# One line of a master's INFO; empty when it does not answer.
info() { # ADDRESS KEY
    timeout 2 bash -c '
        exec 3<>"/dev/tcp/${1%:*}/${1##*:}"
        printf "*1\r\n\$4\r\nINFO\r\n" >&3
        IFS= read -r length <&3
        length=${length//[^0-9]/}
        head -c "$length" <&3
    ' info "$1" 2>/dev/null | tr -d '\r' | sed -n "s/^$2://p" || true
}

wait_until() { # SECONDS WHAT COMMAND...
    local seconds=$1 what=$2
    shift 2
    local end=$((SECONDS + seconds))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "waited $seconds s in vain: $what"
        sleep 0.05
    done
}
serves() { [ "$(info "$1" role)" = primary ] && [ "$(info "$1" active_slaves)" = "$slaves" ]; }
stands_by() { [ "$(info "$1" role)" = standby ]; }

client() { # EXPECTED-EXIT-CODE EXPECTED-TEXT ARGUMENTS...
    local expected_code=$1 expected_text=$2 code=0 answer
    shift 2
    answer=$("$bin/dsm-client" --masters "$primary,$backup" "$@" 2>>"$work/client.err") || code=$?
    echo "dsm-client $* -> $answer (exit code $code)"
    [ "$code" = "$expected_code" ] || fail "exit code $code instead of $expected_code: $(tail -n 3 "$work/client.err")"
    case $answer in
    *"$expected_text"*) ;;
    *) fail "the answer lacks '$expected_text'" ;;
    esac
}
client_quietly() { client "$@" >/dev/null; }

say "A primary, a backup and $slaves slaves"
start_primary
start backup dsm-backup-master --listen "$backup" --peer "$primary" --log "$work/kv_store.log"
for number in $(seq "$slaves"); do
    start "slave-$number" dsm-slave --masters "$primary,$backup" --id "slave-$number"
done
wait_until 20 "the primary serves with all slaves" serves "$primary"
wait_until 10 "the backup stands by" stands_by "$backup"
echo "the primary serves, epoch $(info "$primary" epoch); the backup stands by"

say "A write and a read"
client 0 "" WRITE greeting "hello world"
client 0 "hello world" READ greeting
client 1 "" READ never-written
for number in $(seq 20); do
    client_quietly 0 "" WRITE "key-$number" "value-$number"
done
echo "... and 20 more keys"

say "kill -9 of the primary (pid ${pid[primary]})"
kill -9 "${pid[primary]}"
wait "${pid[primary]}" 2>/dev/null || true
unset 'pid[primary]'
client 0 "hello world" READ greeting
client 0 "" WRITE greeting "hello from the backup"
client 0 "hello from the backup" READ greeting
wait_until 10 "the backup serves with all slaves" serves "$backup"
echo "the backup serves, epoch $(info "$backup" epoch)"
client_quietly 0 "role:primary" STATUS

say "The primary returns and takes its place again"
start_primary
wait_until 30 "the primary serves again" serves "$primary"
wait_until 10 "the backup stands by again" stands_by "$backup"
echo "the primary serves, epoch $(info "$primary" epoch); the backup stands by"
client 0 "hello from the backup" READ greeting

say "Nothing is lost"
for number in $(seq 20); do
    client_quietly 0 "value-$number" READ "key-$number"
done
echo "all 20 keys are there"

say "A clean stop: SIGTERM to all"
for name in "${!pid[@]}"; do
    kill -TERM "${pid[$name]}"
done
for name in "${!pid[@]}"; do
    code=0
    wait "${pid[$name]}" || code=$?
    unset "pid[$name]"
    [ "$code" = 0 ] || fail "$name ended with exit code $code"
done
echo "every process ended with exit code 0"

finished=yes
say "All of it held"
