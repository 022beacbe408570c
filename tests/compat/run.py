"""Clients in other languages on a cluster with TLS, users and a secret: `make compat`.

ioredis, node-redis, redis-py and redis-cli write and read while the master that serves is killed, twice, and comes back: at
each master, and by their own Sentinel clients, which know the Sentinels of the masters alone.
Each must go on, read what it has written, and be refused what its user may not do.

run.py PROGRAMS: the directory of dsm-master and the others. Installs the clients into a temporary directory, by npm and pip.
Needs node, npm, pip, openssl and redis-cli. Prints `N passed, N failed`; the exit code is 1 if anything failed.
"""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

PACKAGES = {"npm": ["ioredis@6.0.0", "redis@6.3.1"], "pip": ["redis==8.1.0"]}
PASSWORD = "open-sesame"
USERS = f"user default off\nuser app on >{PASSWORD} ~app:* +@all -@admin -@dangerous\nuser ops on >{PASSWORD} ~* +@all\n"
# How long anything may take that happens by itself, in seconds.
LIMIT = 120
# How often each client must succeed after each event.
GOES_ON = 30

passed, failed = 0, []


def check(what, is_so, told=""):
    global passed
    if is_so:
        passed += 1
        print(f"ok      {what}", flush=True)
    else:
        failed.append(what)
        print(f"FAILED  {what} {told}", flush=True)


def wait(what, look):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_certificates(directory):
    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=ca")
    for name, usage in [("node", "serverAuth,clientAuth"), ("client", "clientAuth")]:
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        text = f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\n"
        (directory / f"{name}.ext").write_text(text)
        signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
    for key in directory.glob("*.key"):
        key.chmod(0o600)


class Cluster:
    """Two masters and three slaves, all with TLS and a secret; clients need no certificate."""

    def __init__(self, programs, directory):
        self.programs, self.directory, self.processes = programs, directory, {}
        ports = free_ports(4)
        self.ports, self.sentinels = ports[:2], ports[2:]
        make_certificates(directory)
        for name, text in [("users", USERS), ("secret", "a secret of these nodes\n")]:
            (directory / name).write_text(text)
            (directory / name).chmod(0o600)
        self.addresses = [f"127.0.0.1:{port}" for port in self.ports]

    def start(self, name):
        doors = ["--tls-cert", "node.crt", "--tls-key", "node.key", "--tls-ca", "ca.crt", "--secret-file", "secret"]
        if name.startswith("slave"):
            words = ["dsm-slave", "--masters", ",".join(self.addresses), "--id", name]
        else:
            number = ["master", "backup"].index(name)
            program = ["dsm-master", "dsm-backup-master"][number]
            listen, peer = self.addresses[number], self.addresses[1 - number]
            words = [program, "--listen", listen, "--peer", peer, "--log", "kv_store.log"]
            words += ["--users-file", "users", "--tls-client-auth", "optional"]
            own, other = [f"127.0.0.1:{self.sentinels[at]}" for at in (number, 1 - number)]
            words += ["--sentinel", own, "--sentinel-peer", other]
        with open(self.directory / f"{name}.out", "ab") as output:
            command = [str(self.programs / words[0]), *words[1:], *doors]
            process = subprocess.Popen(command, cwd=self.directory, stdout=output, stderr=output)
        self.processes[name] = process

    def cli(self, port, *words, user="ops", password=PASSWORD):
        command = ["redis-cli", "--tls", "--cacert", "ca.crt", "-p", str(port), "--no-auth-warning"]
        command += ["--user", user, "--pass", password, *words]
        run = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, timeout=LIMIT)
        return run.stdout + run.stderr

    def info(self, number):
        text = self.cli(self.ports[number], "INFO")
        return dict(line.strip().split(":", 1) for line in text.splitlines() if ":" in line)

    def wait_for_role(self, number, role):
        wait(f"master {number} is {role}", lambda: self.info(number).get("dsm_role") == role)

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


