#!/bin/sh
# secrets.sh [DIRECTORY]: makes what compose.yaml needs and nobody else may have: a CA, a certificate for all nodes and one for
# clients, and the secrets of nodes and of clients. What is there already stays. As root, for the files are to belong to the user
# of the containers (65534); keep ca.key elsewhere afterwards.
set -eu
umask 077
directory=${1:-"$(dirname "$0")/secrets"}
mkdir -p "$directory"
cd "$directory"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
certificate() { # NAME EXTENSIONS
    [ ! -e "$1.crt" ] || return 0
    key "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    printf '%s\n' "$2" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.crt"
    rm "$1.csr" "$1.ext"
}
if [ ! -e ca.crt ]; then
    key ca.key
    openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=dsm" -out ca.crt
fi
names='subjectAltName=DNS:primary,DNS:backup,DNS:localhost,IP:127.0.0.1'
certificate node "$names
extendedKeyUsage=serverAuth,clientAuth"
certificate client "extendedKeyUsage=clientAuth"
for secret in nodes clients; do
    [ -e "$secret.secret" ] || openssl rand -hex 32 >"$secret.secret"
done
chown 65534:65534 node.key node.crt ca.crt nodes.secret clients.secret client.key client.crt
