# What the scripts with three masters on machines of their own share, on top of lib.sh. To be sourced.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

third=$(free_port)
while [ "$third" = "$first" ] || [ "$third" = "$second" ]; do third=$(free_port); done
addresses=("$primary" "$backup" "127.0.0.1:$third")
names=(a b c)
members="$primary,$backup,127.0.0.1:$third"
masters=$members

start_member() { # 0, 1 or 2
    mkdir -p "$work/${names[$1]}"
    start "${names[$1]}" dsm-master --listen "${addresses[$1]}" --members "$members" --log "$work/${names[$1]}/kv_store.log"
}
start_members() { # and the slaves
    say "Three masters with a log each, and $slaves slaves"
    local number
    for number in 0 1 2; do start_member "$number"; done
    for number in $(seq "$slaves"); do
        start "slave-$number" dsm-slave --masters "$members" --id "slave-$number"
    done
}
read_all() {
    local number
    for number in $(seq "$written"); do
        client_quietly 0 "value-$number" READ "key-$number"
    done
    echo "all $written keys are read"
}
write_some() {
    local number
    for number in $(seq $((written + 1)) $((written + 10))); do
        client_quietly 0 WRITE_DONE WRITE "key-$number" "value-$number"
    done
    written=$((written + 10))
}
written=0
