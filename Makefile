# make verify writes nothing and is what CI runs; make fix rewrites; make nightly runs for hours.

.PHONY: manuals test-manuals verify format spelling deny lint doc test compat fix cluster demo bench bench-core bench-start bench-micro bench-peers dist sim model mutants mutants-quick test-peers fuzz alarms nightly nightly-faults nightly-sim

verify: format spelling lint doc test test-manuals mutants-quick test-peers

format:
	cargo fmt --all -- --check

# typos, from https://github.com/crate-ci/typos or `pip install typos`.
spelling:
	typos

# cargo-deny, from https://github.com/EmbarkStudios/cargo-deny; what needs no network `make test` checks as well.
deny:
	cargo deny check

lint:
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test:
	cargo test --locked

# Clients in other languages on a cluster with TLS and users, while masters are killed. Needs node, npm, pip, openssl and
# redis-cli; what it installs goes into a temporary directory.
compat:
	cargo build --release --locked -p dsm-server
	python3 tests/compat/run.py target/release

# Planted bugs, which the simulation must find: docs/ARCHITECTURE.md, "Planted bugs".
MUTANTS = cargo test --locked -p dsm --features mutants --test simulation --

mutants:
	$(MUTANTS) --ignored --exact --nocapture mutants::each_is_found

mutants-quick:
	$(MUTANTS) --exact mutants::the_quickest_are_found mutants::the_documented_table_has_each
	cargo test --locked -p dsm-consensus --features mutants --test simulation

# Manual pages and completions of shells for packages, below target/share. The programs are built apart, with a feature that no
# other build of them has.
manuals:
	cargo build --locked -p dsm-server -p dsm-harness --bins --features dsm-server/manuals --target-dir target/manuals
	for program in dsm-master dsm-backup-master dsm-slave dsm-client dsm-cluster dsm-log dsm-test-harness; do \
		target/manuals/debug/$$program --write-manuals target/share || exit 1; \
	done

test-manuals:
	cargo test --locked -p dsm-server --features manuals --test manuals

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

cluster:
	cargo run --release

demo:
	examples/failover.sh

bench:
	cargo run --release --bin dsm-test-harness -- --slaves 5 --clients 18 --think 0 --check

# A build beside another one, and beside redis-server, everything pinned to one core: docs/BENCHMARKS.md. BASE is a revision
# (the commit before what is in the working tree), which is built apart, or a directory of programs. CORE_FLAGS=--quick takes
# 40 s instead of 3 minutes; PROFILE=release builds faster.
BASE ?= $(shell git diff --quiet HEAD && echo HEAD^ || echo HEAD)
PROFILE ?= dist
CORE_PROGRAMS = dsm-master dsm-backup-master dsm-slave
CORE_BUILD = cargo build --profile $(PROFILE) --locked $(addprefix --bin ,$(CORE_PROGRAMS))

bench-core:
	$(CORE_BUILD) -p dsm-server -p dsm-harness --bin dsm-test-harness
	set -e; base='$(BASE)'; \
	if [ ! -d "$$base" ]; then \
		revision=$$(git rev-parse --verify --short "$$base^{commit}"); \
		sources=target/bench-core/$$revision; base=target/bench-core/$$revision-$(PROFILE); \
		if [ ! -d $$base ]; then \
			mkdir -p $$sources; git archive $$revision | tar -x -C $$sources; \
			$(CORE_BUILD) -p dsm-server --manifest-path $$sources/Cargo.toml --target-dir target/bench-core/build; \
			rm -rf $$base.part; mkdir $$base.part; \
			cp $(addprefix target/bench-core/build/$(PROFILE)/,$(CORE_PROGRAMS)) $$base.part; \
			mv $$base.part $$base; rm -r $$sources; \
		fi; \
	fi; \
	target/$(PROFILE)/dsm-test-harness one-core --base $$base $(CORE_FLAGS)

# The programs as they are packaged, in target/pgo/dist: built once to see under the loads of bench-core what they do, and once
# more arranged for that. Needs `rustup component add llvm-tools` and redis-server. DIST_FLAGS= trains longer.
PGO = $(CURDIR)/target/pgo
DIST_FLAGS ?= --rounds 1 --duration 2s

