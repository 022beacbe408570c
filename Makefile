# make verify writes nothing and is what CI runs; make fix rewrites.

.PHONY: verify fix format lint doc test cluster demo bench bench-peers

verify: format lint doc test

format:
	cargo fmt --all -- --check

lint:
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test:
	cargo test --locked

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

cluster:
	cargo run --release

demo:
	examples/failover.sh

bench:
	cargo run --release --bin dsm-test-harness -- --slaves 5 --clients 18 --think 0 --check

# Beside redis-server, etcd and ZooKeeper; rewrites the tables of docs/BENCHMARKS.md. PEERS_FLAGS=--quick takes 6 minutes
# instead of 50.
bench-peers:
	cargo build --release --locked --features peers --bin dsm-test-harness
	target/release/dsm-test-harness peers --document docs/BENCHMARKS.md $(PEERS_FLAGS)
