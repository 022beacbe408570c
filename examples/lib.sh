# What the example scripts share: processes in a temporary directory on free ports, steps that are told and checked, and
# nothing left behind. To be sourced; the sourcing script sets `-euo pipefail`.
#
#   DSM_BIN=target/debug   the folder of the binaries; the default is target/release, built if it is missing
#   SLAVES=3               how many slaves the cluster has

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${DSM_BIN:-$root/target/release}
programs=(dsm-master dsm-backup-master dsm-slave dsm-client dsm-log)
slaves=${SLAVES:-3}

work=$(mktemp -d "${TMPDIR:-/tmp}/dsm-example.XXXXXX")
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
    (cd "$root" && cargo build --release --locked -p dsm-server --bins)
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
masters=$primary,$backup

start() { # NAME PROGRAM ARGUMENTS...
    local name=$1 program=$2
    shift 2
    "$bin/$program" "$@" >>"$work/$name.err" 2>&1 </dev/null &
    pid[$name]=$!
    echo "$name: $program $*   (pid ${pid[$name]})"
}
log=$work/kv_store.log
start_primary() { start primary dsm-master --listen "$primary" --peer "$backup" --log "$log" "$@"; }
start_backup() { start backup dsm-backup-master --listen "$backup" --peer "$primary" --log "$log" "$@"; }
start_slave() { start "slave-$1" dsm-slave --masters "$primary,$backup" --id "slave-$1"; }

# kill -9, as a crash would; returns when the process is gone.
crash() { # NAME
    kill -9 "${pid[$1]}"
    wait "${pid[$1]}" 2>/dev/null || true
    unset "pid[$1]"
}

start_cluster() {
    say "A primary, a backup and $slaves slaves"
    start_primary
    start_backup
    local number
    for number in $(seq "$slaves"); do
        start_slave "$number"
    done
    wait_until 20 "the primary serves with all slaves" serves "$primary"
    wait_until 10 "the backup stands by" stands_by "$backup"
    echo "the primary serves, epoch $(info "$primary" epoch); the backup stands by"
}

stop_cluster() {
    say "A clean stop: SIGTERM to all"
    local name code
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
}

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
serves_with() { [ "$(info "$1" dsm_role)" = primary ] && [ "$(info "$1" active_slaves)" = "$2" ]; }
serves() { serves_with "$1" "$slaves"; }
stands_by() { [ "$(info "$1" dsm_role)" = standby ]; }

client() { # EXPECTED-EXIT-CODE EXPECTED-TEXT ARGUMENTS...
    local expected_code=$1 expected_text=$2 code=0 answer
    shift 2
    answer=$("$bin/dsm-client" --masters "$masters" "$@" 2>>"$work/client.err") || code=$?
    echo "dsm-client $* -> $answer (exit code $code)"
    [ "$code" = "$expected_code" ] || fail "exit code $code instead of $expected_code: $(tail -n 3 "$work/client.err")"
    case $answer in
    *"$expected_text"*) ;;
    *) fail "the answer lacks '$expected_text'" ;;
    esac
}
client_quietly() { client "$@" >/dev/null; }