class NodeClients:
    """ioredis and node-redis, three of each."""

    def __init__(self, cluster):
        script = pathlib.Path(__file__).with_name("clients.js")
        words = ["node", str(script), str(cluster.directory), *map(str, cluster.ports + cluster.sentinels)]
        self.errors = open(cluster.directory / "clients.out", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.last = {"done": {}, "faults": []}
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.last = json.loads(line)

    def done(self):
        if self.process.poll() is not None:
            self.errors.seek(0)
            raise RuntimeError(f"the clients have ended: {self.last} {self.errors.read()}")
        return self.last["done"]

    def finish(self):
        self.process.stdin.close()
        try:
            self.process.wait(LIMIT)
        finally:
            self.process.kill()
        self.reader.join(LIMIT)
        return self.last["faults"]


class PythonClients:
    """redis-py, one at each master, and one that knows the Sentinels alone."""

    def __init__(self, redis, cluster):
        self.redis, self.cluster = redis, cluster
        self.counts, self.faults, self.is_over = {}, [], False
        ports = [*cluster.ports, "sentinel"]
        self.threads = [threading.Thread(target=self.load, args=(port,), daemon=True) for port in ports]
        for thread in self.threads:
            thread.start()

    def open(self, port):
        files = {
            f"ssl_{name}": str(self.cluster.directory / file)
            for name, file in [("ca_certs", "ca.crt"), ("certfile", "client.crt"), ("keyfile", "client.key")]
        }
        options = {"username": "app", "password": PASSWORD, "ssl": True, "socket_timeout": 10, **files}
        if port != "sentinel":
            return self.redis.Redis("127.0.0.1", port, **options)
        known = [("127.0.0.1", sentinel) for sentinel in self.cluster.sentinels]
        return self.redis.sentinel.Sentinel(known, sentinel_kwargs=options).master_for("dsm", **options)

    def load(self, port):
        client, name = self.open(port), f"redis-py-{port}"
        self.counts[name], maybe, number = 0, set(), 0
        try:
            client.set("other", "x")
            self.faults.append(f"{name}: a key of others is written")
        except self.redis.exceptions.NoPermissionError:
            pass
        while not self.is_over:
            number += 1
            value = f"{name}-{number}".encode()
            # The outcome of a write that failed is not known: it may be read later.
            maybe.add(value)
            try:
                client.set(f"app:{name}", value)
                found = client.get(f"app:{name}")
            except (self.redis.exceptions.ConnectionError, self.redis.exceptions.TimeoutError):
                time.sleep(0.01)
                continue
            except self.redis.exceptions.ResponseError as error:
                if str(error).split(" ")[0] not in ("UNKNOWN", "STANDBY", "NOQUORUM", "LOADING", "BUSY"):
                    self.faults.append(f"{name}: {error}")
                time.sleep(0.01)
                continue
            if found not in maybe:
                self.faults.append(f"{name}: wrote {value}, read {found}")
            if found == value:
                maybe.clear()
            self.counts[name] += 1

    def done(self):
        return self.counts

    def finish(self):
        self.is_over = True
        for thread in self.threads:
            thread.join(LIMIT)
        return self.faults


def check_cli(cluster):
    port = cluster.ports[1]
    check("redis-cli --tls asks the standby", cluster.cli(port, "PING").strip() == "PONG")
    check("redis-cli --tls writes through it", cluster.cli(port, "SET", "cli", "1").strip() == "OK")
    check("redis-cli --tls reads that at the primary", cluster.cli(cluster.ports[0], "GET", "cli").strip() == "1")
    told = cluster.cli(port, "GET", "cli", user="app")
    check("redis-cli --tls is refused the keys of others", "NOPERM" in told, told)
    told = cluster.cli(port, "GET", "cli", password="wrong")
    check("redis-cli --tls is refused a wrong password", "WRONGPASS" in told, told)
    plain = subprocess.run(
        ["redis-cli", "-p", str(port), "PING"], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    check("redis-cli without TLS is refused", "PONG" not in plain.stdout, plain.stdout)


def go_on(what, clients, names):
    """Waits until each of the clients at those ports, and those that follow the master, has succeeded so often again."""
    names = (*names, "sentinel") if isinstance(names, tuple) else (names, "sentinel")
    before = {name: count for each in clients for name, count in each.done().items()}

    def all_went_on():
        now = {name: count for each in clients for name, count in each.done().items()}
        return all(now[name] >= before.get(name, 0) + GOES_ON for name in now if name.endswith(names))

    try:
        wait(what, all_went_on)
        check(f"all clients go on {what}", True)
    except TimeoutError:
        now = {name: count for each in clients for name, count in each.done().items()}
        check(f"all clients go on {what}", False, f"{before} {now}")


def run(programs, directory):
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(directory), *PACKAGES["npm"]],
        check=True, timeout=600,
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(directory / "py"), *PACKAGES["pip"]]
    subprocess.run(pip, check=True, timeout=600)
    sys.path.insert(0, str(directory / "py"))
    import redis.sentinel

    cluster = Cluster(programs, directory)
    clients = []
    try:
        for name in ["master", "backup", "slave-1", "slave-2", "slave-3"]:
            cluster.start(name)
            if name == "master":
                # It has the lock before the other one comes.
                wait("the first master answers", lambda: cluster.info(0).get("dsm_role"))
        wait("all slaves are there", lambda: cluster.info(0).get("active_slaves") == "3")
        cluster.wait_for_role(1, "standby")
        check_cli(cluster)
        clients = [NodeClients(cluster), PythonClients(redis, cluster)]
        wait("all clients work", lambda: len(clients[0].done()) == 6 and len(clients[1].done()) == 3)
        ports = tuple(map(str, cluster.ports))
        go_on("before anything happens", clients, ports)
        for name, number in [("master", 0), ("backup", 1)]:
            cluster.kill(name)
            cluster.wait_for_role(1 - number, "primary")
            go_on(f"at the other master after kill -9 of the {name}", clients, ports[1 - number])
            cluster.start(name)
            cluster.wait_for_role(number, "standby")
            go_on(f"at both when the {name} is back", clients, ports)
    finally:
        for each in clients:
            faults = each.finish()
            check(f"{each.__doc__} Nothing was wrong", not faults, str(faults[:5]))
        cluster.stop()
        if failed or sys.exc_info()[0]:
            for output in sorted(directory.glob("*.out")):
                print(f"--- {output.name}\n{output.read_text(errors='replace')[-2000:]}")


def main():
    programs = pathlib.Path(sys.argv[1]).resolve()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dsm-compat."))
    try:
        run(programs, directory)
    finally:
        shutil.rmtree(directory)
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