dist:
	RUSTFLAGS="-Cprofile-generate=$(PGO)/seen" cargo build --profile dist --locked -p dsm-server --target-dir $(PGO)/watched
	cargo build --release --locked -p dsm-harness --bin dsm-test-harness
	rm -rf $(PGO)/seen
	target/release/dsm-test-harness one-core --build $(PGO)/watched/dist --no-counts --output $(PGO) $(DIST_FLAGS)
	"$$(find "$$(rustc --print sysroot)" -name llvm-profdata)" merge -o $(PGO)/seen.profdata $(PGO)/seen
	RUSTFLAGS="-Cprofile-use=$(PGO)/seen.profdata" cargo build --profile dist --locked -p dsm-server --target-dir $(PGO)

# How long a master needs until it serves ten million keys, and its memory, beside redis-server. START_FLAGS="--keys 1000000".
bench-start:
	$(CORE_BUILD) -p dsm-server -p dsm-harness --bin dsm-test-harness
	target/$(PROFILE)/dsm-test-harness cold-start --redis $(START_FLAGS)

# The steps of a request, each by itself, with criterion. BENCH=directory runs some.
bench-micro:
	cargo bench --locked -p dsm-benches -- $(BENCH)

# What only the comparison with other stores is built with: their drivers against recorded answers, tables and pictures.
test-peers:
	cargo test --locked -p dsm-harness --features peers --bin dsm-test-harness -- driver peers named

# Beside redis-server, valkey-server, etcd and ZooKeeper; rewrites the tables of docs/BENCHMARKS.md. PEERS_FLAGS=--quick takes 6 minutes
# instead of 50.
bench-peers:
	cargo build --profile dist --locked -p dsm-harness --features peers
	target/dist/dsm-test-harness peers --document docs/BENCHMARKS.md $(PEERS_FLAGS)

# Whole clusters in virtual time. SEEDS=1000 from FIRST=0 on, each broken for SECONDS=30; SEED=n runs one and says what
# happens.
sim:
	$(if $(SEEDS),SEEDS=$(SEEDS)) $(if $(FIRST),FIRST=$(FIRST)) $(if $(SECONDS),SECONDS=$(SECONDS)) $(if $(SEED),SEED=$(SEED)) \
		cargo test --locked --profile sim -p dsm --test simulation swarm -- --nocapture

# The model check with its deep worlds: 40 million states, 24 minutes of one core. `make test` searches the small ones.
model:
	MODEL_DEEP=1 cargo test --locked -p dsm-protocol --test model -- --nocapture --test-threads 1

# Each target for so long, in seconds. Needs `cargo install cargo-fuzz` and a C++ compiler. There is no unsafe code to
# sanitize, and without a sanitizer any toolchain will do. What is found new is kept out of the corpus of the repository.
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard protocol/fuzz/fuzz_targets/*.rs)))

fuzz:
	cd protocol && for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/target/corpus/$$target && \
		cargo fuzz run --sanitizer none $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(or $(SECONDS),60) -max_len=2048 -timeout=20 -rss_limit_mb=1024 || exit 1; \
	done

# What promtool says of docs/alerts.yml; `cargo test` checks its form, and that each metric in it exists. Debian: prometheus.
alarms:
	promtool check rules docs/alerts.yml

# The long forms of tests that CI runs in minutes, a target for each kind; `make -k nightly` runs all though one fails.
nightly: nightly-sim nightly-faults model mutants alarms
	$(MAKE) fuzz SECONDS=600

# Real processes: 200 disk calls for each fault, 3,000 kills, 600 pauses, 1,000 power losses. As root, or much is SKIPPED.
nightly-faults:
	DSM_NIGHTLY=1 cargo test --locked --no-fail-fast --test disk_errors --test chaos -- --nocapture --test-threads=1

nightly-sim:
	$(MAKE) sim SEEDS=10000 SECONDS=60
	TWICE=200 cargo test --locked --profile sim -p dsm --test simulation the_same_seed_gives_the_same_run
	SEEDS=30000 cargo test --locked --profile sim -p dsm-consensus --test simulation -- --ignored --exact many_seeds_break_nothing
